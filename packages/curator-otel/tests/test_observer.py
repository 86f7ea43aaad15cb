# SPDX-License-Identifier: Apache-2.0
"""The trace of a run: times, attributes of batches, omitted data, concurrent runs, and broken or missing SDKs.

The common fields of all runs are tested at a receiver, in otlp/test_fields.py.
"""

from __future__ import annotations

import logging

import pytest
from opentelemetry import trace

from curator_core import Pipeline, Task, processing_stage
from curator_otel import OTelObserver

SECOND = 1_000_000_000
T0 = 1_700_000_000 * SECOND


@processing_stage()
def same(task):
    return task


def run_numbers(observer):
    return Pipeline("numbers", [same]).run(initial_tasks=[Task(data=n) for n in range(6)], observers=[observer])


# --- times --------------------------------------------------------------------------------------------------


def test_spans_have_the_times_of_the_reports(memory, script):
    script.play(
        memory.observer(),
        script.worker(0, at=0.5, took=0.25),
        script.batch(0, 0, at=1, took=2),
        script.batch(0, 1, at=4, took=0.5),
        script.batch(1, 0, at=6, took=1),
    )

    def times(name):
        return [((s.start_time - T0) / SECOND, (s.end_time - T0) / SECOND) for s in memory.named(name)]

    assert times("worker setup") == [(0.5, 0.75)]
    assert times("process_batch read") == [(1, 3), (4, 4.5)]
    assert times("00 read") == [(0.5, 4.5)]
    assert times("01 write") == [(6, 7)]
    assert memory.one("run by_hand").start_time == T0


def test_teardown_does_not_extend_a_stage(memory, script):
    script.play(memory.observer(), script.batch(0, 0, at=1, took=2), script.worker(0, event="ended", at=100, took=1))
    assert memory.one("00 read").end_time == T0 + 3 * SECOND
    assert not memory.named("worker teardown")


def test_run_span_covers_a_stage_whose_clock_is_ahead(memory, script):
    far = 10_000_000_000  # seconds after T0: the clock of a node in a future century
    script.play(memory.observer(), script.batch(0, 0, at=far, took=1))
    assert memory.one("run by_hand").end_time == memory.one("00 read").end_time == T0 + (far + 1) * SECOND


def test_stage_without_activity_has_no_span(memory, script):
    script.play(memory.observer(), script.batch(0, 0))
    assert memory.names() == {"run by_hand": 1, "00 read": 1, "process_batch read": 1}
    assert memory.one("run by_hand").attributes["curator.stage.count"] == 2


def test_batch_has_at_most_16_links_and_the_number_of_its_parents(memory, script):
    first = [script.batch(0, number) for number in range(20)]
    last = script.batch(1, 0, parents=tuple(report.batch_id for report in first))
    script.play(memory.observer(), *first, last)
    batch = memory.one("process_batch write")
    assert len(batch.links) == 16
    assert batch.attributes["curator.batch.parents"] == 20


def test_links_refer_only_to_exported_spans(memory, script):
    first = [script.batch(0, number, worker_id=f"w{number}") for number in range(200)]
    last = script.batch(1, 0, parents=tuple(report.batch_id for report in first))
    script.play(memory.observer(max_spans=40), *first, last)
    kept = {span.context.span_id for span in memory.spans}
    links = memory.one("process_batch write").links
    assert links
    assert {link.context.span_id for link in links} <= kept


# --- attributes of batches ----------------------------------------------------------------------------------


def test_batch_span_has_all_attributes(memory, script):
    report = script.batch(
        0, 3, kinds=("out", "filtered"), attempt=2, group=1, epoch=1, bundle_id="b7", cpu_ns=SECOND // 2,
        idle_ns=SECOND // 4, startup_ns=SECOND, in_bytes=10, out_bytes=20, num_items=5,
        ready_unix_ns=T0, ready_node_id="n1",
    )  # fmt: skip
    script.play(memory.observer(), report)
    assert dict(memory.one("process_batch read").attributes) == {
        "curator.stage.name": "read",
        "curator.stage.index": 0,
        "curator.worker.id": "w1",
        "curator.node.id": "n1",
        "process.pid": 4711,
        "curator.run.epoch": 1,
        "curator.batch.id": "0/3",
        "curator.batch.kept_as": "lineage",
        "curator.batch.sequence": 3,
        "curator.batch.attempt": 2,
        "curator.batch.group": 1,
        "curator.bundle.id": "b7",
        "curator.outcome": "ok",
        "curator.task.in": 2,
        "curator.task.out": 1,
        "curator.task.filtered": 1,
        "curator.task.failed": 0,
        "curator.task.merged": 0,
        "curator.item.count": 5,
        "curator.input.size": 10,
        "curator.output.size": 20,
        "curator.cpu.time": 0.5,
        "curator.idle.time": 0.25,
        "curator.setup.time": 1.0,
        "curator.wait.time": 1.0,
        "curator.batch.parents": 0,
    }


def test_wait_time_is_omitted_between_nodes_with_different_clocks(memory, script):
    script.play(memory.observer(), script.batch(0, 0, ready_unix_ns=T0, ready_node_id="n2"))
    assert "curator.wait.time" not in memory.one("process_batch read").attributes


def test_custom_metrics_are_bounded_in_number_length_and_kind(memory, script):
    metrics = {"long": "x" * 10_000, "nan": float("nan"), "huge": 2**70, "list": [1, 2], "n" * 500: 1}
    metrics |= {f"metric{number}": number for number in range(100)}
    script.play(memory.observer(), script.batch(0, 0, metrics=metrics))
    kept = {
        name.removeprefix("curator.metric."): value
        for name, value in memory.one("process_batch read").attributes.items()
        if name.startswith("curator.metric.")
    }
    assert len(kept) == 32
    assert kept["long"] == "x" * 256
    assert kept["nan"] == "nan"
    assert kept["n" * 64] == 1
    assert "huge" not in kept
    assert "list" not in kept


def test_payloads_are_not_in_the_trace(memory, script):
    private = "a private payload"
    careless = script.batch(0, 0, metrics={"task": Task(data=private), "bytes": private.encode()})
    script.play(memory.observer(), careless)
    Pipeline("p", [same]).run(initial_tasks=[Task(data=private)], observers=[memory.observer()])
    assert memory.named("process_batch same")
    assert private not in "".join(span.to_json() for span in memory.spans)


# --- several runs -------------------------------------------------------------------------------------------


def test_observer_watches_concurrent_runs(memory, script, make_script):
    class Other(make_script):
        run_id = "f" * 32

    other = Other("copy")
    observer = memory.observer()
    observer.on_run_start(script.info)
    observer.on_run_start(other.info)
    observer.on_batch(script.batch())
    observer.on_batch(other.batch())
    observer.on_run_end(script.result(), None)
    observer.on_run_end(other.result(), None)
    traces = {}
    for span in memory.spans:
        traces.setdefault(span.context.trace_id, set()).add(span.name)
    assert sorted(map(sorted, traces.values())) == [
        ["00 copy", "process_batch copy", "run by_hand", "run started by_hand"],
        ["00 read", "process_batch read", "run by_hand", "run started by_hand"],
    ]


def test_observer_can_be_used_again(memory):
    observer = memory.observer()
    run_numbers(observer)
    run_numbers(observer)
    assert len(memory.named("run numbers")) == 2
    assert memory.points()["curator.run.count"] == {("ok",): 2}


def test_reports_of_an_unknown_run_are_ignored(memory, script):
    observer = memory.observer()
    observer.on_batch(script.batch())
    observer.on_worker(script.worker())
    observer.on_run_end(script.result(), None)
    assert not memory.spans


# --- SDKs ---------------------------------------------------------------------------------------------------


class Refusing(trace.TracerProvider):
    """A broken third-party provider."""

    def __init__(self, working_calls=0, tracer=None):
        self.working_calls = working_calls
        self.tracer = tracer

    def get_tracer(self, *args, **kwargs):
        outer = self

        class Tracer(trace.NoOpTracer):
            def start_span(self, *args, **kwargs):
                if outer.working_calls == 0:
                    raise RuntimeError("broken provider")
                outer.working_calls -= 1
                return outer.tracer.start_span(*args, **kwargs)

        return Tracer()


@pytest.mark.parametrize("working_calls", [0, 1, 2, 5])
def test_broken_provider_loses_only_the_trace(memory, caplog, working_calls):
    tracer = memory.tracer_provider.get_tracer("x")
    observer = OTelObserver(Refusing(working_calls, tracer), memory.meter_provider)
    with caplog.at_level(logging.WARNING):
        assert len(run_numbers(observer)) == 6
        assert len(run_numbers(observer)) == 6
    assert [record.name for record in caplog.records] == ["curator_otel.observer"]  # logged once, by us
    assert ("run numbers" in memory.names()) == (working_calls > 0)


def test_missing_sdk_is_a_warning(script, caplog):
    with caplog.at_level(logging.WARNING):
        script.play(OTelObserver(), script.batch())
    (record,) = caplog.records
    assert "configure()" in record.getMessage()


def test_disabled_sdk_is_not_a_warning(script, caplog, monkeypatch):
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    with caplog.at_level(logging.WARNING):
        script.play(OTelObserver(), script.batch())
    assert not caplog.records
