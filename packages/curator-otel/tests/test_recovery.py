# SPDX-License-Identifier: Apache-2.0
"""A driver that is killed: what was exported is on the list, and the snapshot closes the trace."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from curator_core import ConfigurationError, DataError
from curator_otel import OTelObserver, configure, recover, render_tree, watch
from curator_otel.snapshot import Snapshots

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


def as_left_behind(snapshot):
    """The file as another process would have left it that is gone."""
    told = json.loads(snapshot.read_text())
    told["process"]["pid"] = 2**22 + 1  # more than Linux gives
    snapshot.write_text(json.dumps(told))
    return snapshot


@pytest.fixture(scope="module")
def killed(tmp_path_factory, wait_until):
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


def test_recover_closes_the_trace(killed, spans_of, tmp_path):
    trace, snapshot = killed
    closed = tmp_path / "closed.json"
    with configure(json_file=closed, set_global=False) as telemetry:
        recovered = recover(snapshot, telemetry.tracer_provider)
    before, after = spans_of(trace), spans_of(closed)
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


@pytest.mark.real_clock
def test_the_clock_writes_the_snapshot(memory, script, tmp_path, wait_until):
    observer = memory.observer(snapshots=tmp_path)
    observer.on_run_start(script.info)
    wait_until(lambda: list(tmp_path.glob("*.json")))
    observer.on_run_end(script.result(), None)


def test_the_directory_can_come_from_the_environment(memory, script, tmp_path, monkeypatch):
    monkeypatch.setenv("CURATOR_OTEL_SNAPSHOTS", str(tmp_path))
    observer = memory.observer()
    observer.on_run_start(script.info)
    observer._runs[script.run_id].write_snapshot()
    (path,) = tmp_path.iterdir()
    assert re.fullmatch(rf"{script.run_id}-[0-9a-f]{{16}}\.curator-trace\.json", path.name)
    observer.on_run_end(script.result(), None)


def test_a_run_below_a_parent_is_recovered_below_it(script, spans_of, tmp_path, monkeypatch):
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
        recovered = recover(as_left_behind(snapshot), telemetry.tracer_provider)
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
    recovered = recover(as_left_behind(snapshot), memory.tracer_provider)
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


@pytest.mark.parametrize(
    "spoil",
    [
        lambda told: told["totals"].pop(),
        lambda told: told["totals"][0].pop("passed"),
        lambda told: told["state"]["stages"].pop(),
        lambda told: told["state"].update(root=[2**130, 1]),
        lambda told: told["state"]["stages"][0].update(open=[1, 0, 0, 0, 0, 0, {"passed": "many"}]),
        lambda told: told["state"]["stages"][0].update(closed=[[1, 2]]),
        lambda told: told["state"].update(details=[{"stage": 9, "window": 0, "ids": [1, 1], "times": [0, 0]}]),
    ],
)
def test_a_snapshot_that_is_spoilt_is_refused_and_nothing_written(memory, script, tmp_path, spoil):
    observer = memory.observer(snapshots=tmp_path)
    observer.on_run_start(script.info)
    observer.on_batch(script.batch())
    observer._runs[script.run_id].write_snapshot()
    (path,) = tmp_path.iterdir()
    told = json.loads(as_left_behind(path).read_text())
    spoil(told)
    path.write_text(json.dumps(told))
    before = len(memory.spans)
    with pytest.raises(DataError, match="no snapshot of a run"):
        recover(path, memory.tracer_provider)
    assert len(memory.spans) == before
    observer.on_run_end(script.result(), None)


def test_a_snapshot_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        recover(tmp_path / "none.json")


def test_a_directory_that_is_none_is_refused(tmp_path):
    file = tmp_path / "file"
    file.touch()
    for given in (file, 7):
        with pytest.raises(ConfigurationError, match="snapshots"):
            OTelObserver(snapshots=given)


def test_a_run_that_goes_on_is_not_recovered(memory, script, tmp_path):
    observer = memory.observer(snapshots=tmp_path)
    observer.on_run_start(script.info)
    observer._runs[script.run_id].write_snapshot()
    (snapshot,) = tmp_path.iterdir()
    with pytest.raises(DataError, match="this run goes on"):
        recover(snapshot, memory.tracer_provider)
    observer.on_run_end(script.result(), None)


def test_a_window_is_written_once_however_often_it_is_recovered(script, spans_of, tmp_path):
    """One that was open when the file was written, closed and exported before the driver was killed."""
    path = tmp_path / "trace.json"
    with configure(json_file=path, set_global=False) as telemetry:
        observer = OTelObserver(telemetry.tracer_provider, snapshots=tmp_path / "s")
        observer.on_run_start(script.info)
        script.report(observer, script.batch(0, 0))
        script.turn_clock(observer, 1)
        script.report(observer, script.batch(0, 1))
        observer._runs[script.run_id].write_snapshot()
        (snapshot,) = (tmp_path / "s").iterdir()
        kept = snapshot.read_text()
        script.turn_clock(observer, 2)
        snapshot.write_text(kept)
        recover(as_left_behind(snapshot), telemetry.tracer_provider)
        recover(snapshot, telemetry.tracer_provider)
    by_id = {span["spanId"]: span["name"] for span in spans_of(path)}
    assert Counter(by_id.values()) == {
        "window read": 2,
        "00 read": 1,
        "run by_hand": 1,
        "run started by_hand": 1,
        "process_batch read": 2,
    }
    observer.on_run_end(script.result(), None)


def test_traces_of_details_are_closed_too(script, spans_of, tmp_path):
    path = tmp_path / "trace.json"
    with configure(json_file=path, set_global=False) as telemetry:
        observer = OTelObserver(telemetry.tracer_provider, detail="full", snapshots=tmp_path / "s")
        observer.on_run_start(script.info)
        script.report(observer, script.batch(0, 0, took=2), script.batch(0, 1, at=5, took=3))
        observer._runs[script.run_id].write_snapshot()
        (snapshot,) = (tmp_path / "s").iterdir()
        recover(as_left_behind(snapshot), telemetry.tracer_provider)
    spans = {span["spanId"]: span for span in spans_of(path)}
    (root,) = [span for span in spans.values() if span["name"] == "detail read"]
    assert not root.get("parentSpanId")
    assert (int(root["startTimeUnixNano"]) - script.info.start_unix_ns, int(root["endTimeUnixNano"])) == (
        SECOND,
        script.info.start_unix_ns + 8 * SECOND,
    )
    assert sum(span.get("parentSpanId") == root["spanId"] for span in spans.values()) == 2
    assert all(span["parentSpanId"] in spans for span in spans.values() if span.get("parentSpanId"))
    observer.on_run_end(script.result(), None)


def test_observers_of_one_run_keep_their_own(memory, script, tmp_path, wait_until):
    observers = [memory.observer(snapshots=tmp_path) for _ in range(2)]
    for observer in observers:
        observer.on_run_start(script.info)
        observer._runs[script.run_id].write_snapshot()
    assert len(list(tmp_path.iterdir())) == 2
    observers[0].on_run_end(script.result(), None)
    wait_until(lambda: len(list(tmp_path.iterdir())) == 1)
    observers[1].on_run_end(script.result(), None)


def test_a_run_ends_though_its_snapshot_hangs(memory, script, tmp_path, monkeypatch):
    """On a file system that does not answer: the trace is whole, and the file goes when it is written at last."""
    hangs, goes_on = threading.Event(), threading.Event()
    write = Snapshots.write

    def slow(self, *args):
        hangs.set()
        goes_on.wait(60)
        write(self, *args)

    monkeypatch.setattr(Snapshots, "write", slow)
    monkeypatch.setattr(watch, "TICK_S", 0.01)
    monkeypatch.setattr(watch, "_STOP_S", 0.1)
    observer = memory.observer(snapshots=tmp_path)
    observer.on_run_start(script.info)
    observer.on_batch(script.batch())
    assert hangs.wait(30)
    clock = observer._runs[script.run_id]._clock
    observer.on_run_end(script.result(), None)
    assert memory.one("run by_hand")
    goes_on.set()
    clock.join(30)
    assert not list(tmp_path.iterdir())


def test_a_run_is_traced_where_no_thread_can_be_started(memory, script, monkeypatch):
    def refuses(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuses)
    script.play(memory.observer(), script.batch())
    assert memory.one("run by_hand")
    assert memory.points()["curator.batch.count"] == {("read", "ok"): 1}


def test_snapshots_hold_no_payloads(memory, script, boom, tmp_path):
    private = "a payload that nobody may read"
    observer = memory.observer(snapshots=tmp_path)
    observer.on_run_start(script.info)
    error = boom._replace(message=private, traceback=private)
    observer.on_batch(script.batch(0, 0, error=error, kinds=("failed",), metrics={"text": private}))
    observer._runs[script.run_id].write_snapshot()
    (path,) = tmp_path.iterdir()
    assert private not in path.read_text()
    assert os.fspath(Path(path)).endswith(".curator-trace.json")
    observer.on_run_end(script.result(), None)
