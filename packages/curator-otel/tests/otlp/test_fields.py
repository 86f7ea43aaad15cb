# SPDX-License-Identifier: Apache-2.0
"""The spans of a run at a receiver: every relevant field of the protobuf."""

from __future__ import annotations

import os
import time
from collections import Counter
from itertools import pairwise

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, SpanFlags, Status
from opentelemetry.sdk.version import __version__ as sdk_version
from tests.waiting import DEADLINE_S

from curator_core import Pipeline, StageError, Task, processing_stage
from curator_otel import OTelObserver, __version__, configure
from curator_otel.conventions import ATTRIBUTES

STAGES = ["00 split", "01 sieve", "02 pair"]
# Two numbers are split, eight are sieved, four are left for batches of two.
BATCHES = {"process_batch split": 2, "process_batch sieve": 8, "process_batch pair": 2}
VALUES = {"string": "string_value", "int": "int_value", "double": "double_value"}


# --- the tree -----------------------------------------------------------------------------------------------


def test_every_span_arrives_once_and_after_its_children(received):
    sink, _ = received
    names = Counter(span.name for span in sink.spans if not span.name.startswith("run started "))
    assert names == {"run numbers": 1, **dict.fromkeys(STAGES, 1), **BATCHES, "worker setup": 3}
    assert [span.name for span in sink.spans[-4:]] == [*STAGES, "run numbers"]


def test_ids_are_unique_and_the_trace_has_the_id_of_the_run(received):
    sink, result = received
    ids = [span.span_id for span in sink.spans]
    assert {len(span_id) for span_id in ids} == {8}
    assert bytes(8) not in ids
    assert len(set(ids)) == len(ids)
    (trace_id,) = {span.trace_id for span in sink.spans}
    assert len(trace_id) == 16
    assert trace_id.hex() == result.run_id == result.trace_id
    assert f"run {result.run_id}" in result.summary()
    assert ", trace" not in result.summary()


def test_batches_and_setups_are_below_their_stage_and_stages_below_the_run(received):
    sink, _ = received
    spans = {span.span_id: span for span in sink.spans}
    run = sink.one("run numbers")
    assert run.parent_span_id == b""
    for span in spans.values():
        assert span.parent_span_id in spans or not span.parent_span_id, span.name
    for stage in STAGES:
        assert sink.one(stage).parent_span_id == run.span_id
    for batch, number in BATCHES.items():
        stage = sink.one(next(name for name in STAGES if name.endswith(batch.rpartition(" ")[2])))
        assert [spans[span.parent_span_id].name for span in sink.named(batch)] == [stage.name] * number
    assert {spans[span.parent_span_id].name for span in sink.named("worker setup")} == set(STAGES)


def test_links_refer_to_the_batches_that_produced_the_inputs(received):
    sink, _ = received
    spans = {span.span_id: span for span in sink.spans}
    made_by = {"process_batch split": set(), "process_batch sieve": {"process_batch split"}}
    made_by["process_batch pair"] = {"process_batch sieve"}
    linked = Counter()
    for name, sources in made_by.items():
        for batch in sink.named(name):
            assert len({link.span_id for link in batch.links}) == len(batch.links)
            for link in batch.links:
                source = spans[link.span_id]
                assert link.trace_id == source.trace_id == batch.trace_id
                assert source.name in sources
                assert source.end_time_unix_nano <= batch.end_time_unix_nano
                linked[name] += 1
    assert linked == {"process_batch sieve": 8, "process_batch pair": 4}  # one per batch, and two per batch


def test_times_are_nanoseconds_and_children_are_within_their_parents(received):
    sink, _ = received
    run = sink.one("run numbers")
    spans = {span.span_id: span for span in sink.spans}
    assert time.time_ns() - 24 * 3600 * 10**9 < run.start_time_unix_nano < run.end_time_unix_nano < time.time_ns()
    for span in spans.values():
        assert isinstance(span.start_time_unix_nano, int)
        assert run.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano, span.name
        assert span.end_time_unix_nano <= run.end_time_unix_nano, span.name
        stage = spans.get(span.parent_span_id)
        if stage is not None:
            assert stage.start_time_unix_nano <= span.start_time_unix_nano, span.name
            assert span.end_time_unix_nano <= stage.end_time_unix_nano, span.name
    for name in BATCHES:  # one worker, one batch after the other
        batches = sorted(sink.named(name), key=lambda span: span.start_time_unix_nano)
        assert all(one.end_time_unix_nano <= next_.start_time_unix_nano for one, next_ in pairwise(batches))


def test_run_is_a_server_span_and_all_others_are_internal(received):
    sink, _ = received
    for span in sink.spans:
        is_run = span.name == "run numbers"
        assert span.kind == (Span.SPAN_KIND_SERVER if is_run else Span.SPAN_KIND_INTERNAL), span.name
        assert span.flags & SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
        assert not span.flags & SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK
        assert span.trace_state == ""


def test_no_attribute_event_or_link_is_dropped(received):
    sink, _ = received
    for span in sink.spans:
        counts = (span.dropped_attributes_count, span.dropped_events_count, span.dropped_links_count)
        assert counts == (0, 0, 0)


# --- fields of spans ----------------------------------------------------------------------------------------


def test_attributes_have_the_types_of_the_table(received):
    sink, _ = received
    seen = Counter()
    for span in sink.spans:
        for pair in span.attributes:
            described = ATTRIBUTES.get(pair.key)
            if described is not None:
                assert pair.value.WhichOneof("value") == VALUES[described.type], pair.key
                seen[described.type] += 1
    assert all(seen[kind] for kind in VALUES)


def test_metrics_of_a_stage_keep_their_types(received):
    sink, _ = received
    for batch in sink.named("process_batch sieve"):
        recorded = {
            pair.key: {field.name: value for field, value in pair.value.ListFields()}
            for pair in batch.attributes
            if pair.key.startswith("curator.metric.")
        }
        assert recorded == {
            "curator.metric.whole": {"int_value": 7},
            "curator.metric.share": {"double_value": 0.5},
            "curator.metric.flag": {"bool_value": True},
            "curator.metric.model": {"string_value": "tiny"},
        }


def test_run_span_agrees_with_the_result(received):
    sink, result = received
    slowest = max(result.stages, key=lambda stage: stage.process_s)
    attributes = sink.attributes_of(sink.one("run numbers"))
    assert (
        attributes.items()
        >= {
            "curator.run.id": result.run_id,
            "curator.pipeline.name": "numbers",
            "curator.executor.name": "LocalExecutor",
            "curator.stage.count": 3,
            "curator.task.in": 2,
            "curator.run.state": "complete",
            "curator.task.out": len(result),
            "curator.task.filtered": 2,
            "curator.task.failed": 2,
            "curator.batch.ended": sum(stage.batches for stage in result.stages),
            "curator.span.limit": 1500,
            "curator.span.left_out": 0,
            "curator.slowest.stage": slowest.name,
            "curator.process.time": pytest.approx(sum(stage.process_s for stage in result.stages)),
            "curator.bottleneck.kind": result.verdict.kind,
            "curator.bottleneck.reason": result.verdict.reason,
        }.items()
    )
    assert attributes.get("curator.bottleneck.stage", "") == result.verdict.stage


def test_stage_and_batch_spans_agree_with_the_result(received):
    sink, result = received
    for index, (name, stage) in enumerate(zip(STAGES, result.stages, strict=True)):
        attributes = sink.attributes_of(sink.one(name))
        batches = [sink.attributes_of(span) for span in sink.named(f"process_batch {stage.name}")]
        counts = {
            "curator.task.in": stage.tasks_passed + stage.tasks_filtered + stage.tasks_failed,
            "curator.task.out": stage.tasks_out,
            "curator.task.filtered": stage.tasks_filtered,
            "curator.task.failed": stage.tasks_failed,
            "curator.task.merged": stage.tasks_merged,
            "curator.item.count": stage.items,
        }
        expected = counts | {
            "curator.stage.index": index,
            "curator.stage.name": stage.name,
            "curator.batch.ended": stage.batches,
            "curator.process.time": stage.process_s,
            "curator.cpu.time": stage.cpu_s,
            "curator.idle.time": stage.idle_s,
            "curator.setup.time": stage.startup_s,
            "curator.worker.count": stage.workers,
        }
        assert attributes.items() >= expected.items()
        assert len(batches) == stage.batches
        for name_of_count, counted in counts.items():
            assert sum(batch[name_of_count] for batch in batches) == counted
        assert {batch["process.pid"] for batch in batches} == {os.getpid()}


def test_skipped_failures_mark_batches_and_stage_but_not_the_run(received):
    sink, _ = received
    failed = [span for span in sink.named("process_batch sieve") if span.status.code == Status.STATUS_CODE_ERROR]
    assert len(failed) == 2
    for batch in failed:
        assert batch.status.message == "three is too many"
        assert sink.attributes_of(batch)["error.type"] == "ValueError"
        (event,) = batch.events
        assert event.name == "exception"
        assert event.time_unix_nano == batch.end_time_unix_nano
        assert event.dropped_attributes_count == 0
        assert sink.attributes_of(event) == {
            "exception.type": "ValueError",
            "exception.message": "three is too many",
        }
    stage = sink.one("01 sieve")
    assert (stage.status.code, stage.status.message) == (Status.STATUS_CODE_ERROR, "2 of 8 tasks failed")
    assert sink.attributes_of(stage)["error.type"] == "ValueError"
    fine = [sink.one("run numbers"), sink.one("00 split"), sink.one("02 pair"), *sink.named("worker setup")]
    for span in fine:
        assert (span.status.code, span.status.message) == (Status.STATUS_CODE_UNSET, "")
        assert not span.events
        assert "error.type" not in sink.attributes_of(span)


def test_run_that_ends_early_is_marked_with_its_error_and_stage(sink):
    @processing_stage(name="brittle")
    def brittle(task):
        raise ValueError("gone")

    with configure(endpoint=sink.url, set_global=False, shutdown_timeout_s=DEADLINE_S) as telemetry:
        observer = OTelObserver(telemetry.tracer_provider, telemetry.meter_provider)
        with pytest.raises(StageError) as caught:
            Pipeline("numbers", [brittle]).run(initial_tasks=[Task(data=0)], observers=[observer])
    run, stage, batch = (sink.one(name) for name in ("run numbers", "00 brittle", "process_batch brittle"))
    assert {span.status.code for span in (run, stage, batch)} == {Status.STATUS_CODE_ERROR}
    assert batch.status.message == "gone"
    assert stage.status.message == "1 of 1 tasks failed"
    assert run.status.message == str(caught.value)[: len(run.status.message)]
    assert "gone" in run.status.message
    (event,) = run.events
    assert sink.attributes_of(event)["exception.type"] == "curator_core.errors.StageError"
    assert event.time_unix_nano <= run.end_time_unix_nano
    attributes = sink.attributes_of(run)
    assert attributes["curator.error.stage"] == "brittle"
    assert attributes["error.type"] == "curator_core.errors.StageError"
    assert attributes["curator.run.state"] == "incomplete"


# --- resources ----------------------------------------------------------------------------------------------


def resources_of(sink):
    """Return the resources of spans and of metrics, because both must name the same service."""
    spans = [resource.resource for request in sink.traces for resource in request.pbreq.resource_spans]
    metrics = [resource.resource for request in sink.measured for resource in request.pbreq.resource_metrics]
    assert spans
    assert metrics
    return [*spans, *metrics]


@pytest.mark.parametrize(
    ("environ", "given", "expected"),
    [
        ({}, {}, {"service.name": "curator"}),
        (
            {"OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=a%20test"},
            {"service_name": "mine"},
            {"service.name": "mine", "deployment.environment.name": "a test"},
        ),
        (
            {"OTEL_RESOURCE_ATTRIBUTES": "service.name=clips,team=video"},
            {"service_name": "mine"},
            {"service.name": "clips", "team": "video"},
        ),
        (
            {"OTEL_SERVICE_NAME": "captions", "OTEL_RESOURCE_ATTRIBUTES": "service.name=clips,team=video"},
            {"service_name": "mine"},
            {"service.name": "captions", "team": "video"},
        ),
    ],
)
def test_resource_has_the_service_name_of_the_environment_or_else_of_the_program(
    sink, send, monkeypatch, environ, given, expected
):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with configure(endpoint=sink.url, set_global=False, shutdown_timeout_s=DEADLINE_S, **given) as telemetry:
        send(telemetry)
    sdk = {"telemetry.sdk.name": "opentelemetry", "telemetry.sdk.language": "python"}
    for resource in resources_of(sink):
        attributes = sink.attributes_of(resource)
        assert expected.items() <= attributes.items()
        assert sdk.items() <= attributes.items()
        assert attributes["telemetry.sdk.version"] == sdk_version
        assert resource.dropped_attributes_count == 0


def test_scope_is_the_package_and_its_version(received):
    sink, _ = received
    resources = [resource for request in sink.traces for resource in request.pbreq.resource_spans]
    scopes = [group.scope for resource in resources for group in resource.scope_spans]
    measured = [resource for request in sink.measured for resource in request.pbreq.resource_metrics]
    scopes += [group.scope for resource in measured for group in resource.scope_metrics]
    assert {(scope.name, scope.version) for scope in scopes} == {("curator_otel", __version__)}


def test_joined_trace_keeps_its_id_state_and_parent(sink, send, monkeypatch):
    monkeypatch.setenv("TRACEPARENT", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
    monkeypatch.setenv("TRACESTATE", "vendor=1")
    with configure(endpoint=sink.url, set_global=False, shutdown_timeout_s=DEADLINE_S) as telemetry:
        send(telemetry)
    assert {span.trace_id.hex() for span in sink.spans} == {"4bf92f3577b34da6a3ce929d0e0e4736"}
    assert {span.trace_state for span in sink.spans} == {"vendor=1"}
    run = sink.one("run numbers")
    assert run.parent_span_id.hex() == "00f067aa0ba902b7"
    assert run.flags & SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK
    ids = {span.span_id for span in sink.spans} | {run.parent_span_id}
    assert all(span.parent_span_id in ids for span in sink.spans)
