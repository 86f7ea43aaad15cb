# SPDX-License-Identifier: Apache-2.0
"""The trace as text, from the file that the exporter wrote."""

from __future__ import annotations

import json
import re

import pytest

from curator_core import DataError, Pipeline, Task, processing_stage
from curator_core.verdict import Verdict
from curator_otel import OTelObserver, configure, render_tree, slowest_stage


@pytest.fixture
def written(script, boom, tmp_path):
    """Plays reports into a trace file."""

    def play(*reports, name="trace.json", **settings):
        path = tmp_path / name
        with configure(json_file=path, set_global=False) as telemetry:
            observer = OTelObserver(telemetry.tracer_provider, telemetry.meter_provider, **settings)
            script.play(observer, *reports)
        return path

    return play


def test_the_tree_shows_what_took_how_long(written, script, boom):
    path = written(
        script.worker(0, took=0.25),
        script.batch(0, 0, at=1, took=2),
        script.batch(0, 1, at=4, took=0.5, kinds=("filtered",)),
        script.batch(1, 0, at=6, took=75, kinds=("out", "failed"), error=boom),
    )
    lines = render_tree(path).splitlines()
    assert re.fullmatch(r"run by_hand  \d+ h \d\d min", lines[0])
    assert lines[1:] == [
        "├─ 00 read  4.50 s  (2 batches, 2 in, 1 out, 1 filtered, 2.50 s in its code)",
        "│  ├─ worker setup  250 ms",
        "│  ├─ process_batch read  2.00 s",
        "│  └─ process_batch read  500 ms",
        (
            "└─ 01 write  1 min 15 s  (1 batch, 2 in, 1 out, 1 failed, 1 min 15 s in its code)"
            "  ! ValueError: 1 of 2 tasks failed"
        ),
        "   └─ process_batch write  1 min 15 s  ! ValueError: boom",
        "slowest stage: write, 1 min 15 s in its code, 97% of the time in all stages",
        "the run was too short to say what held it up",
    ]
    assert slowest_stage(path) == "write"


def test_the_tree_ends_with_the_verdict(tmp_path, script):
    path = tmp_path / "trace.json"
    verdict = Verdict("busy", "write", 0.97, "'write' is at work 97% of the time", "give it more workers")
    with configure(json_file=path, set_global=False) as telemetry:
        script.play(OTelObserver(telemetry.tracer_provider), script.batch(), verdict=verdict)
    last = render_tree(path).splitlines()[-1]
    assert last == "bottleneck: 'write' is at work 97% of the time; give it more workers" == str(verdict)


def test_a_crowd_is_summed_up_and_errors_and_the_longest_are_shown(written, script, boom):
    reports = [script.batch(0, number, at=number, took=0.1) for number in range(40)]
    reports[7] = reports[7]._replace(error=boom)
    reports[9] = reports[9]._replace(duration_ns=3_000_000_000)
    path = written(*reports, max_spans=30)
    text = render_tree(path, max_children=3)
    assert text.count("─ process_batch") == 3
    assert "process_batch read  3.00 s" in text
    assert "! ValueError: boom" in text
    assert re.search(r"└─ \d+ more process_batch read, .* in all; \d+ not traced, to keep the limit", text)


def test_several_runs_are_shown_one_after_the_other(tmp_path):
    @processing_stage()
    def same(task):
        return task

    path = tmp_path / "deep" / "trace.json"
    with configure(json_file=path, set_global=False) as telemetry:
        observer = OTelObserver(telemetry.tracer_provider)
        for name in ("first", "second"):
            Pipeline(name, [same]).run(initial_tasks=[Task(data=1)], observers=[observer])
    assert [line.split("  ")[0] for line in render_tree(path).splitlines() if line.startswith("run ")] == [
        "run first",
        "run second",
    ]
    assert slowest_stage(path) == "same"


def test_the_file_is_otlp_json(written, spans_of, script):
    """As the specification has it: ids in hex, 64-bit numbers as text, a request a line."""
    spans = spans_of(written(script.batch()))
    assert len(spans) == 4
    for span in spans:
        assert re.fullmatch("[0-9a-f]{32}", span["traceId"])
        assert re.fullmatch("[0-9a-f]{16}", span["spanId"])
        assert re.fullmatch("[0-9]+", span["startTimeUnixNano"])


def test_a_run_that_has_not_ended_is_shown_as_one_that_has_started(tmp_path, script):
    path = tmp_path / "trace.json"
    with configure(json_file=path, set_global=False) as telemetry:
        observer = OTelObserver(telemetry.tracer_provider)
        observer.on_run_start(script.info)
        assert telemetry.flush()
        assert render_tree(path) == "run started by_hand  (it goes on, or its driver was killed)"
        observer.on_run_end(script.result(), None)
    assert render_tree(path).startswith("run by_hand")


def test_windows_are_drawn_as_bars(script, tmp_path):
    path = tmp_path / "trace.json"
    with configure(json_file=path, set_global=False) as telemetry:
        observer = OTelObserver(telemetry.tracer_provider)
        observer.on_run_start(script.info)
        for number, took in enumerate((1, 4, 2)):
            script.report(observer, script.batch(0, number, at=10 * number, took=took, worker_id="w2"),
                          script.batch(0, number + 10, at=10 * number + 5, took=5 - took))  # fmt: skip
            script.turn_clock(observer, number + 1.5)
        script.report(observer, script.batch(0, 3, at=40))
        observer.on_run_end(script.result(), None)
    assert "4 windows, at work: ▅▇▅█" in render_tree(path)


def test_an_empty_file_has_no_spans(tmp_path):
    path = tmp_path / "trace.json"
    path.write_text("\n")
    assert render_tree(path) == "no spans"
    assert slowest_stage(path) is None


@pytest.mark.parametrize("text", ["{", "[]", '{"resourceSpans": []}\n{"resour'])
def test_a_file_that_is_no_trace_is_refused_by_line(tmp_path, text):
    path = tmp_path / "trace.json"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"trace\.json:{len(text.splitlines())}"):
        render_tree(path)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        render_tree(tmp_path / "none.json")


def test_other_peoples_spans_are_shown_too(tmp_path):
    span = {
        "traceId": "a" * 32,
        "spanId": "b" * 16,
        "parentSpanId": "c" * 16,
        "name": "theirs",
        "startTimeUnixNano": "0",
        "endTimeUnixNano": "5000",
        "attributes": [{"key": "k", "value": {"arrayValue": {"values": [{"intValue": "1"}]}}}, {"key": "none"}],
    }
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}))
    assert render_tree(path) == "theirs  5 us"
