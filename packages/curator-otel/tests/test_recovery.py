# SPDX-License-Identifier: Apache-2.0
"""A driver that is killed: the run is on the list of traces, and the snapshot closes its trace."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from tests.waiting import DEADLINE_S, wait_until

from curator_core import ConfigurationError, DataError
from curator_otel import OTelObserver, recover, render_tree
from curator_otel import _run_watcher as watch
from curator_otel._state_file import StateFile

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


STOPPED = """
import hashlib, os, sys
from curator_core import Pipeline, Task, processing_stage
from curator_otel import OTelObserver, configure

@processing_stage()
def hang(task):
    os.write(1, b"hangs")
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # takes hours, and cannot be interrupted

telemetry = configure(json_file=sys.argv[1], set_global=False)
observer = OTelObserver(telemetry.tracer_provider, telemetry.meter_provider)
Pipeline("stopped", [hang]).run(initial_tasks=[Task(data=1)], observers=[observer], shutdown_grace_s=4)
"""


def test_driver_stopped_in_a_hanging_call_exports_its_root_span(tmp_path):
    trace = tmp_path / "trace.json"
    driver = subprocess.Popen([sys.executable, "-c", STOPPED, str(trace)], stdout=subprocess.PIPE)
    assert driver.stdout.read(5) == b"hangs"
    driver.terminate()
    assert driver.wait(DEADLINE_S) == 143
    driver.stdout.close()
    spans = [
        span
        for line in trace.read_text().splitlines()
        for resource in json.loads(line)["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]
    root = {span["name"]: span for span in spans}["run stopped"]
    told = {attribute["key"]: attribute["value"] for attribute in root["attributes"]}
    assert told["error.type"] == {"stringValue": "curator_core.errors.RunStopped"}


def as_left_behind(snapshot):
    """Change the file so that it belongs to a process that is gone."""
    content = json.loads(snapshot.read_text())
    content["process"]["pid"] = 2**22 + 1  # above the maximum on Linux
    snapshot.write_text(json.dumps(content))
    return snapshot


@pytest.fixture
def begin(script):
    """Begin the run, play reports, and write its snapshot; the run ends after the test."""
    begun = []

    def begin(observer, directory, *reports):
        observer.on_run_start(script.info)
        begun.append(observer)
        script.report(observer, *reports)
        return script.write_snapshot(observer, directory)

    yield begin
    for observer in begun:
        observer.on_run_end(script.result(), None)


# --- a driver that is killed --------------------------------------------------------------------------------


def test_killed_run_is_shown_as_started_and_recover_closes_its_trace(to_file, spans_of, tmp_path):
    trace, snapshots = tmp_path / "trace.json", tmp_path / "snapshots"
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(trace), str(snapshots)])

    def is_going():
        assert driver.poll() is None
        return list(snapshots.glob("*.curator-trace.json")) and "window slow" in trace.read_text()

    try:
        wait_until(is_going)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    assert "run started killed  (still running, or its driver was killed)" in render_tree(trace)
    closed = tmp_path / "closed.json"
    (snapshot,) = snapshots.glob("*.curator-trace.json")
    with to_file(closed) as telemetry:
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
    assert "DriverKilledError: the driver was killed; the values are those of the last snapshot" in tree
    assert "windows, activity:" in tree
    assert recovered.batches > 0
    # Windows that were exported earlier and written again count once, and add up to the stage.
    in_windows, in_stage, in_run = (
        sum(batches_of(span) for span in by_id.values() if span["name"] == name)
        for name in ("window slow", "00 slow", "run killed")
    )
    assert in_windows == in_stage == in_run == recovered.batches


def batches_of(span):
    (found,) = [pair["value"] for pair in span["attributes"] if pair["key"] == "curator.batch.ended"]
    return int(found["intValue"])


def test_run_below_a_parent_is_recovered_below_it(to_file, begin, script, spans_of, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACEPARENT", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
    monkeypatch.setenv("CURATOR_OTEL_SNAPSHOTS", str(tmp_path / "s"))  # same effect as the argument
    with to_file(tmp_path / "first.json") as telemetry:
        snapshot = begin(
            OTelObserver(telemetry.tracer_provider), tmp_path / "s", script.worker(0), script.batch(0, 0, took=3)
        )
    assert re.fullmatch(rf"{script.run_id}-[0-9a-f]{{16}}\.curator-trace\.json", snapshot.name)
    monkeypatch.delenv("TRACEPARENT")
    second = tmp_path / "second.json"
    with to_file(second) as telemetry:
        recovered = recover(as_left_behind(snapshot), telemetry.tracer_provider)
    assert recovered == (script.run_id, "4bf92f3577b34da6a3ce929d0e0e4736", 1, True)
    names = {span["name"]: span for span in spans_of(second)}
    assert names["run by_hand"]["parentSpanId"] == "00f067aa0ba902b7"
    assert int(names["00 read"]["endTimeUnixNano"]) == script.info.start_unix_ns + 4 * SECOND
    assert "window read" not in names  # its first window was open: the span of the stage contains everything


def test_another_sdk_recovers_into_another_trace_and_a_warning_says_so(begin, memory, script, tmp_path, caplog):
    snapshot = begin(memory.observer(snapshots=tmp_path), tmp_path, script.batch())
    recovered = recover(as_left_behind(snapshot), memory.tracer_provider)
    assert not recovered.is_same_trace
    assert "a separate trace" in caplog.text
    assert memory.one("run by_hand").attributes["curator.run.state"] == "recovered"


def test_repeated_recovery_writes_a_window_once(to_file, begin, script, spans_of, tmp_path):
    """The window was open when the file was written, then closed and exported before the driver was killed."""
    path, directory = tmp_path / "trace.json", tmp_path / "s"
    with to_file(path) as telemetry:
        observer = OTelObserver(telemetry.tracer_provider, snapshots=directory)
        snapshot = begin(observer, directory, script.batch(0, 0))
        script.turn_clock(observer, 1)
        script.report(observer, script.batch(0, 1))
        script.write_snapshot(observer, directory)
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


def test_recover_closes_detail_traces(to_file, begin, script, spans_of, tmp_path):
    path = tmp_path / "trace.json"
    with to_file(path) as telemetry:
        observer = OTelObserver(telemetry.tracer_provider, detail="full", snapshots=tmp_path / "s")
        snapshot = begin(observer, tmp_path / "s", script.batch(0, 0, took=2), script.batch(0, 1, at=5, took=3))
        recover(as_left_behind(snapshot), telemetry.tracer_provider)
    spans = {span["spanId"]: span for span in spans_of(path)}
    (root,) = [span for span in spans.values() if span["name"] == "detail read"]
    assert not root.get("parentSpanId")
    assert [int(root[f"{end}TimeUnixNano"]) - script.info.start_unix_ns for end in ("start", "end")] == [
        SECOND,
        8 * SECOND,
    ]
    assert sum(span.get("parentSpanId") == root["spanId"] for span in spans.values()) == 2
    assert all(span["parentSpanId"] in spans for span in spans.values() if span.get("parentSpanId"))


# --- no recovery --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"version": 2}', '{"version": 1}', "\x00"])
def test_other_file_is_rejected(tmp_path, text):
    path = tmp_path / "x.curator-trace.json"
    path.write_text(text)
    with pytest.raises(DataError, match="not a snapshot of a run"):
        recover(path)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content["totals"].pop(),
        lambda content: content["totals"][0].pop("passed"),
        lambda content: content["state"]["stages"].pop(),
        lambda content: content["state"].update(root=[2**130, 1]),
        lambda content: content["state"]["stages"][0].update(open=[1, 0, 0, 0, 0, 0, {"passed": "many"}]),
        lambda content: content["state"]["stages"][0].update(closed=[[1, 2]]),
        lambda content: content["state"].update(details=[{"stage": 9, "window": 0, "ids": [1, 1], "times": [0, 0]}]),
    ],
)
def test_damaged_snapshot_is_rejected_and_nothing_written(begin, memory, script, tmp_path, spoil):
    path = as_left_behind(begin(memory.observer(snapshots=tmp_path), tmp_path, script.batch()))
    content = json.loads(path.read_text())
    spoil(content)
    path.write_text(json.dumps(content))
    before = len(memory.spans)
    with pytest.raises(DataError, match="not a snapshot of a run"):
        recover(path, memory.tracer_provider)
    assert len(memory.spans) == before


def test_missing_snapshot_is_rejected(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        recover(tmp_path / "none.json")
    with pytest.raises(DataError, match="not a snapshot of a run"):
        recover("a\0b")


def test_run_in_progress_is_not_recovered(begin, memory, tmp_path):
    snapshot = begin(memory.observer(snapshots=tmp_path), tmp_path)
    with pytest.raises(DataError, match="the run is still in progress"):
        recover(snapshot, memory.tracer_provider)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_snapshot_of_a_zombie_driver_is_recovered(begin, memory, tmp_path):
    snapshot = begin(memory.observer(snapshots=tmp_path), tmp_path)
    content = json.loads(snapshot.read_text())
    with subprocess.Popen([sys.executable, "-c", "pass"]) as driver:
        stat = Path(f"/proc/{driver.pid}/stat")
        wait_until(lambda: ") Z " in stat.read_text())
        content["process"] |= {"pid": driver.pid, "started": stat.read_text().rpartition(")")[2].split()[19]}
        snapshot.write_text(json.dumps(content))
        recover(snapshot, memory.tracer_provider)


# --- during a run -------------------------------------------------------------------------------------------


def test_run_removes_only_its_own_snapshot(memory, script, tmp_path):
    directory = tmp_path / "deep" / "er"
    observers = [memory.observer(snapshots=directory) for _ in range(2)]  # both observe the same run
    for observer in observers:
        observer.on_run_start(script.info)
        script.report(observer, script.batch())
    _, kept = [script.write_snapshot(observer, directory) for observer in observers]
    observers[0].on_run_end(script.result(), None)
    wait_until(lambda: list(directory.iterdir()) == [kept])
    observers[1].on_run_end(script.result(), None)
    wait_until(lambda: not list(directory.iterdir()))


def test_snapshots_contain_no_payloads(begin, memory, script, boom, tmp_path):
    private = "a private payload"
    error = boom._replace(message=private, traceback=private)
    batch = script.batch(0, 0, error=error, kinds=("failed",), metrics={"text": private})
    assert private not in begin(memory.observer(snapshots=tmp_path), tmp_path, batch).read_text()


@pytest.mark.parametrize("given", ["file", 7, "a\0b", "s3://bucket/s"])
def test_snapshots_that_are_not_a_directory_are_rejected(tmp_path, given):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="snapshots"):
        OTelObserver(snapshots=tmp_path / given if given == "file" else given)


def test_unwritable_snapshot_affects_nothing_else(memory, script, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(watch, "TICK_S", 0.01)
    directory = tmp_path / "snapshots"
    observer = memory.observer(snapshots=directory)
    directory.write_text("in the way")
    observer.on_run_start(script.info)
    wait_until(lambda: "runs are unaffected" in caplog.text)
    observer.on_run_end(script.result(), None)
    assert memory.one("run by_hand")


def test_snapshot_is_written_every_two_seconds(memory, script, tmp_path, monkeypatch, stopped_clock):
    """The clock ticks once a second, and the test turns it; nothing else would write a snapshot."""
    now, written = 0.0, []
    monkeypatch.setattr(StateFile, "write", lambda self, *state: written.append(now))
    observer = memory.observer(snapshots=tmp_path)
    observer.on_run_start(script.info)
    for tick in range(1, 8):
        now = tick * stopped_clock  # seconds between two ticks, where no test stops them
        script.turn_clock(observer, now)
    observer.on_run_end(script.result(), None)
    assert written == [2.0, 4.0, 6.0]


def test_run_ends_even_if_its_snapshot_hangs(memory, script, tmp_path, monkeypatch):
    """If a file system does not respond, the trace is complete, and the file is removed once it is written."""
    hangs, goes_on = threading.Event(), threading.Event()
    write = StateFile.write

    def slow(self, *args):
        hangs.set()
        goes_on.wait(DEADLINE_S)
        write(self, *args)

    monkeypatch.setattr(StateFile, "write", slow)
    monkeypatch.setattr(watch, "TICK_S", 0.01)
    monkeypatch.setattr(watch, "_STOP_S", 0.1)
    observer = memory.observer(snapshots=tmp_path)
    observer.on_run_start(script.info)
    observer.on_batch(script.batch())
    assert hangs.wait(DEADLINE_S)
    clock = observer._runs[script.run_id]._clock
    observer.on_run_end(script.result(), None)
    assert memory.one("run by_hand")
    goes_on.set()
    clock.join(DEADLINE_S)
    assert not list(tmp_path.iterdir())


def test_run_is_traced_even_if_no_thread_can_start(memory, script, monkeypatch):
    def refuses(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuses)
    script.play(memory.observer(), script.batch())
    assert memory.one("run by_hand")
    assert memory.points()["curator.batch.count"] == {("read", "ok"): 1}
