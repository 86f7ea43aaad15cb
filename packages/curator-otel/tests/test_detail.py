# SPDX-License-Identifier: Apache-2.0
"""Spans of every batch, in separate traces."""

from __future__ import annotations

import pytest

from curator_core import ConfigurationError, Pipeline, Task, processing_stage
from curator_otel import OTelObserver, render_tree
from curator_otel._trace import detail


def details_in(memory):
    """Return the traces of details: the first span of each, and the spans below it."""
    found = {span.context.trace_id: (span, []) for span in memory.spans if span.name.startswith("detail ")}
    for span in memory.spans:
        if span.context.trace_id in found and span.parent is not None:
            found[span.context.trace_id][1].append(span)
    return list(found.values())


def test_full_detail_has_every_batch_linked_across_stages(memory):
    @processing_stage()
    def twice(task):
        return [Task(data=1), Task(data=2)]

    @processing_stage()
    def same(task):
        return task

    tasks = [Task(data=number) for number in range(40)]
    pipeline = Pipeline("p", [twice, same])
    result = pipeline.run(initial_tasks=tasks, observers=[memory.observer(max_spans=10, detail="full")])
    traces = details_in(memory)
    assert [(root.name, len(below)) for root, below in traces] == [("detail twice", 40), ("detail same", 80)]
    run = memory.one("run p")
    for root, below in traces:
        assert root.parent is None
        assert root.attributes["curator.run.id"] == result.run_id
        (link,) = root.links
        assert link.context.trace_id == run.context.trace_id
        assert all(span.parent == root.context for span in below)
        assert root.start_time <= min(span.start_time for span in below)
        assert root.end_time >= max(span.end_time for span in below)
    first = {span.context.span_id for span in traces[0][1]}
    assert {link.context.span_id for span in traces[1][1] for link in span.links} == first
    assert len([span for span in memory.spans if span.context.trace_id == run.context.trace_id]) <= 10


def test_window_of_too_many_batches_has_several_traces(memory, script, monkeypatch):
    assert detail.SPANS_LIMIT + 1 < 5000  # above this, back ends reject a trace
    monkeypatch.setattr(detail, "SPANS_LIMIT", 40)
    script.play(memory.observer(max_spans=10, detail="full"), *(script.batch(0, number) for number in range(87)))
    assert [len(below) for _, below in details_in(memory)] == [40, 40, 7]


def test_links_to_old_batches_are_dropped(memory, script, monkeypatch):
    monkeypatch.setattr(detail, "_LINKABLE", 3)
    reports = [script.batch(0, number) for number in range(5)]
    last = script.batch(1, 0, parents=tuple(report.batch_id for report in reports))
    script.play(memory.observer(max_spans=1, detail="full"), *reports, last)
    (batch,) = memory.named("process_batch write")
    made_by = {span.context.span_id: span.attributes["curator.batch.id"] for span in memory.named("process_batch read")}
    assert [made_by[link.context.span_id] for link in batch.links] == ["0/2", "0/3", "0/4"]


def test_each_window_has_a_trace_that_is_exported_during_the_run(memory, script):
    observer = memory.observer(detail="full")
    observer.on_run_start(script.info)
    for age in (1, 2):
        script.report(observer, script.batch(0, age, at=age))
        script.turn_clock(observer, age)
    assert [root.attributes["curator.window.number"] for root, _ in details_in(memory)] == [0, 1]
    observer.on_run_end(script.result(), None)
    assert len(details_in(memory)) == 2


def test_tree_counts_details_in_one_line(script, traced):
    path = traced(lambda observer: script.play(observer, script.batch(0, 0), script.batch(1, 0)), detail="full")
    run, details = render_tree(path).split("\n\n")
    assert run.startswith("run by_hand")
    assert details == "in separate traces: 2 batches in 2 windows"


@pytest.mark.parametrize("given", ["all", None, True, 1])
def test_unknown_level_is_rejected(given):
    with pytest.raises(ConfigurationError, match="detail"):
        OTelObserver(detail=given)
