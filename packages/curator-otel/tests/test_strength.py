# SPDX-License-Identifier: Apache-2.0
"""Bounds that hold, runs side by side, and SDKs that are broken, absent or switched off."""

from __future__ import annotations

import logging

import pytest
from opentelemetry import trace

from curator_core import ConfigurationError, Pipeline, Task, processing_stage
from curator_otel import OTelObserver


@processing_stage()
def same(task):
    return task


def run_numbers(observer):
    return Pipeline("numbers", [same]).run(initial_tasks=[Task(data=n) for n in range(6)], observers=[observer])


def test_spans_stay_within_the_limit_and_those_left_out_are_counted(memory, script):
    reports = [script.batch(stage, number) for number in range(300) for stage in (0, 1)]
    script.play(memory.observer(max_spans=100), *reports)
    assert len(memory.spans) <= 100
    root, stages = memory.one("run by_hand"), [memory.one("00 read"), memory.one("01 write")]
    left_out = [stage.attributes["curator.spans.left_out"] for stage in stages]
    assert sum(left_out) == root.attributes["curator.spans.left_out"] == 600 - (len(memory.spans) - 4)
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
        traces.setdefault(span.context.trace_id, set()).add(span.name)
    assert sorted(map(sorted, traces.values())) == [
        ["00 copy", "process_batch copy", "run by_hand", "run started by_hand"],
        ["00 read", "process_batch read", "run by_hand", "run started by_hand"],
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
