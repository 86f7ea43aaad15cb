# SPDX-License-Identifier: Apache-2.0
"""Every batch, in traces of their own."""

from __future__ import annotations

import pytest

from curator_core import ConfigurationError, Pipeline, Task, processing_stage
from curator_otel import OTelObserver, configure, render_tree
from curator_otel.detail import SPANS_LIMIT


def detail(memory):
    """The traces of details: the first span of each, and those below it."""
    found = {}
    for span in memory.spans:
        if span.name.startswith("detail "):
            found[span.context.trace_id] = (span, [])
    for span in memory.spans:
        if span.context.trace_id in found and span.parent is not None:
            found[span.context.trace_id][1].append(span)
    return list(found.values())


def test_every_batch_is_in_one_of_them(memory):
    @processing_stage()
    def twice(task):
        return [Task(data=1), Task(data=2)]

    @processing_stage()
    def same(task):
        return task

    tasks = [Task(data=number) for number in range(40)]
    pipeline = Pipeline("p", [twice, same])
    result = pipeline.run(initial_tasks=tasks, observers=[memory.observer(max_spans=10, detail="full")])
    traces = detail(memory)
    assert [(root.name, len(below)) for root, below in traces] == [("detail twice", 40), ("detail same", 80)]
    assert sum(len(below) for _, below in traces) == sum(stage.batches for stage in result.stages)
    run = memory.one("run p")
    for root, below in traces:
        assert root.parent is None
        assert root.attributes["curator.run.id"] == result.run_id
        (link,) = root.links
        assert link.context.trace_id == run.context.trace_id
        assert all(span.parent == root.context for span in below)
        assert root.start_time <= min(span.start_time for span in below)
        assert root.end_time >= max(span.end_time for span in below)
    # Links lead from one stage's trace into that of the one before.
    first = {span.context.span_id for span in traces[0][1]}
    assert {link.context.span_id for span in traces[1][1] for link in span.links} == first
    assert len([span for span in memory.spans if span.context.trace_id == run.context.trace_id]) <= 10


def test_each_has_fewer_than_5000_spans(memory, script):
    reports = [script.batch(0, number) for number in range(2 * SPANS_LIMIT + 7)]
    script.play(memory.observer(max_spans=10, detail="full"), *reports)
    traces = detail(memory)
    assert [len(below) for _, below in traces] == [SPANS_LIMIT, SPANS_LIMIT, 7]
    assert max(len(below) + 1 for _, below in traces) == 4999


def test_each_window_has_its_own(memory, script):
    observer = memory.observer(detail="full")
    observer.on_run_start(script.info)
    for age in (1, 2):
        script.report(observer, script.batch(0, age, at=age))
        script.turn_clock(observer, age)
    assert len(detail(memory)) == 2  # they have left, though the run goes on
    observer.on_run_end(script.result(), None)
    assert [root.attributes["curator.window.number"] for root, _ in detail(memory)] == [0, 1]


def test_the_tree_counts_them(script, tmp_path):
    path = tmp_path / "trace.json"
    with configure(json_file=path, set_global=False) as telemetry:
        script.play(OTelObserver(telemetry.tracer_provider, detail="full"), script.batch(0, 0), script.batch(1, 0))
    run, details = render_tree(path).split("\n\n")
    assert run.startswith("run by_hand")
    assert details == "in traces of their own: 2 batches in 2 windows"


def test_without_being_asked_there_are_none(memory, script):
    script.play(memory.observer(), script.batch())
    assert not detail(memory)


@pytest.mark.parametrize("given", ["all", None, True, 1])
def test_a_level_that_does_not_exist_is_refused(given):
    with pytest.raises(ConfigurationError, match="detail"):
        OTelObserver(detail=given)
