# SPDX-License-Identifier: Apache-2.0
"""A driver that is killed: what was exported is on the list, and the snapshot closes the trace."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from curator_core import ConfigurationError, DataError
from curator_otel import OTelObserver, configure, recover, render_tree

SECOND = 1_000_000_000

DRIVER = """
import sys, time
from curator_core import Pipeline, Task, processing_stage
from curator_otel import OTelObserver, configure

@processing_stage()
def slow(task):
    time.sleep(0.02)
    return task

telemetry = configure(json_file=sys.argv[1], set_global=False)
observer = OTelObserver(telemetry.tracer_provider, telemetry.meter_provider, snapshots=sys.argv[2])
tasks = [Task(data=number) for number in range(100_000)]
Pipeline("killed", [slow]).run(initial_tasks=tasks, observers=[observer])
"""


def wait_until(true, process, seconds=60):
    deadline = time.monotonic() + seconds
    while not true():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


def spans_of(path):
    for line in path.read_text().splitlines():
        for resource in json.loads(line)["resourceSpans"]:
            for scope in resource["scopeSpans"]:
                yield from scope["spans"]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """What a driver leaves behind that was killed in the middle: its trace file and its snapshot."""
    directory = tmp_path_factory.mktemp("killed")
    trace, snapshots = directory / "trace.json", directory / "snapshots"
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(trace), str(snapshots)])
    try:

        def is_going():
            return list(snapshots.glob("*.curator-trace.json")) and "window slow" in trace.read_text()

        wait_until(is_going, driver)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    (snapshot,) = snapshots.glob("*.curator-trace.json")
    return trace, snapshot


def test_a_killed_run_is_in_the_file_as_one_that_has_started(killed):
    trace, _ = killed
    assert "run started killed  (it goes on, or its driver was killed)" in render_tree(trace)


def test_recover_closes_the_trace(killed, tmp_path):
    trace, snapshot = killed
    closed = tmp_path / "closed.json"
    with configure(json_file=closed, set_global=False) as telemetry:
        recovered = recover(snapshot, telemetry.tracer_provider)
    before, after = list(spans_of(trace)), list(spans_of(closed))
    assert {span["traceId"] for span in before + after} == {recovered.trace_id} == {recovered.run_id}
    assert recovered.is_same_trace
    by_id = {span["spanId"]: span for span in after + before}
    roots = [span["name"] for span in by_id.values() if not span.get("parentSpanId")]
    assert sorted(roots) == ["run killed", "run started killed"]
    assert all(span["parentSpanId"] in by_id for span in by_id.values() if span.get("parentSpanId"))
    both = tmp_path / "both.json"
    both.write_text(trace.read_text() + closed.read_text())
    tree = render_tree(both)
    assert "run killed" in tree
    assert "DriverKilledError: the driver was killed; this is what it had reported" in tree
    assert "windows, at work:" in tree
    assert recovered.batches > 0
    # Windows that were exported before and written again count once, and add up to the stage.
    values = {
        span["spanId"]: {pair["key"]: next(iter(pair["value"].values())) for pair in span["attributes"]}
        for span in by_id.values()
    }
    in_windows = sum(int(value.get("curator.window.batches", 0)) for value in values.values())
    (in_stage,) = [int(value["curator.stage.batches"]) for value in values.values() if "curator.stage.batches" in value]
    assert in_windows == in_stage == recovered.batches


def test_a_run_that_ends_leaves_no_snapshot(memory, script, tmp_path):
    observer = memory.observer(snapshots=tmp_path / "deep" / "er")
    observer.on_run_start(script.info)
    observer.on_batch(script.batch())
    observer._runs[script.run_id].write_snapshot()
    assert len(list(tmp_path.rglob("*.json"))) == 1
    observer.on_run_end(script.result(), None)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_clock_writes_the_snapshot(memory, script, tmp_path):
    observer = memory.observer(snapshots=tmp_path)
    observer.on_run_start(script.info)
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob("*.json")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    observer.on_run_end(script.result(), None)


def test_the_directory_can_come_from_the_environment(memory, script, tmp_path, monkeypatch):
    monkeypatch.setenv("CURATOR_OTEL_SNAPSHOTS", str(tmp_path))
    observer = memory.observer()
    observer.on_run_start(script.info)
    observer._runs[script.run_id].write_snapshot()
    assert [path.name for path in tmp_path.iterdir()] == [f"{script.run_id}.curator-trace.json"]
    observer.on_run_end(script.result(), None)


def test_a_run_below_a_parent_is_recovered_below_it(script, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACEPARENT", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    with configure(json_file=first, set_global=False) as telemetry:
        observer = OTelObserver(telemetry.tracer_provider, snapshots=tmp_path / "s")
        observer.on_run_start(script.info)
        script.report(observer, script.worker(0), script.batch(0, 0, took=3))
        observer._runs[script.run_id].write_snapshot()
    monkeypatch.delenv("TRACEPARENT")
    (snapshot,) = (tmp_path / "s").iterdir()
    with configure(json_file=second, set_global=False) as telemetry:
        recovered = recover(snapshot, telemetry.tracer_provider)
    assert recovered == (script.run_id, "4bf92f3577b34da6a3ce929d0e0e4736", 1, True)
    names = {span["name"]: span for span in spans_of(second)}
    assert names["run by_hand"]["parentSpanId"] == "00f067aa0ba902b7"
    assert int(names["00 read"]["endTimeUnixNano"]) == script.info.start_unix_ns + 4 * SECOND
    assert "window read" not in names  # its first was open: the stage says it all
    observer.on_run_end(script.result(), None)


def test_with_another_sdk_the_trace_is_another_and_that_is_said(memory, script, tmp_path, caplog):
    observer = memory.observer(snapshots=tmp_path)
    observer.on_run_start(script.info)
    observer.on_batch(script.batch())
    observer._runs[script.run_id].write_snapshot()
    (snapshot,) = tmp_path.iterdir()
    recovered = recover(snapshot, memory.tracer_provider)
    assert not recovered.is_same_trace
    assert "a trace of their own" in caplog.text
    assert memory.one("run by_hand").attributes["curator.run.recovered"] is True
    observer.on_run_end(script.result(), None)


def test_snapshots_that_cannot_be_written_cost_nothing_else(memory, script, tmp_path, caplog):
    directory = tmp_path / "snapshots"
    observer = memory.observer(snapshots=directory)
    observer.on_run_start(script.info)
    directory.write_text("in the way")
    observer._guarded(observer._runs[script.run_id].write_snapshot)
    observer.on_run_end(script.result(), None)
    assert memory.one("run by_hand")
    assert "runs are unaffected" in caplog.text


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"version": 2}', '{"version": 1}', "\x00"])
def test_a_file_that_is_no_snapshot_is_refused(tmp_path, text):
    path = tmp_path / "x.curator-trace.json"
    path.write_text(text)
    with pytest.raises(DataError, match="no snapshot of a run"):
        recover(path)


def test_a_snapshot_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        recover(tmp_path / "none.json")


def test_a_directory_that_is_none_is_refused(tmp_path):
    file = tmp_path / "file"
    file.touch()
    for given in (file, 7, ""):
        if given == "":
            assert OTelObserver(snapshots=given)  # nothing was asked for
            continue
        with pytest.raises(ConfigurationError, match="snapshots"):
            OTelObserver(snapshots=given)


def test_snapshots_hold_no_payloads(memory, script, boom, tmp_path):
    secret = "a payload that nobody may read"
    observer = memory.observer(snapshots=tmp_path)
    observer.on_run_start(script.info)
    error = boom._replace(message=secret, traceback=secret)
    observer.on_batch(script.batch(0, 0, error=error, kinds=("failed",), metrics={"text": secret}))
    observer._runs[script.run_id].write_snapshot()
    (path,) = tmp_path.iterdir()
    assert secret not in path.read_text()
    assert os.fspath(Path(path)).endswith(".curator-trace.json")
    observer.on_run_end(script.result(), None)
