# SPDX-License-Identifier: Apache-2.0
"""Trace files, read back."""

from __future__ import annotations

import json

import pytest

from curator_core import DataError
from curator_otel import configure
from curator_otel.tracefile import FileEvent, SpanKey, read_trace


def raw(number, parent="", **fields):
    return {"traceId": "a" * 32, "spanId": f"{number:016x}", "parentSpanId": parent, "name": f"s{number}", **fields}


@pytest.fixture
def write(tmp_path):
    """Writes spans as requests, a list a line."""

    def write(*requests):
        path = tmp_path / "trace.json"
        lines = [json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}) for spans in requests]
        path.write_text("\n\n".join(lines), encoding="utf-8")
        return path

    return write


def test_what_the_exporter_wrote_is_read_back(tmp_path):
    path = tmp_path / "trace.json"
    with configure(json_file=path, set_global=False) as telemetry:
        tracer = telemetry.tracer_provider.get_tracer("t")
        linked = tracer.start_span("linked", start_time=5)
        linked.end(end_time=6)
        with tracer.start_as_current_span("above", start_time=1, end_on_exit=False) as above:
            attributes = {"i": 7, "d": 0.5, "b": True, "s": "x", "l": ["x", "y"]}
            span = tracer.start_span("below", links=[], attributes=attributes, start_time=2)
            span.add_link(linked.get_span_context())
            span.add_event("happened", {"why": "because"}, timestamp=3)
            span.end(end_time=4)
        above.end(end_time=9)
    first, top = read_trace(path)
    (below,) = top.children
    assert (first.name, top.name, below.name) == ("linked", "above", "below")
    assert (below.start, below.end, below.parent) == (2, 4, top.key)
    assert below.attributes == attributes
    assert below.links == (first.key,)
    assert below.events == (FileEvent("happened", 3, {"why": "because"}),)
    assert not below.failed


def test_spans_find_their_parents_in_other_requests_and_later_ones(write):
    path = write([raw(2, parent=f"{1:016x}")], [raw(1), raw(3, parent="f" * 16)])
    assert [root.name for root in read_trace(path)] == ["s1", "s3"]
    assert [child.name for child in read_trace(path)[0].children] == ["s2"]


def test_equal_ids_in_two_traces_are_two_spans(write):
    path = write([raw(1), raw(1) | {"traceId": "b" * 32}, raw(2, parent=f"{1:016x}") | {"traceId": "b" * 32}])
    first, second = read_trace(path)
    assert (first.children, [child.name for child in second.children]) == ([], ["s2"])


def test_a_span_that_was_written_again_counts_once(write):
    (only,) = read_trace(write([raw(1)], [raw(1, endTimeUnixNano="7")]))
    assert only.end == 7


def test_spans_without_ids_are_roots(write):
    assert len(read_trace(write([{"name": "a"}, raw(1)]))) == 2
    assert read_trace(write([{}]))[0].key == SpanKey("", "")


@pytest.mark.parametrize("code", [2, "STATUS_CODE_ERROR"])
def test_both_spellings_of_an_error(write, code):
    (span,) = read_trace(write([raw(1, status={"code": code, "message": "boom"})]))
    assert (span.failed, span.message) == (True, "boom")


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "7",
        '{"resourceSpans": 5}',
        '{"resourceSpans": [7]}',
        '{"resourceSpans": [{"scopeSpans": [{"spans": ["x"]}]}]}',
        '{"resourceSpans": [{"scopeSpans": [{"spans": [{"startTimeUnixNano": "x"}]}]}]}',
        '{"resourceSpans": [{"scopeSpans": [{"spans": [{"attributes": [{}]}]}]}]}',
    ],
)
def test_a_line_that_is_no_trace_is_refused_by_its_number(tmp_path, line):
    path = tmp_path / "trace.json"
    path.write_text('{"resourceSpans": []}\n' + line, encoding="utf-8")
    with pytest.raises(DataError, match="this is no trace") as raised:
        read_trace(path)
    assert raised.value.field == f"{path}:2"


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_trace(tmp_path / "missing.json")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        read_trace(tmp_path / "binary")
