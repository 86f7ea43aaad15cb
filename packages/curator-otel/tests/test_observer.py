# SPDX-License-Identifier: Apache-2.0
"""The trace of a run: which spans there are, whose children, when, and what they say."""

from __future__ import annotations

from typing import Any

from opentelemetry.trace import SpanKind

from curator_core import Pipeline, ProcessingStage, Task, processing_stage

SECOND = 1_000_000_000
T0 = 1_700_000_000 * SECOND


@processing_stage()
def listing(task):
    return [Task(data=number) for number in range(6)]


@processing_stage(batch_size=2)
def odd_only(task):
    return task if task.data % 2 else None


class Decode(ProcessingStage[Any, Any]):
    def setup(self, worker_metadata):
        self.ready = True

    def process(self, task):
        self.metrics.add("frames", 3)
        self.metrics.set("model", "tiny")
        return Task(data=bytes(task.data))


def run_numbers(observer, **settings):
    pipeline = Pipeline("numbers", [listing, odd_only, Decode()])
    return pipeline.run(initial_tasks=[Task(data="a"), Task(data="b")], observers=[observer], **settings)


# --- structure ----------------------------------------------------------------------------------------------


def test_a_run_gives_a_span_a_stage_a_span_a_batch_and_one_for_each_set_up(memory):
    run_numbers(memory.observer())
    assert memory.names() == {
        "run numbers": 1,
        "00 listing": 1,
        "01 odd_only": 1,
        "02 Decode": 1,
        "worker setup": 3,
        "process_batch listing": 2,
        "process_batch odd_only": 6,
        "process_batch Decode": 6,
    }


def test_batches_are_below_their_stage_and_stages_below_the_run(memory):
    run_numbers(memory.observer())
    root = memory.one("run numbers")
    assert root.parent is None
    for name in ("00 listing", "01 odd_only", "02 Decode"):
        stage = memory.one(name)
        assert stage.parent == root.context
        batches = memory.named(f"process_batch {name[3:]}")
        assert batches
        assert all(batch.parent == stage.context for batch in batches)
    setups = memory.named("worker setup")
    assert len({setup.parent.span_id for setup in setups}) == 3
    assert {span.context.trace_id for span in memory.spans} == {root.context.trace_id}


def test_the_run_is_a_server_span_and_all_else_internal(memory):
    run_numbers(memory.observer())
    kinds = {span.name: span.kind for span in memory.spans}
    assert kinds.pop("run numbers") is SpanKind.SERVER
    assert set(kinds.values()) == {SpanKind.INTERNAL}


def test_parents_are_exported_after_their_children(memory):
    run_numbers(memory.observer())
    assert [span.name for span in memory.spans[-4:]] == [
        "00 listing",
        "01 odd_only",
        "02 Decode",
        "run numbers",
    ]


def test_children_lie_within_their_parents(memory):
    run_numbers(memory.observer())
    by_id = {span.context.span_id: span for span in memory.spans}
    for span in memory.spans:
        if span.parent is not None:
            parent = by_id[span.parent.span_id]
            assert parent.start_time <= span.start_time <= span.end_time <= parent.end_time


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


def test_a_teardown_at_the_end_of_the_run_does_not_make_a_stage_look_busy_until_then(memory, script):
    script.play(memory.observer(), script.batch(0, 0, at=1, took=2), script.worker(0, event="ended", at=100, took=1))
    assert memory.one("00 read").end_time == T0 + 3 * SECOND
    assert not memory.named("worker teardown")


def test_a_clock_that_is_ahead_does_not_make_a_stage_longer_than_the_run(memory, script):
    far = 10_000_000_000  # seconds after T0: a node's clock in the next centuries
    script.play(memory.observer(), script.batch(0, 0, at=far, took=1))
    assert memory.one("run by_hand").end_time == memory.one("00 read").end_time == T0 + (far + 1) * SECOND


def test_a_stage_without_activity_has_no_span(memory, script):
    script.play(memory.observer(), script.batch(0, 0))
    assert memory.names() == {"run by_hand": 1, "00 read": 1, "process_batch read": 1}
    assert memory.one("run by_hand").attributes["curator.run.stages"] == 2


def test_a_batch_is_linked_to_the_batches_that_made_its_inputs(memory):
    run_numbers(memory.observer())
    sources = {s.attributes["curator.batch.id"]: s.context for s in memory.named("process_batch odd_only")}
    decoded = memory.named("process_batch Decode")
    assert len(decoded) == 6
    for batch in decoded:
        (link,) = batch.links
        assert link.context in sources.values()
        assert batch.attributes["curator.batch.parents"] == 1


def test_links_are_at_most_16_and_the_count_is_kept(memory, script):
    first = [script.batch(0, number) for number in range(20)]
    last = script.batch(1, 0, parents=tuple(report.batch_id for report in first))
    script.play(memory.observer(), *first, last)
    batch = memory.one("process_batch write")
    assert len(batch.links) == 16
    assert batch.attributes["curator.batch.parents"] == 20


def test_links_lead_only_to_spans_that_were_kept(memory, script):
    first = [script.batch(0, number, worker_id=f"w{number}") for number in range(200)]
    last = script.batch(1, 0, parents=tuple(report.batch_id for report in first))
    script.play(memory.observer(max_spans=40), *first, last)
    kept = {span.context.span_id for span in memory.spans}
    links = memory.one("process_batch write").links
    assert links
    assert {link.context.span_id for link in links} <= kept


# --- what they say ------------------------------------------------------------------------------------------


def test_the_run_says_what_came_of_it(memory):
    result = run_numbers(memory.observer())
    attributes = memory.one("run numbers").attributes
    slowest = max(result.stages, key=lambda stage: stage.process_s)
    assert attributes["curator.run.id"] == result.run_id
    assert attributes["curator.pipeline.name"] == "numbers"
    assert attributes["curator.executor.name"] == "LocalExecutor"
    assert attributes["curator.run.stages"] == 3
    assert attributes["curator.run.source_tasks"] == 2
    assert attributes["curator.run.complete"] is True
    assert attributes["curator.run.tasks_out"] == 6
    assert attributes["curator.run.tasks_filtered"] == 6
    assert attributes["curator.run.tasks_failed"] == 0
    assert attributes["curator.run.batches"] == 14
    assert attributes["curator.spans.limit"] == 1500
    assert attributes["curator.spans.left_out"] == 0
    assert attributes["curator.slowest.stage"] == slowest.name
    assert attributes["curator.slowest.process_time"] == slowest.process_s
    assert attributes["curator.bottleneck.kind"] == result.verdict.kind == "too_short"
    assert attributes["curator.bottleneck.reason"] == result.verdict.reason
    assert "curator.bottleneck.stage" not in attributes


def test_the_stages_agree_with_the_result(memory):
    result = run_numbers(memory.observer())
    for index, summary in enumerate(result.stages):
        attributes = memory.one(f"{index:02d} {summary.name}").attributes
        assert attributes["curator.stage.index"] == index
        assert attributes["curator.stage.name"] == summary.name
        assert attributes["curator.stage.batches"] == summary.batches
        assert attributes["curator.stage.tasks_in"] == summary.tasks_in
        assert attributes["curator.stage.tasks_out"] == summary.tasks_out
        assert attributes["curator.stage.tasks_filtered"] == summary.tasks_filtered
        assert attributes["curator.stage.tasks_failed"] == summary.tasks_failed
        assert attributes["curator.stage.items"] == summary.items
        assert attributes["curator.stage.process_time"] == summary.process_s
        assert attributes["curator.stage.cpu_time"] == summary.cpu_s
        assert attributes["curator.stage.idle_time"] == summary.idle_s
        assert attributes["curator.stage.startup_time"] == summary.startup_s
        assert attributes["curator.stage.workers"] == summary.workers == 1


def test_a_batch_says_who_did_what(memory, script):
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
        "curator.batch.tasks_in": 2,
        "curator.batch.tasks_out": 1,
        "curator.batch.tasks_filtered": 1,
        "curator.batch.tasks_failed": 0,
        "curator.batch.items": 5,
        "curator.batch.bytes_in": 10,
        "curator.batch.bytes_out": 20,
        "curator.batch.cpu_time": 0.5,
        "curator.batch.idle_time": 0.25,
        "curator.batch.startup_time": 1.0,
        "curator.batch.wait_time": 1.0,
        "curator.batch.parents": 0,
    }


def test_clocks_of_two_nodes_are_not_compared(memory, script):
    script.play(memory.observer(), script.batch(0, 0, ready_unix_ns=T0, ready_node_id="n2"))
    assert "curator.batch.wait_time" not in memory.one("process_batch read").attributes


def test_custom_metrics_become_attributes(memory):
    run_numbers(memory.observer())
    said = [batch.attributes for batch in memory.named("process_batch Decode")]
    assert [(one["curator.metric.frames"], one["curator.metric.model"]) for one in said] == [(3, "tiny")] * 6


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


def test_payloads_do_not_reach_the_trace(memory, script):
    private = "a payload that nobody may read"
    careless = script.batch(0, 0, metrics={"task": Task(data=private), "bytes": private.encode()})
    script.play(memory.observer(), careless)

    @processing_stage()
    def same(task):
        return task

    Pipeline("p", [same]).run(initial_tasks=[Task(data=private)], observers=[memory.observer()])
    assert memory.named("process_batch same")
    assert private not in "".join(span.to_json() for span in memory.spans)
