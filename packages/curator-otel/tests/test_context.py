# SPDX-License-Identifier: Apache-2.0
"""The parent of a run's span."""

from __future__ import annotations

import pytest
from opentelemetry import trace
from opentelemetry.context import attach, detach

from curator_otel import OTelObserver

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_run_is_a_child_of_the_current_span_rather_than_of_traceparent(memory, script, monkeypatch):
    monkeypatch.setenv("TRACEPARENT", PARENT)
    outer = memory.tracer_provider.get_tracer("application").start_span("outer")
    token = attach(trace.set_span_in_context(outer))
    try:
        script.play(memory.observer(), script.batch())
    finally:
        detach(token)
    assert memory.one("run by_hand").parent == outer.context


@pytest.mark.parametrize("broken", ["", "nonsense", "00-0-0-00", PARENT.replace("00-4", "ff-4")])
def test_invalid_traceparent_is_ignored(memory, script, monkeypatch, broken):
    monkeypatch.setenv("TRACEPARENT", broken)
    script.play(memory.observer(), script.batch())
    assert memory.one("run by_hand").parent is None


def test_parent_that_is_not_sampled_leaves_metrics_without_a_trace(memory, script, monkeypatch):
    monkeypatch.setenv("TRACEPARENT", PARENT[:-1] + "0")
    script.play(memory.observer(), script.batch())
    assert not memory.spans
    assert memory.points()["curator.batch.count"] == {("read", "ok"): 1}


def test_traceparent_is_read_when_a_run_starts_and_the_result_names_its_trace(memory, script, monkeypatch):
    observer, result = memory.observer(), script.result()
    monkeypatch.setenv("TRACEPARENT", PARENT)
    observer.on_run_start(script.info)
    monkeypatch.delenv("TRACEPARENT")
    observer.on_batch(script.batch())
    observer.on_run_end(result, None)
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    assert {f"{span.context.trace_id:032x}" for span in memory.spans} == {trace_id} == {result.trace_id}
    assert memory.one("run by_hand").parent.is_remote
    assert f"trace {trace_id}" in result.summary()


@pytest.mark.parametrize("run_id", ["", "not hex", "0" * 32, "f" * 40])
def test_run_with_an_unusual_id_has_a_trace(to_file, tmp_path, script, run_id):
    script.run_id = run_id
    with to_file(tmp_path / "trace.json") as telemetry:
        observer = OTelObserver(telemetry.tracer_provider)
        observer.on_run_start(script.info._replace(run_id=run_id))
        result = script.result()
        observer.on_run_end(result, None)
    assert len(result.trace_id) == 32


def test_run_without_an_sdk_has_no_trace(script):
    result = script.result()
    observer = OTelObserver()
    observer.on_run_start(script.info)
    observer.on_run_end(result, None)
    assert result.trace_id == ""
