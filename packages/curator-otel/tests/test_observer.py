# SPDX-License-Identifier: Apache-2.0
"""The trace of a run: which spans there are, whose children, when, and what they say."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.context import attach, detach
from opentelemetry.trace import SpanKind, StatusCode

from curator_core import ConfigurationError, Pipeline, ProcessingStage, StageError, Task, processing_stage
from curator_otel import OTelObserver

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


def context_of(span):
    return span.get_span_context()


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
        assert stage.parent == context_of(root)
        batches = memory.named(f"process_batch {name[3:]}")
        assert batches
        assert all(batch.parent == context_of(stage) for batch in batches)
    setups = memory.named("worker setup")
    assert len({setup.parent.span_id for setup in setups}) == 3
    assert {context_of(span).trace_id for span in memory.spans} == {context_of(root).trace_id}


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
    by_id = {context_of(span).span_id: span for span in memory.spans}
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
    sources = {s.attributes["curator.batch.id"]: context_of(s) for s in memory.named("process_batch odd_only")}
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
    kept = {context_of(span).span_id for span in memory.spans}
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
    for batch in memory.named("process_batch Decode"):
        assert batch.attributes["curator.metric.frames"] == 3
        assert batch.attributes["curator.metric.model"] == "tiny"


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


def test_payloads_do_not_reach_the_trace(memory):
    secret = "a payload that nobody may read"

    class Careless(ProcessingStage[Any, Any]):
        def process(self, task):
            self.metrics.set("task", task)  # the whole task, by mistake
            return task

    Pipeline("careless", [Careless()]).run(initial_tasks=[Task(data=secret)], observers=[memory.observer()])
    assert secret not in "".join(span.to_json() for span in memory.spans)


# --- failures -----------------------------------------------------------------------------------------------


class Picky(ProcessingStage[Any, Any]):
    max_attempts = 2

    def process(self, task):
        if task.data == "bad":
            raise ValueError("cannot read this")
        return task


def test_a_failed_batch_has_error_type_status_and_an_exception_event(memory):
    tasks = [Task(data="good"), Task(data="bad")]
    Pipeline("picky", [Picky()]).run(initial_tasks=tasks, observers=[memory.observer()], on_error="skip")
    good, retried, failed = memory.named("process_batch Picky")
    assert good.status.status_code is StatusCode.UNSET
    assert not good.events
    for span, outcome in ((retried, "retried"), (failed, "failed")):
        assert span.attributes["curator.outcome"] == outcome
        assert span.attributes["error.type"] == "ValueError"
        assert span.status.status_code is StatusCode.ERROR
        assert span.status.description == "cannot read this"
        (event,) = span.events
        assert event.name == "exception"
        assert event.timestamp == span.end_time
        assert dict(event.attributes) == {
            "exception.type": "ValueError",
            "exception.message": "cannot read this",
        }
    assert (retried.attributes["curator.batch.attempt"], failed.attributes["curator.batch.attempt"]) == (1, 2)


def test_a_stage_with_failed_tasks_is_marked_and_a_run_that_went_on_is_not(memory):
    tasks = [Task(data="good"), Task(data="bad")]
    Pipeline("picky", [Picky()]).run(initial_tasks=tasks, observers=[memory.observer()], on_error="skip")
    stage = memory.one("00 Picky")
    assert stage.status.status_code is StatusCode.ERROR
    assert stage.status.description == "1 of 2 tasks failed"
    assert stage.attributes["error.type"] == "ValueError"
    assert stage.attributes["curator.stage.attempts_retried"] == 1
    root = memory.one("run picky")
    assert root.status.status_code is StatusCode.UNSET
    assert root.attributes["curator.run.tasks_failed"] == 1


def test_a_retry_that_goes_well_leaves_its_stage_unmarked(memory, script, boom):
    script.play(
        memory.observer(),
        script.batch(0, 0, kinds=("retried",), error=boom),
        script.batch(0, 1, attempt=2, batch_id="0/0"),
    )
    assert memory.one("00 read").status.status_code is StatusCode.UNSET


def test_a_run_that_ends_early_is_marked_and_names_the_stage(memory):
    with pytest.raises(StageError):
        Pipeline("picky", [Picky()]).run(initial_tasks=[Task(data="bad")], observers=[memory.observer()])
    root = memory.one("run picky")
    assert root.status.status_code is StatusCode.ERROR
    assert root.attributes["error.type"] == "curator_core.errors.StageError"
    assert root.attributes["curator.error.stage"] == "Picky"
    assert root.attributes["curator.run.complete"] is False
    assert "cannot read this" in root.events[0].attributes["exception.message"]
    assert memory.one("00 Picky")  # ended, though the run was cut short


def test_ctrl_c_ends_the_spans(memory):
    @processing_stage()
    def interrupted(task):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Pipeline("cut", [interrupted]).run(initial_tasks=[Task(data=1)], observers=[memory.observer()])
    assert memory.one("run cut").attributes["error.type"] == "KeyboardInterrupt"
    assert memory.one("00 interrupted")


def test_a_set_up_that_fails_has_a_span(memory):
    class Broken(ProcessingStage[Any, Any]):
        def setup(self, worker_metadata):
            raise OSError("no weights")

        def process(self, task):
            return task

    with pytest.raises(StageError):
        Pipeline("p", [Broken()]).run(initial_tasks=[Task(data=1)], observers=[memory.observer()])
    span = memory.one("worker setup")
    assert span.status.description == "no weights"
    assert span.attributes["error.type"] == memory.one("00 Broken").attributes["error.type"] == "OSError"
    assert span.attributes["curator.outcome"] == "failed"
    assert memory.one("00 Broken").status.status_code is StatusCode.ERROR


def test_an_error_that_nobody_described_is_marked_all_the_same(memory, script):
    script.play(memory.observer(), script.batch(kinds=("failed",)), script.worker(1, event="setup_failed"))
    assert memory.one("00 read").attributes["error.type"] == "_OTHER"
    assert memory.one("01 write").attributes["error.type"] == "_OTHER"


def test_a_teardown_that_fails_has_a_span(memory, script, boom):
    script.play(memory.observer(), script.batch(), script.worker(event="ended", at=5, error=boom))
    span = memory.one("worker teardown")
    assert span.attributes["error.type"] == "ValueError"
    assert span.end_time <= memory.one("00 read").end_time


def test_lost_tasks_mark_the_run(memory, script):
    script.play(memory.observer(), script.batch(), lost=["1 of 2 tasks between 'read' and 'write'"])
    root = memory.one("run by_hand")
    assert root.status.status_code is StatusCode.ERROR
    assert root.attributes["curator.run.unaccounted"] == ("1 of 2 tasks between 'read' and 'write'",)


def test_messages_are_cut_at_1_kb(memory, script, boom):
    script.play(memory.observer(), script.batch(error=boom._replace(message="ä" * 5000), kinds=("failed",)))
    message = memory.one("process_batch read").events[0].attributes["exception.message"]
    assert message == "ä" * 512


def test_messages_can_be_left_out(memory, script, boom):
    secret = boom._replace(message="token=abc")
    observer = memory.observer(exception_messages=False)
    script.play(observer, script.batch(error=secret, kinds=("failed",)), error=RuntimeError("token=abc"))
    assert "token=abc" not in "".join(span.to_json() for span in memory.spans)
    assert memory.one("process_batch read").attributes["error.type"] == "ValueError"
    assert memory.one("process_batch read").status.description == "ValueError"


def test_text_that_no_exporter_could_encode_is_mended(memory, script, boom):
    script.play(memory.observer(), script.batch(error=boom._replace(message="\ud800!"), kinds=("failed",)))
    assert memory.one("process_batch read").events[0].attributes["exception.message"] == "?!"


# --- whose child --------------------------------------------------------------------------------------------

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_the_run_is_a_child_of_the_current_span(memory, script, monkeypatch):
    monkeypatch.setenv("TRACEPARENT", PARENT)  # what is nearer wins
    outer = memory.tracer_provider.get_tracer("application").start_span("outer")
    token = attach(trace.set_span_in_context(outer))
    try:
        script.play(memory.observer(), script.batch())
    finally:
        detach(token)
    assert memory.one("run by_hand").parent == context_of(outer)


def test_the_run_is_a_child_of_traceparent(memory, script, monkeypatch):
    monkeypatch.setenv("TRACEPARENT", PARENT)
    monkeypatch.setenv("TRACESTATE", "vendor=1")
    script.play(memory.observer(), script.batch())
    root = memory.one("run by_hand")
    assert f"{root.parent.trace_id:032x}" == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert f"{root.parent.span_id:016x}" == "00f067aa0ba902b7"
    assert root.parent.is_remote
    assert context_of(root).trace_state.get("vendor") == "1"


def test_traceparent_is_read_when_a_run_starts(memory, script, monkeypatch):
    observer = memory.observer()
    monkeypatch.setenv("TRACEPARENT", PARENT)
    observer.on_run_start(script.info)
    monkeypatch.delenv("TRACEPARENT")
    observer.on_batch(script.batch())
    observer.on_run_end(script.result(), None)
    assert {f"{context_of(span).trace_id:032x}" for span in memory.spans} == {"4bf92f3577b34da6a3ce929d0e0e4736"}


@pytest.mark.parametrize("broken", ["", "nonsense", "00-0-0-00", PARENT.replace("00-4", "ff-4")])
def test_a_broken_traceparent_is_passed_over(memory, script, monkeypatch, broken):
    monkeypatch.setenv("TRACEPARENT", broken)
    script.play(memory.observer(), script.batch())
    assert memory.one("run by_hand").parent is None


def test_a_parent_that_is_not_sampled_switches_the_trace_off_and_leaves_the_metrics(memory, script, monkeypatch):
    monkeypatch.setenv("TRACEPARENT", PARENT[:-1] + "0")
    script.play(memory.observer(), script.batch())
    assert not memory.spans
    assert memory.points()["curator.batch.count"] == {("read", "ok"): 1}


# --- bounds and strength ------------------------------------------------------------------------------------


def test_spans_stay_within_the_limit_and_those_left_out_are_counted(memory, script):
    reports = [script.batch(stage, number) for number in range(300) for stage in (0, 1)]
    script.play(memory.observer(max_spans=100), *reports)
    assert len(memory.spans) <= 100
    root, stages = memory.one("run by_hand"), [memory.one("00 read"), memory.one("01 write")]
    left_out = [stage.attributes["curator.spans.left_out"] for stage in stages]
    assert sum(left_out) == root.attributes["curator.spans.left_out"] == 600 - (len(memory.spans) - 3)
    assert min(left_out) > 0
    assert [stage.attributes["curator.stage.batches"] for stage in stages] == [300, 300]  # all of them count


def test_errors_and_first_batches_find_room_in_a_full_trace(memory, script, boom):
    crowd = [script.batch(0, number) for number in range(1, 500)]
    late = [
        script.batch(0, 0, worker_id="late"),
        script.batch(0, 900, kinds=("failed",), error=boom),
        script.worker(1),
    ]
    script.play(memory.observer(max_spans=60), *crowd, *late)
    kept = memory.named("process_batch read")
    assert [span for span in kept if span.attributes["curator.worker.id"] == "late"]
    assert [span for span in kept if span.attributes.get("error.type")]
    assert memory.named("worker setup")


@pytest.mark.parametrize("max_spans", [0, -1, 1.5, "many", True, None])
def test_a_limit_that_makes_no_sense_is_refused(max_spans):
    with pytest.raises(ConfigurationError, match="max_spans"):
        OTelObserver(max_spans=max_spans)


def test_one_observer_can_watch_runs_side_by_side(memory, script, make_script):
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
        traces.setdefault(context_of(span).trace_id, set()).add(span.name)
    assert sorted(map(sorted, traces.values())) == [
        ["00 copy", "process_batch copy", "run by_hand"],
        ["00 read", "process_batch read", "run by_hand"],
    ]


def test_an_observer_can_be_used_again(memory):
    observer = memory.observer()
    run_numbers(observer)
    run_numbers(observer)
    assert len(memory.named("run numbers")) == 2
    assert memory.points()["curator.run.count"] == {("ok",): 2}


def test_reports_of_a_run_that_is_not_known_are_passed_over(memory, script):
    observer = memory.observer()
    observer.on_batch(script.batch())
    observer.on_worker(script.worker())
    observer.on_run_end(script.result(), None)
    assert not memory.spans


class Refusing(trace.TracerProvider):
    """Somebody's provider, broken."""

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
def test_a_broken_provider_costs_the_trace_and_nothing_else(memory, caplog, working_calls):
    tracer = memory.tracer_provider.get_tracer("x")
    observer = OTelObserver(Refusing(working_calls, tracer), memory.meter_provider)
    with caplog.at_level(logging.WARNING):
        assert len(run_numbers(observer)) == 6
        assert len(run_numbers(observer)) == 6
    assert [record.name for record in caplog.records] == ["curator_otel.observer"]  # said once, by us
    assert ("run numbers" in memory.names()) == (working_calls > 0)


def test_without_an_sdk_nothing_happens_and_that_is_said(script, caplog):
    with caplog.at_level(logging.WARNING):
        script.play(OTelObserver(), script.batch())
    (record,) = caplog.records
    assert "configure()" in record.getMessage()


def test_with_the_sdk_disabled_nothing_is_said(script, caplog, monkeypatch):
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    with caplog.at_level(logging.WARNING):
        script.play(OTelObserver(), script.batch())
    assert not caplog.records
