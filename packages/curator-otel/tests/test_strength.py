# SPDX-License-Identifier: Apache-2.0
"""Runs side by side, and SDKs that are broken, absent or disabled."""

from __future__ import annotations

import logging

import pytest
from opentelemetry import trace

from curator_core import Pipeline, Task, processing_stage
from curator_otel import OTelObserver


@processing_stage()
def same(task):
    return task


def run_numbers(observer):
    return Pipeline("numbers", [same]).run(initial_tasks=[Task(data=n) for n in range(6)], observers=[observer])


def test_observer_watches_runs_side_by_side(memory, script, make_script):
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
def test_broken_provider_costs_the_trace_and_nothing_else(memory, caplog, working_calls):
    tracer = memory.tracer_provider.get_tracer("x")
    observer = OTelObserver(Refusing(working_calls, tracer), memory.meter_provider)
    with caplog.at_level(logging.WARNING):
        assert len(run_numbers(observer)) == 6
        assert len(run_numbers(observer)) == 6
    assert [record.name for record in caplog.records] == ["curator_otel.observer"]  # said once, by us
    assert ("run numbers" in memory.names()) == (working_calls > 0)


def test_missing_sdk_is_a_warning(script, caplog):
    with caplog.at_level(logging.WARNING):
        script.play(OTelObserver(), script.batch())
    (record,) = caplog.records
    assert "configure()" in record.getMessage()


def test_disabled_sdk_is_no_warning(script, caplog, monkeypatch):
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    with caplog.at_level(logging.WARNING):
        script.play(OTelObserver(), script.batch())
    assert not caplog.records
