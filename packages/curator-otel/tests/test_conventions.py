# SPDX-License-Identifier: Apache-2.0
"""The table of names contains everything that is emitted, and nothing else."""

from __future__ import annotations

import os
import re
from collections import Counter

import pytest

from curator_core import Pipeline, Task, processing_stage
from curator_core.results import Verdict
from curator_otel import conventions, recover, replay
from curator_otel.conventions import ATTRIBUTES, EVENTS, METRICS, SPANS

TYPES = {
    "string": str,
    "int": int,
    "double": float,
    "string[]": tuple,
    "number or string": (int, float, str),
}
UNITS = {"", "1", "s", "By", "{task}", "{batch}", "{item}", "{stage}", "{span}", "{worker}", "{run}"}


@pytest.fixture
def everything(memory, script, boom, tmp_path):
    """Runs that together emit every span, attribute, and metric."""
    script.play(
        memory.observer(),
        script.worker(0),
        script.worker(1, event="setup_failed", error=boom)._replace(epoch=1),
        script.worker(1, event="ended", error=boom)._replace(epoch=1),
        script.batch(0, 0, startup_ns=1, in_bytes=1, out_bytes=1, ready_unix_ns=1, ready_node_id="n1"),
        script.batch(0, 1, epoch=1, bundle_id="b", metrics={"count": 1, "text": "x"}, idle_ns=1, num_items=1),
        script.batch(0, 2, kinds=("out", "filtered", "failed"), error=boom, cpu_ns=1),
        script.batch(0, 3, kinds=("retried",), error=boom),
        *(script.batch(0, number) for number in range(4, 200)),  # more than the histograms record
        lost=["1 of 2 tasks between 'read' and 'write'"],
        verdict=Verdict("busy", "read", 0.9, "it is at work", "give it more workers"),
        clock_offsets={"n2": 0.012},
    )
    observer = memory.observer(detail="full")
    observer.on_run_start(script.info)
    script.report(observer, script.batch(0, 0))
    script.turn_clock(observer, 1)
    observer.on_run_end(script.result(), None)

    @processing_stage()
    def broken(task):
        raise ValueError("x")

    with pytest.raises(Exception, match="ValueError"):
        Pipeline("p", [broken]).run(initial_tasks=[Task(data=1)], observers=[memory.observer()])

    @processing_stage()
    def fine(task):
        return task

    replay(Pipeline("p", [fine]).run(initial_tasks=[Task(data=1)]), memory.tracer_provider)
    recover(left_behind(script, memory, tmp_path), memory.tracer_provider)
    return memory


def left_behind(script, memory, directory):
    """Return the snapshot of a run that did not end."""
    observer = memory.observer(snapshots=directory)
    observer.on_run_start(script.info)
    script.report(observer, script.batch(0, 0))
    path = script.write_snapshot(observer, directory)
    path.write_text(path.read_text().replace(f'"pid": {os.getpid()}', '"pid": 4194305'))  # of a process that is gone
    return path


def kind_of(span):
    for key, described in SPANS.items():
        pattern = re.sub(r"\\\{[^}]*\\\}", "(.+)", re.escape(described.name))
        if re.fullmatch(pattern, span.name) and described.kind == span.kind.name:
            if key == "stage" and not re.match(r"\d\d ", span.name):
                continue
            return key
    raise AssertionError(f"{span.name} ({span.kind}) is not in the table")


def described(name):
    if name.startswith(conventions.CUSTOM_METRIC):
        return ATTRIBUTES[f"{conventions.CUSTOM_METRIC}*"]
    assert name in ATTRIBUTES, f"{name} is not in the table"
    return ATTRIBUTES[name]


def emitted_attributes(memory):
    """Yield the place, name, and value of each attribute."""
    for span in memory.spans:
        for name, value in span.attributes.items():
            yield kind_of(span), name, value
        for event in span.events:
            for name, value in event.attributes.items():
                yield event.name, name, value
    for metric in memory.instruments().values():
        for point in metric.data.data_points:
            for name, value in point.attributes.items():
                yield "metric", name, value


def test_table_lists_exactly_what_is_emitted(everything):
    emitted = set()
    for where, name, value in emitted_attributes(everything):
        attribute = described(name)
        emitted.add((where, attribute.name))
        assert isinstance(value, TYPES[attribute.type]), f"{name} = {value!r}"
        assert not isinstance(value, bool)
    assert emitted == {(where, name) for name, row in ATTRIBUTES.items() for where in row.on}
    assert {kind_of(span) for span in everything.spans} == set(SPANS)
    assert {event.name for span in everything.spans for event in span.events} == set(EVENTS)
    by_configure = {name for name, row in METRICS.items() if row.instrument == "observable counter"}
    assert set(everything.instruments()) == set(METRICS) - by_configure
    (unrecorded,) = [metric for name, metric in everything.instruments().items() if name == "curator.batch.unrecorded"]
    row = METRICS[unrecorded.name]
    assert (unrecorded.unit, unrecorded.description) == (row.unit, row.description)


def test_table_follows_the_rules_for_names_and_units():
    for row in (*ATTRIBUTES.values(), *METRICS.values()):
        assert row.unit in UNITS
        assert row.description.endswith((".", "`."))
        assert (row.stability == "development") == row.name.startswith("curator.")
    # Namespaces that OpenTelemetry or others may use.
    taken = ("pipeline.", "cicd.", "messaging.", "otel.")
    assert not [name for name in (*ATTRIBUTES, *METRICS) if name.startswith(taken)]
    # No name is also the namespace of another.
    names = {*ATTRIBUTES, *METRICS}
    assert not [a for a in names for b in names if b.startswith(f"{a}.")]
    assert all(label in ATTRIBUTES for row in METRICS.values() for label in row.labels)


def test_each_concept_has_one_name_on_all_spans_and_metrics():
    described = Counter(row.description for row in ATTRIBUTES.values() if row.name.startswith("curator."))
    assert set(described.values()) == {1}
    for name in ATTRIBUTES.keys() & METRICS.keys():
        metric, attribute = METRICS[name], ATTRIBUTES[name]
        assert (metric.unit, metric.description) == (attribute.unit, attribute.description)
    sums = {name for name, row in ATTRIBUTES.items() if {"run", "stage", "window"} <= {*row.on}}
    assert sums == {
        *(f"curator.task.{what}" for what in ("in", "out", "filtered", "failed", "merged")),
        *("curator.batch.ended", "curator.batch.retried"),
        *(f"curator.{what}.time" for what in ("process", "cpu", "idle")),
    }
