# SPDX-License-Identifier: Apache-2.0
"""Timelines for trace viewers: the format's rules hold, and they show what happened."""

from __future__ import annotations

import gzip
import json
from collections import Counter, defaultdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator_core import (
    ConfigurationError,
    LocalExecutor,
    Pipeline,
    ProcessingStage,
    StagePerfStats,
    Task,
    processing_stage,
)
from curator_otel import Drawn, OTelObserver, configure, replay, to_perfetto
from curator_otel.perfetto import _microseconds

SECOND = 1_000_000_000
T0 = 1_700_000_000 * SECOND


# --- a viewer -----------------------------------------------------------------------------------------------


class Viewer:
    """Reads a timeline as the viewers do, and refuses what they would drop.

    Attributes:
        events: All of them.
        slices: The complete ones, with ``start`` and ``end`` in nanoseconds, and names for their process and thread.
        links: Of each link the slices at its two ends.
    """

    def __init__(self, path):
        raw = path.read_bytes()
        text = gzip.decompress(raw) if path.suffix == ".gz" else raw
        document = json.loads(text, parse_constant=pytest.fail)  # NaN is no JSON
        self.about = document["otherData"]
        self.events = document["traceEvents"]
        for event in self.events:
            assert event.keys() >= {"ph", "ts", "pid", "tid", "name"}
            assert event["ph"] in "XMisf"
            assert event["ts"] >= 0
            assert event.get("dur", 0) >= 0
            assert ("dur" in event) == (event["ph"] == "X")
        self.processes = self._names("process_name", "pid")
        self.threads = self._names("thread_name", "tid")
        self._look()

    def _names(self, kind, number):
        found = Counter(event[number] for event in self.events if event["name"] == kind)
        assert set(found.values()) <= {1}
        return {event[number]: event["args"]["name"] for event in self.events if event["name"] == kind}

    def _look(self):
        """As trace processors do: in order of time, a stack of open slices a track, links to the topmost."""
        assert len({(event["pid"], event["tid"]) for event in self.events}) == len({e["tid"] for e in self.events})
        self.slices, self.marks, ends = [], [], defaultdict(dict)
        stacks: dict[int, list[Any]] = defaultdict(list)
        timed = [event for event in self.events if event["ph"] != "M"]
        for event in sorted(timed, key=lambda event: int(event["ts"] * 1000)):
            event["process"], event["thread"] = self.processes[event["pid"]], self.threads[event["tid"]]
            event["start"] = int(event["ts"] * 1000)
            stack = stacks[event["tid"]]
            if event["ph"] == "X":
                event["end"] = event["start"] + int(event["dur"] * 1000)
                while stack and stack[-1]["end"] <= event["start"]:
                    stack.pop()
                assert not stack or event["end"] <= stack[-1]["end"], "it would be dropped"
                event["depth"] = len(stack)
                stack.append(event)
                self.slices.append(event)
            elif event["ph"] == "i":
                assert event["s"] == "t"
                self.marks.append(event)
            else:
                assert (event["ph"] == "f") == (event.get("bp") == "e")
                assert event["ph"] not in ends[event["id"]]
                ends[event["id"]][event["ph"]] = stack[-1]
        assert all(found.keys() == {"s", "f"} for found in ends.values())
        self.links = [(found["s"], found["f"]) for found in ends.values()]

    def of(self, category):
        return [event for event in self.slices if event["cat"] == category]

    def seconds(self, category="batch"):
        """How long all slices of each name are."""
        total: Counter[str] = Counter()
        for event in self.of(category):
            total[event["name"]] += event["end"] - event["start"]
        return {name: ns / SECOND for name, ns in total.items()}

    def tracks(self):
        return {(event["process"], event["thread"]) for event in self.slices}


@pytest.fixture
def draw(tmp_path):
    """Draws a source, and looks at it."""

    def draw(source, name="timeline.json"):
        drawn = to_perfetto(source, tmp_path / name)
        viewer = Viewer(tmp_path / name)
        assert drawn == Drawn(len(viewer.events), len(viewer.of("batch")), viewer.about["left_out"])
        return viewer

    return draw


# --- runs ---------------------------------------------------------------------------------------------------


@processing_stage()
def fan_out(task):
    return [Task(data=number) for number in range(5)]


class Pairs(ProcessingStage[Any, Any]):
    batch_size = 2

    def process(self, task):
        self.metrics.add("seen")
        return task


class FinishedTask:
    """A task as somebody else's code might hold it: all that is looked at."""

    def __init__(self, *perf: StagePerfStats) -> None:
        self.stage_perf = perf


def run(*observers, executor=None, name="p"):
    tasks = [Task(data="a"), Task(data="b")]
    return Pipeline(name, [fan_out, Pairs()]).run(executor, initial_tasks=tasks, observers=observers)


def perf(stage="s", start=0.0, took=1.0, batch="0/0", **fields):
    start_ns = T0 + round(start * SECOND)
    return StagePerfStats(stage, took, start_time_unix_ns=start_ns, batch_id=batch, **fields)


@pytest.fixture
def traced(tmp_path):
    """Runs something with an observer whose trace goes to a file."""

    def trace(*actions, **settings):
        path = tmp_path / "trace.json"
        with configure(json_file=path, set_global=False) as telemetry:
            observer = OTelObserver(telemetry.tracer_provider, telemetry.meter_provider, **settings)
            for action in actions:
                action(observer)
        return path

    return trace


def raw_spans(path):
    """The spans of a trace file, in its order."""
    resources = [resource for line in path.read_text().splitlines() for resource in json.loads(line)["resourceSpans"]]
    return [span for resource in resources for scope in resource["scopeSpans"] for span in scope["spans"]]


@pytest.fixture
def file_of(tmp_path):
    """Writes spans into a trace file."""

    def write(*spans):
        path = tmp_path / "of-spans.json"
        path.write_text(json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}), encoding="utf-8")
        return path

    return write


# --- from results -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_the_slices_of_a_stage_are_as_long_as_the_result_says(draw, workers):
    if workers > 1:
        pytest.importorskip("loky")
    result = run(executor=LocalExecutor(workers=workers))
    viewer = draw(result)
    assert viewer.seconds() == pytest.approx({stage.name: stage.process_s for stage in result.stages}, abs=1e-7)
    assert Counter(event["name"] for event in viewer.slices) == {stage.name: stage.batches for stage in result.stages}
    assert viewer.about["left_out"] == 0


def test_the_in_process_executor_has_one_track(draw):
    result = run()
    viewer = draw(result)
    assert viewer.tracks() == {("node local", "local")}
    assert int(viewer.about["start_unix_ns"]) == min(s.start_time_unix_ns for task in result for s in task.stage_perf)


def test_links_lead_from_the_batches_that_made_the_inputs(draw):
    viewer = draw(run())
    assert Counter((a["name"], b["name"]) for a, b in viewer.links) == {("fan_out", "Pairs"): 6}
    assert all(a["end"] <= b["start"] for a, b in viewer.links)


def test_statistics_that_tasks_share_are_drawn_once(draw):
    shared = perf(batch="0/3:x")
    copied = StagePerfStats(**shared.to_dict())
    viewer = draw([FinishedTask(shared), FinishedTask(shared), FinishedTask(copied)])
    assert viewer.seconds() == {"s": 1.0}


def test_batches_that_do_not_say_when_they_began_are_counted_and_not_drawn(draw):
    known, unknown = perf("a"), StagePerfStats("b", 5.0, batch_id="1/0")
    viewer = draw([FinishedTask(known, unknown), FinishedTask(StagePerfStats("a", 3.0, batch_id="0/1"))])
    assert viewer.seconds() == {"a": 1.0}
    assert viewer.about["left_out"] == 2
    assert viewer.links == []


def test_nodes_are_processes_and_workers_are_tracks(draw):
    viewer = draw(
        [
            FinishedTask(
                perf("a", 0, node_id="n1", worker_id="w1", batch="0"), perf("b", 2, node_id="n2", worker_id="w1")
            ),
            FinishedTask(perf("a", 0.5, node_id="n1", worker_id="w2", batch="1"), perf("b", 4)),
        ]
    )
    assert viewer.tracks() == {("node n1", "w1"), ("node n1", "w2"), ("node n2", "w1"), ("node local", "local")}
    orders = {event["args"]["sort_index"] for event in viewer.events if event["name"] == "thread_sort_index"}
    assert len(orders) == 4


def test_what_a_batch_knows_is_shown(draw):
    known = {"idle": 1, "text": "x", "bad": float("nan")}
    stats = perf(actor_idle_time=0.25, num_items_processed=3, startup_time=2.0, custom_metrics=known)
    (event,) = draw([FinishedTask(stats)]).slices
    assert event["args"] == {
        "batch.id": "0/0",
        "batch.items": 3,
        "batch.idle_time": 0.25,
        "batch.startup_time": 2.0,
        "metric.idle": 1,
        "metric.text": "x",
        "metric.bad": "nan",
    }
    assert (event["name"], event["cat"], event["ts"], event["dur"]) == ("s", "batch", 0, 1e6)


def test_slices_that_overlap_have_a_line_each(draw):
    """A source is at work, on and off, from its first task to its last, while others work."""
    stats = [
        ("short", 0, 0.5),
        ("source", 0, 4),
        ("inside", 1, 2),
        ("across", 3, 2),
        ("again", 3.5, 2),
        ("after", 5.5, 1),
    ]
    viewer = draw([FinishedTask(perf(name, start, took, batch=name)) for name, start, took in stats])
    lines = {event["name"]: (event["thread"], event["depth"]) for event in viewer.slices}
    assert lines == {
        "source": ("local", 0),
        "short": ("local", 1),
        "inside": ("local", 1),
        "across": ("local (2)", 0),
        "again": ("local (3)", 0),
        "after": ("local", 0),
    }
    assert viewer.seconds() == {name: took for name, _, took in stats}


def test_neighbours_that_touch_share_a_line(draw):
    """To the nanosecond, at times that no float of microseconds can say."""
    stats, start = [], 0
    for number in range(200):
        took = 1001 + 7919 * number % 1013
        stats.append(StagePerfStats("s", took / 1e9, start_time_unix_ns=T0 + start, batch_id=str(number)))
        start += took
    viewer = draw([FinishedTask(one) for one in stats])
    assert viewer.tracks() == {("node local", "local")}
    assert [event["start"] for event in viewer.slices] == [one.start_time_unix_ns - T0 for one in stats]
    assert all(event["depth"] == 0 for event in viewer.slices)


@given(st.integers(0, 10**17))
def test_a_viewer_that_cuts_to_nanoseconds_reads_the_time_that_was(ns):
    read = int(_microseconds(ns) * 1000)
    assert abs(read - ns) <= ns // 2**52  # exact for 52 days; then as exact as floats are
    if ns < 2**52:
        assert read == ns


# --- from traces --------------------------------------------------------------------------------------------


def test_a_trace_is_drawn_with_its_run_and_its_stages(draw, traced):
    viewer = draw(traced(run))
    assert list(viewer.processes.values()) == ["run p", "node local"]
    assert viewer.tracks() == {
        ("run p", "run p"),
        ("run p", "00 fan_out"),
        ("run p", "01 Pairs"),
        ("node local", "local"),
    }
    (whole,) = viewer.of("run")
    assert all(whole["start"] <= event["start"] <= event["end"] <= whole["end"] for event in viewer.slices)
    assert {event["name"] for event in viewer.of("worker")} == {"worker setup fan_out", "worker setup Pairs"}
    assert viewer.about["left_out"] == 0


def test_the_slices_of_a_trace_are_those_of_the_result(draw, traced):
    results = []
    of_trace = draw(traced(lambda observer: results.append(run(observer))))
    of_result = draw(results[0])
    assert of_trace.seconds() == pytest.approx(of_result.seconds(), abs=1e-7)
    assert of_trace.seconds() == pytest.approx({stage.name: stage.process_s for stage in results[0].stages}, abs=1e-7)
    for viewer in (of_trace, of_result):
        assert Counter((a["name"], b["name"]) for a, b in viewer.links) == {("fan_out", "Pairs"): 6}


def test_runs_in_one_file_have_a_process_each(draw, traced):
    viewer = draw(traced(run, run, lambda observer: run(observer, name="q")))
    assert sorted(viewer.processes.values()) == ["node local", "run p", "run p", "run q"]
    assert Counter(event["name"] for event in viewer.of("run")) == {"run p": 2, "run q": 1}
    assert viewer.seconds().keys() == {"fan_out", "Pairs"}
    assert len(viewer.of("batch")) == 3 * 7
    assert len(viewer.links) == 3 * 6


def test_stages_of_one_worker_share_its_track(draw, traced, script):
    reports = [script.batch(number % 2, number, at=number, took=0.9) for number in range(6)]
    viewer = draw(traced(lambda observer: script.play(observer, script.worker(0), *reports)))
    batches = viewer.of("batch")
    assert {(event["process"], event["thread"]) for event in batches} == {("node n1", "w1")}
    assert [event["name"] for event in batches] == ["read", "write"] * 3


def test_errors_are_coloured_and_marked(draw, traced, script, boom):
    reports = [
        script.worker(1, "setup_failed", error=boom, at=0, took=0.5),
        script.batch(0, 0, at=1, kinds=("retried",), error=boom),
        script.batch(0, 1, at=3, kinds=("out", "failed"), error=boom, attempt=2),
        script.batch(0, 2, at=5),
    ]
    viewer = draw(traced(lambda observer: script.play(observer, *reports, error=ValueError("over"))))
    colours = {event["args"].get("batch.id", event["name"]): event.get("cname") for event in viewer.slices}
    assert colours == {
        "run by_hand": "terrible",
        "00 read": "terrible",
        "01 write": "terrible",
        "worker setup write": "terrible",
        "0/0": "bad",
        "0/1": "terrible",
        "0/2": None,
    }
    ends = {event["end"] for event in viewer.slices if event.get("cname") and event["cat"] in ("batch", "worker")}
    marks = [mark for mark in viewer.marks if mark["process"] == "node n1"]
    assert {mark["start"] for mark in marks} == ends
    assert {(mark["name"], mark["args"]["exception.message"]) for mark in marks} == {("ValueError", "boom")}
    assert [mark["process"] for mark in viewer.marks].count("run by_hand") == 1
    (failed,) = [event for event in viewer.slices if event["args"].get("batch.id") == "0/1"]
    assert failed["args"].items() >= {"outcome": "failed", "batch.attempt": 2, "error.type": "ValueError"}.items()


def test_what_a_batch_did_is_shown(draw, traced, script):
    report = script.batch(kinds=("out", "filtered"), cpu_ns=5, idle_ns=7 * SECOND, metrics={"seen": 2})
    (event,) = draw(traced(lambda observer: script.play(observer, report))).of("batch")
    assert (
        event["args"].items()
        >= {
            "batch.id": "0/0",
            "batch.tasks_in": 2,
            "batch.tasks_out": 1,
            "outcome": "ok",
            "batch.cpu_time": 5e-9,
            "batch.idle_time": 7.0,
            "metric.seen": 2,
        }.items()
    )
    assert not {"stage.name", "stage.index", "worker.id", "node.id"} & event["args"].keys()


def test_what_the_trace_has_no_span_of_is_counted(draw, traced, script):
    reports = [script.batch(0, number, at=number, took=0.5) for number in range(200)]
    viewer = draw(traced(lambda observer: script.play(observer, *reports), max_spans=50))
    assert 0 < len(viewer.of("batch")) < 200
    assert viewer.about["left_out"] == 200 - len(viewer.of("batch"))


@pytest.mark.parametrize("step", [1, -1])
def test_all_batches_of_a_full_trace_are_drawn_once(draw, traced, file_of, script, step):
    """They are in traces of their own; those of the sample are in the run's as well."""
    reports = [script.batch(0, number, at=number, took=0.5, parents=()) for number in range(200)]
    later = [script.batch(1, number, at=number + 0.5, took=0.5, parents=(f"0/{number}",)) for number in range(200)]
    pairs = [report for pair in zip(reports, later, strict=True) for report in pair]
    path = traced(lambda observer: script.play(observer, *pairs), max_spans=50, detail="full")
    viewer = draw(file_of(*raw_spans(path)[::step]))
    assert len(viewer.of("batch")) == 400
    assert viewer.about["left_out"] == 0
    assert viewer.seconds() == {"read": 100.0, "write": 100.0}
    made = [(a["args"]["batch.id"], b["args"]["batch.id"]) for a, b in viewer.links if a["cat"] == "batch"]
    assert sorted(made) == sorted((f"0/{number}", f"1/{number}") for number in range(200))
    assert list(viewer.processes.values()) == ["run by_hand", "node n1"]


def test_windows_are_on_the_track_of_their_stage(draw, traced, script):
    def play(observer):
        observer.on_run_start(script.info)
        for number in range(3):
            script.report(observer, script.batch(0, number, at=2 * number, took=1))
            script.turn_clock(observer, 2 * number + 1.5)
        observer.on_run_end(script.result(), None)

    viewer = draw(traced(play))
    windows = [event for event in viewer.slices if event["name"].startswith("window ")]
    assert len(windows) == 3
    assert {(event["thread"], event["depth"]) for event in windows} == {("00 read", 1)}


def test_a_replayed_trace_leaves_out_what_has_no_start(draw, tmp_path):
    tasks = [FinishedTask(perf("a"), StagePerfStats("b", 5.0, batch_id="1/0"))]
    with configure(json_file=tmp_path / "trace.json", set_global=False) as telemetry:
        replay([*tasks, FinishedTask(perf("b", 2))], telemetry.tracer_provider)
    viewer = draw(tmp_path / "trace.json")
    assert viewer.seconds() == {"a": 1.0, "b": 1.0}
    assert viewer.about["left_out"] == 1


# --- from traces of others ----------------------------------------------------------------------------------


def span(number, name, start, end, parent=0, links=(), trace="a", **attributes):
    return {
        "traceId": trace * 32,
        "spanId": f"{number:016x}",
        "parentSpanId": f"{parent:016x}" if parent else "",
        "name": name,
        "startTimeUnixNano": str(T0 + start),
        "endTimeUnixNano": str(T0 + end),
        "attributes": [
            {"key": key.replace("_", "."), "value": {"stringValue": value}} for key, value in attributes.items()
        ],
        "links": [{"traceId": trace * 32, "spanId": f"{number:016x}"} for number in links],
    }


def test_spans_of_the_application_are_around_its_runs(draw, file_of):
    path = file_of(
        span(4, "download", 0, 30, parent=2),
        span(2, "run p", 0, 50, parent=1, curator_run_id="r1"),
        span(3, "run q", 60, 100, parent=1, curator_run_id="r2"),
        span(1, "job", 0, 100),
    )
    viewer = draw(path)
    assert viewer.tracks() == {("job", "job")}
    assert {event["name"]: event["depth"] for event in viewer.slices} == {
        "job": 0,
        "run p": 1,
        "download": 2,
        "run q": 1,
    }


def test_a_run_that_was_killed_is_drawn_as_far_as_it_is_known(draw, file_of):
    batch = span(5, "process_batch s", 20, 30, parent=9, curator_batch_id="b", curator_stage_name="s")
    viewer = draw(file_of(span(1, "run started p", 1, 1, curator_run_id="r"), batch))
    assert viewer.tracks() == {("run started p", "run started p"), ("node local", "local")}
    window = span(2, "window s", 1, 9, parent=9, curator_stage_name="s") | {
        "attributes": [{"key": "curator.stage.index", "value": {"intValue": "3"}}]
    }
    (event,) = draw(file_of(window)).slices
    assert (event["process"], event["thread"]) == ("trace " + "a" * 32, "03 ")


@pytest.mark.parametrize("step", [1, -1])
def test_what_two_traces_know_of_a_batch_is_put_together(draw, file_of, step):
    one = {"curator_batch_id": "0/1", "curator_run_id": "r"}
    other = {"curator_batch_id": "1/1", "curator_run_id": "r"}
    spans = [
        span(1, "one", 10, 20, **one, curator_batch_kept="first"),
        span(2, "other", 30, 40, **other),
        span(3, "one", 10, 20, trace="b", **one, curator_batch_more="x"),
        span(4, "other", 30, 40, trace="b", **other, links=[3]),
    ]
    viewer = draw(file_of(*spans[::step]))
    assert [(a["name"], b["name"]) for a, b in viewer.links] == [("one", "other")]
    assert viewer.slices[0]["args"] == {"batch.id": "0/1", "run.id": "r", "batch.kept": "first", "batch.more": "x"}


def test_links_to_spans_elsewhere_are_left_out(draw, file_of):
    path = file_of(span(1, "a", 0, 10), span(2, "b", 20, 30, links=[1, 7]), span(3, "c", 20, 40, trace="b", links=[1]))
    assert [(a["name"], b["name"]) for a, b in draw(path).links] == [("a", "b")]


def test_links_lead_to_a_slice_and_not_to_what_it_holds(draw, file_of):
    path = file_of(
        span(1, "outer", 1, 100), span(2, "inner", 1, 100, parent=1), span(3, "next", 200, 300, links=[1, 2])
    )
    assert {(a["name"], b["name"]) for a, b in draw(path).links} == {("outer", "next"), ("inner", "next")}


def test_spans_without_a_start_are_left_out_and_those_that_end_too_early_have_no_length(draw, file_of):
    viewer = draw(file_of(span(1, "never", 0, 5) | {"startTimeUnixNano": "0"}, span(2, "early", 10, 5)))
    assert [(event["name"], event["dur"]) for event in viewer.slices] == [("early", 0)]


# --- files --------------------------------------------------------------------------------------------------


def test_the_file_is_gzipped_where_its_name_says_so(draw, tmp_path):
    result = run()
    plain, packed = draw(result), draw(result, "deep/timeline.json.gz")
    assert packed.events == plain.events
    assert (tmp_path / "deep" / "timeline.json.gz").read_bytes()[:2] == b"\x1f\x8b"


def test_paths_may_be_text(tmp_path, traced):
    assert to_perfetto(str(traced(run)), str(tmp_path / "out.json")).batches == 7


def test_an_empty_result_has_nothing_to_draw(tmp_path):
    with pytest.raises(ConfigurationError, match="nothing to draw") as raised:
        to_perfetto([], tmp_path / "out.json")
    assert "that has tasks" in raised.value.hint
    assert not (tmp_path / "out.json").exists()


def test_a_result_without_any_start_has_nothing_to_draw(tmp_path):
    with pytest.raises(ConfigurationError, match="nothing to draw") as raised:
        to_perfetto([FinishedTask(StagePerfStats("s", 1.0, batch_id="0/0"))], tmp_path / "out.json")
    assert raised.value.hint.startswith("none of its 1 batches says when it began")


@pytest.mark.parametrize("text", ["", "\n", '{"resourceSpans": []}', '{"resourceMetrics": []}'])
def test_a_file_without_spans_has_nothing_to_draw(tmp_path, text):
    path = tmp_path / "trace.json"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match="nothing to draw") as raised:
        to_perfetto(path, tmp_path / "out.json")
    assert str(path) in raised.value.given


def test_a_file_that_is_no_trace(tmp_path):
    path = tmp_path / "trace.json"
    path.write_text("{}\nnonsense")
    with pytest.raises(ConfigurationError, match="this is no trace") as raised:
        to_perfetto(path, tmp_path / "out.json")
    assert raised.value.field == f"{path}:2"


def test_a_trace_that_is_not_there(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be read"):
        to_perfetto(tmp_path / "missing.json", tmp_path / "out.json")


@pytest.mark.parametrize(("source", "field"), [(None, "source"), (7, "source"), ([Task(data=1), 7], "source[1]")])
def test_what_is_neither_a_result_nor_a_trace(tmp_path, source, field):
    with pytest.raises(ConfigurationError, match="neither a result nor a trace") as raised:
        to_perfetto(source, tmp_path / "out.json")
    assert raised.value.field == field


def test_a_path_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "out.json", "/dev/full"):
        with pytest.raises(ConfigurationError, match="cannot be written") as raised:
            to_perfetto(run(), path)
        assert raised.value.field == "path"


@pytest.mark.parametrize("path", [None, 7])
def test_a_path_that_is_none(path):
    with pytest.raises(ConfigurationError, match="no path"):
        to_perfetto(run(), path)


def test_the_trace_itself_is_not_overwritten(traced):
    path = traced(run)
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="would overwrite the trace"):
        to_perfetto(path, path)
    assert path.read_bytes() == before
