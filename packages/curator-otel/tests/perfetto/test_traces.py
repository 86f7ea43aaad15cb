# SPDX-License-Identifier: Apache-2.0
"""Timelines of traces: they show what the observer recorded."""

from __future__ import annotations

from collections import Counter

import pytest

from curator_core import StagePerfStats
from curator_otel import replay

SECOND = 1_000_000_000


def test_trace_is_drawn_with_its_run_and_stages(draw, traced, run):
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


def test_slices_of_a_trace_are_those_of_the_result(draw, traced, run):
    results = []
    of_trace = draw(traced(lambda observer: results.append(run(observer))))
    of_result = draw(results[0])
    assert of_trace.seconds() == pytest.approx(of_result.seconds(), abs=1e-7)
    assert of_trace.seconds() == pytest.approx({stage.name: stage.process_s for stage in results[0].stages}, abs=1e-7)
    for viewer in (of_trace, of_result):
        assert Counter((a["name"], b["name"]) for a, b in viewer.links) == {("fan_out", "Pairs"): 6}


def test_each_run_in_a_file_has_its_own_process(draw, traced, run):
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


def test_errors_are_colored_and_marked(draw, traced, script, boom):
    reports = [
        script.worker(1, "setup_failed", error=boom, at=0, took=0.5),
        script.batch(0, 0, at=1, kinds=("retried",), error=boom),
        script.batch(0, 1, at=3, kinds=("out", "failed"), error=boom, attempt=2),
        script.batch(0, 2, at=5),
    ]
    viewer = draw(traced(lambda observer: script.play(observer, *reports, error=ValueError("over"), lost=["1 task"])))
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
    (whole,) = viewer.of("run")
    assert whole["args"]["run.unaccounted"] == ["1 task"]
    (failed,) = [event for event in viewer.slices if event["args"].get("batch.id") == "0/1"]
    assert failed["args"].items() >= {"outcome": "failed", "batch.attempt": 2, "error.type": "ValueError"}.items()


def test_slice_has_the_outcomes_of_its_batch(draw, traced, script):
    report = script.batch(kinds=("out", "filtered"), cpu_ns=5, idle_ns=7 * SECOND, metrics={"seen": 2})
    (event,) = draw(traced(lambda observer: script.play(observer, report))).of("batch")
    assert (
        event["args"].items()
        >= {
            "batch.id": "0/0",
            "task.in": 2,
            "task.out": 1,
            "outcome": "ok",
            "cpu.time": 5e-9,
            "idle.time": 7.0,
            "metric.seen": 2,
        }.items()
    )
    assert not {"stage.name", "stage.index", "worker.id", "node.id"} & event["args"].keys()


def test_batches_without_a_span_are_counted(draw, traced, script):
    reports = [script.batch(0, number, at=number, took=0.5) for number in range(200)]
    viewer = draw(traced(lambda observer: script.play(observer, *reports), max_spans=50))
    assert 0 < len(viewer.of("batch")) < 200
    assert viewer.about["left_out"] == 200 - len(viewer.of("batch"))


@pytest.mark.parametrize("step", [1, -1])
def test_all_batches_of_a_full_trace_are_drawn_once(draw, traced, file_of, script, step, spans_of):
    """All batches are in separate traces; those of the sample are also in the trace of the run."""
    reports = [script.batch(0, number, at=number, took=0.5, parents=()) for number in range(60)]
    later = [script.batch(1, number, at=number + 0.5, took=0.5, parents=(f"0/{number}",)) for number in range(60)]
    pairs = [report for pair in zip(reports, later, strict=True) for report in pair]
    path = traced(lambda observer: script.play(observer, *pairs), max_spans=30, detail="full")
    viewer = draw(file_of(*spans_of(path)[::step]))
    assert len(viewer.of("batch")) == 120
    assert viewer.about["left_out"] == 0
    assert viewer.seconds() == {"read": 30.0, "write": 30.0}
    made = [(a["args"]["batch.id"], b["args"]["batch.id"]) for a, b in viewer.links if a["cat"] == "batch"]
    assert sorted(made) == sorted((f"0/{number}", f"1/{number}") for number in range(60))
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


def test_replayed_trace_leaves_out_batches_without_a_start(to_file, draw, tmp_path, finished, perf):
    tasks = [finished(perf("a"), StagePerfStats("b", 5.0, batch_id="1/0"))]
    with to_file(tmp_path / "trace.json") as telemetry:
        replay([*tasks, finished(perf("b", 2))], telemetry.tracer_provider)
    viewer = draw(tmp_path / "trace.json")
    assert viewer.seconds() == {"a": 1.0, "b": 1.0}
    assert viewer.about["left_out"] == 1
