# SPDX-License-Identifier: Apache-2.0
"""Reads trace files that ``configure(json_file=…)`` writes: OTLP as JSON, one request per line.

This does not need OpenTelemetry.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from curator_core import DataError
from curator_otel import conventions as names

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["FileEvent", "FileSpan", "SpanKey", "read_trace"]

_ERROR = (2, "STATUS_CODE_ERROR")


class SpanKey(NamedTuple):
    """The key of a span: its ids in hex. The span id is empty if there is no span."""

    trace_id: str
    span_id: str


class FileEvent(NamedTuple):
    """An event of a span.

    Attributes:
        name: Its name.
        time: Its time, in nanoseconds since the Unix epoch.
        attributes: Its attributes.
    """

    name: str
    time: int
    attributes: dict[str, Any]


@dataclass(slots=True)
class FileSpan:
    """A span of the file.

    Attributes:
        key: Its ids.
        parent: The ids of its parent.
        name: Its name.
        start: When it began, in nanoseconds since the Unix epoch; 0 if unknown.
        end: When it ended, in nanoseconds since the Unix epoch; 0 if unknown.
        attributes: Its attributes.
        failed: Whether its status is an error.
        message: The message of its status.
        links: The spans that it is linked to, which may be missing in the file.
        events: Its events.
        children: Its child spans, in the order of the file.
    """

    key: SpanKey
    parent: SpanKey
    name: str
    start: int
    end: int
    attributes: dict[str, Any]
    failed: bool
    message: str
    links: tuple[SpanKey, ...]
    events: tuple[FileEvent, ...]
    children: list[FileSpan] = field(default_factory=list)

    @property
    def is_stage(self) -> bool:
        """Whether it is the span of a stage, with the stage's totals."""
        has = self.attributes.keys()
        return has >= {names.STAGE_INDEX, names.BATCHES} and names.WINDOW_NUMBER not in has


def read_trace(path: Path) -> list[FileSpan]:
    """Return the spans of a file that have no parent in it, with their descendants, in the order of the file.

    Raises:
        DataError: The file cannot be read, or is not a trace.
    """
    by_key = {span.key: span for span in _spans(path)}  # a span that was written twice counts once
    roots: list[FileSpan] = []
    for span in by_key.values():
        above = by_key.get(span.parent) if span.parent.span_id else None
        (roots if above is None else above.children).append(span)
    return roots


def _spans(path: Path) -> Iterator[FileSpan]:
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            spans = [_span(raw) for raw in _raw_spans(json.loads(line))]
        except (ValueError, TypeError, AttributeError, KeyError) as exc:
            raise DataError(
                "not a trace file",
                field=f"{path}:{number}",
                given=line,
                expected="an OTLP request as JSON on each line",
                hint="if the line is truncated, remove it: the disk was full, or the process was killed",
            ) from exc
        yield from spans


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as exc:  # not UTF-8, or no path at all
        raise DataError(
            f"the trace file cannot be read: {exc}",
            field=str(path),
            expected="a file that configure(json_file=…) wrote",
            hint="flush or shut down the telemetry before reading the file",
        ) from exc


def _raw_spans(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for resource in request.get("resourceSpans", ()):
        for scope in resource.get("scopeSpans", ()):
            yield from scope.get("spans", ())


def _span(raw: dict[str, Any]) -> FileSpan:
    status = raw.get("status") or {}
    trace_id = raw.get("traceId", "")
    return FileSpan(
        key=SpanKey(trace_id, raw.get("spanId", "")),
        parent=SpanKey(trace_id, raw.get("parentSpanId", "")),
        name=raw.get("name", ""),
        start=int(raw.get("startTimeUnixNano", 0)),
        end=int(raw.get("endTimeUnixNano", 0)),
        attributes=_attributes(raw),
        failed=status.get("code") in _ERROR,
        message=status.get("message", ""),
        links=tuple(SpanKey(link.get("traceId", ""), link.get("spanId", "")) for link in raw.get("links", ())),
        events=tuple(
            FileEvent(event.get("name", ""), int(event.get("timeUnixNano", 0)), _attributes(event))
            for event in raw.get("events", ())
        ),
    )


def _attributes(raw: dict[str, Any]) -> dict[str, Any]:
    return {pair["key"]: _value(pair.get("value") or {}) for pair in raw.get("attributes", ())}


def _value(value: dict[str, Any]) -> Any:
    for kind, shown in value.items():
        if kind == "intValue":
            return int(shown)
        if kind == "arrayValue":
            return [_value(item) for item in shown.get("values", ())]
        return shown
    return None
