# SPDX-License-Identifier: Apache-2.0
"""The trace as text, from the file that the exporter wrote."""

from __future__ import annotations

import json
import re

import pytest
from tests.waiting import DEADLINE_S

from curator_core import DataError
from curator_core.results import Verdict
from curator_otel import OTelObserver, render_tree, slowest_stage


def test_tree_shows_spans_with_durations(traced, script, boom):
    path = traced(
        lambda observer: script.play(
            observer,
            script.worker(0, took=0.25),
            script.batch(0, 0, at=1, took=2),
            script.batch(0, 1, at=4, took=0.5, kinds=("filtered",)),
            script.batch(1, 0, at=6, took=75, kinds=("out", "failed"), error=boom),
        )
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
        "run too short to find a bottleneck",
    ]
    assert slowest_stage(path) == "write"


def test_tree_ends_with_the_verdict(traced, script):
    verdict = Verdict("busy", "write", 0.97, "'write' is at work 97% of the time", "give it more workers")
    path = traced(lambda observer: script.play(observer, script.batch(), verdict=verdict))
    last = render_tree(path).splitlines()[-1]
    assert last == "bottleneck: 'write' is at work 97% of the time; give it more workers" == str(verdict)


def test_many_siblings_are_summarized_except_errors_and_the_longest(traced, script, boom):
    reports = [script.batch(0, number, at=number, took=0.1) for number in range(40)]
    reports[7] = reports[7]._replace(error=boom)
    reports[9] = reports[9]._replace(duration_ns=3_000_000_000)
    text = render_tree(traced(lambda observer: script.play(observer, *reports), max_spans=30), max_children=3)
    assert text.count("─ process_batch") == 3
    assert "process_batch read  3.00 s" in text
    assert "! ValueError: boom" in text
    assert re.search(r"└─ \d+ more process_batch read, .* in all; \d+ not traced, to keep the limit", text)


def test_windows_are_drawn_as_bars(traced, script):
    def play(observer):
        observer.on_run_start(script.info)
        for number, took in enumerate((1, 4, 2)):
            script.report(
                observer,
                script.batch(0, number, at=10 * number, took=took, worker_id="w2"),
                script.batch(0, number + 10, at=10 * number + 5, took=5 - took),
            )
            script.turn_clock(observer, number + 1.5)
        script.report(observer, script.batch(0, 3, at=40))
        observer.on_run_end(script.result(), None)

    assert "4 windows, activity: ▅▇▅█" in render_tree(traced(play))


def test_runs_in_one_file_are_shown_in_sequence(traced, run):
    path = traced(run, lambda observer: run(observer, name="q"))
    assert [block.split("  ")[0] for block in render_tree(path).split("\n\n")] == ["run p", "run q"]
    assert slowest_stage(path) in ("fan_out", "Pairs")


def test_run_that_has_not_ended_is_shown_as_started(to_file, tmp_path, script):
    path = tmp_path / "trace.json"
    with to_file(path) as telemetry:
        observer = OTelObserver(telemetry.tracer_provider)
        observer.on_run_start(script.info)
        assert telemetry.flush(DEADLINE_S)
        assert render_tree(path) == "run started by_hand  (still running, or its driver was killed)"
        observer.on_run_end(script.result(), None)
    assert render_tree(path).startswith("run by_hand")


# --- files --------------------------------------------------------------------------------------------------


def test_file_is_otlp_json(traced, spans_of, script):
    """The format follows the specification: ids in hex, 64-bit numbers as strings, one request per line."""
    spans = spans_of(traced(lambda observer: script.play(observer, script.batch())))
    assert len(spans) == 4
    for span in spans:
        assert re.fullmatch("[0-9a-f]{32}", span["traceId"])
        assert re.fullmatch("[0-9a-f]{16}", span["spanId"])
        assert re.fullmatch("[0-9]+", span["startTimeUnixNano"])


def span(number, parent=0, trace="a", end="5000", **fields):
    ids = {"traceId": trace * 32, "spanId": f"{number:016x}", "parentSpanId": f"{parent:016x}" if parent else ""}
    return ids | {"name": f"s{number}", "startTimeUnixNano": "0", "endTimeUnixNano": end} | fields


@pytest.mark.parametrize(
    ("requests", "tree"),
    [
        ([], "no spans"),
        ([[span(2, parent=1)], [span(1)]], "s1  5 us\n└─ s2  5 us"),  # the parent arrived later
        ([[span(1, parent=9)]], "s1  5 us"),  # the parent is not in the file
        ([[span(1), span(1, trace="b"), span(2, parent=1, trace="b")]], "s1  5 us\n\ns1  5 us\n└─ s2  5 us"),
        ([[span(1)], [span(1, end="7000")]], "s1  7 us"),  # written twice
        ([[{"name": "bare"}, span(1)]], "s1  5 us\n\nbare  0 us"),
        ([[span(1, status={"code": 2, "message": "boom"})]], "s1  5 us  ! boom"),
        ([[span(1, status={"code": "STATUS_CODE_ERROR", "message": "boom"})]], "s1  5 us  ! boom"),
        ([[span(1, attributes=[{"key": "k", "value": {"arrayValue": {}}}, {"key": "none"}])]], "s1  5 us"),
    ],
)
def test_spans_of_other_programs_are_shown(tmp_path, requests, tree):
    path = tmp_path / "trace.json"
    lines = [json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}) for spans in requests]
    path.write_text("\n\n".join(lines), encoding="utf-8")
    assert render_tree(path) == tree
    assert slowest_stage(path) is None


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "7",
        '{"resour',
        '{"resourceSpans": 5}',
        '{"resourceSpans": [7]}',
        '{"resourceSpans": [{"scopeSpans": [{"spans": ["x"]}]}]}',
        '{"resourceSpans": [{"scopeSpans": [{"spans": [{"startTimeUnixNano": "x"}]}]}]}',
        '{"resourceSpans": [{"scopeSpans": [{"spans": [{"attributes": [{}]}]}]}]}',
    ],
)
def test_file_that_is_not_a_trace_is_rejected_by_line(tmp_path, line):
    path = tmp_path / "trace.json"
    path.write_text('{"resourceSpans": []}\n' + line, encoding="utf-8")
    with pytest.raises(DataError) as raised:
        render_tree(path)
    assert raised.value.field == f"{path}:2"


def test_unreadable_file_is_rejected(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        render_tree(tmp_path / "missing.json")
    with pytest.raises(DataError, match="cannot be read"):
        render_tree("a\0b")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        render_tree(tmp_path / "binary")
