# SPDX-License-Identifier: Apache-2.0
"""Timelines of traces with third-party spans, and of incomplete traces."""

from __future__ import annotations

import pytest

T0 = 1_700_000_000 * 1_000_000_000


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


def test_killed_run_is_drawn_up_to_the_last_known_state(draw, file_of):
    batch = span(5, "process_batch s", 20, 30, parent=9, curator_batch_id="b", curator_stage_name="s")
    viewer = draw(file_of(span(1, "run started p", 1, 1, curator_run_id="r"), batch))
    assert viewer.tracks() == {("run started p", "run started p"), ("node local", "local")}
    window = span(2, "window s", 1, 9, parent=9, curator_stage_name="s") | {
        "attributes": [{"key": "curator.stage.index", "value": {"intValue": "3"}}]
    }
    (event,) = draw(file_of(window)).slices
    assert (event["process"], event["thread"]) == ("trace " + "a" * 32, "03 ")


@pytest.mark.parametrize("step", [1, -1])
def test_attributes_of_a_batch_in_two_traces_are_joined(draw, file_of, step):
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


def test_links_to_spans_in_other_files_are_omitted(draw, file_of):
    path = file_of(span(1, "a", 0, 10), span(2, "b", 20, 30, links=[1, 7]), span(3, "c", 20, 40, trace="b", links=[1]))
    assert [(a["name"], b["name"]) for a, b in draw(path).links] == [("a", "b")]


def test_links_refer_to_the_outer_slice(draw, file_of):
    path = file_of(
        span(1, "outer", 1, 100), span(2, "inner", 1, 100, parent=1), span(3, "next", 200, 300, links=[1, 2])
    )
    assert {(a["name"], b["name"]) for a, b in draw(path).links} == {("outer", "next"), ("inner", "next")}


def test_spans_without_a_start_are_omitted_and_negative_durations_are_zero(draw, file_of):
    viewer = draw(file_of(span(1, "never", 0, 5) | {"startTimeUnixNano": "0"}, span(2, "early", 10, 5)))
    assert [(event["name"], event["dur"]) for event in viewer.slices] == [("early", 0)]
