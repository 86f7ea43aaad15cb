# SPDX-License-Identifier: Apache-2.0
"""Shows a trace file as a tree of text, for people on machines with no trace viewer.

It reads what ``configure(json_file=…)`` writes: OTLP as JSON, a request a line. It needs no OpenTelemetry.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curator_core.errors import DataError
from curator_core.verdict import Verdict
from curator_otel import conventions as names

if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import PathLike

__all__ = ["render_tree", "slowest_stage"]

_ERROR = 2  # STATUS_CODE_ERROR
_STARTED = names.STARTED_SPAN.format(pipeline="")
_BARS = "▁▂▃▄▅▆▇█"


def render_tree(path: str | PathLike[str], *, max_children: int = 6) -> str:
    """The traces in a file, as text: what took how long, what failed, and the slowest stage.

    Args:
        path: The file.
        max_children: How many spans to show below a stage: those that failed, then the longest.

    Raises:
        DataError: The file cannot be read, or is no trace.
    """
    blocks = []
    for root in _read(Path(path)):
        lines = list(_lines(root, max_children))
        slowest = root.attributes.get(names.SLOWEST_STAGE)
        if slowest:
            seconds = float(root.attributes.get(names.SLOWEST_TIME, 0))
            whole = sum(float(stage.attributes.get(names.STAGE_PROCESS_TIME, 0)) for stage in root.children)
            share = f", {seconds / whole:.0%} of the time in all stages" if whole else ""
            lines.append(f"slowest stage: {slowest}, {_duration(seconds)} in its code{share}")
        lines += _verdict(root)
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) if blocks else "no spans"


def _verdict(root: _Span) -> list[str]:
    known = root.attributes
    if names.BOTTLENECK_KIND not in known:
        return []  # replayed, or of another program
    verdict = Verdict(
        kind=known[names.BOTTLENECK_KIND],
        stage=known.get(names.BOTTLENECK_STAGE, ""),
        reason=known.get(names.BOTTLENECK_REASON, ""),
        advice=known.get(names.BOTTLENECK_ADVICE, ""),
    )
    return [str(verdict)]


def slowest_stage(path: str | PathLike[str]) -> str | None:
    """The stage that spent most time in its code, in the last run of a file; None where there is no run.

    Raises:
        DataError: As `render_tree`.
    """
    found = [root.attributes.get(names.SLOWEST_STAGE) for root in _read(Path(path))]
    return next((str(name) for name in reversed(found) if name), None)


@dataclass(slots=True)
class _Span:
    """A span of the file."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    start: int
    end: int
    attributes: dict[str, Any]
    failed: bool
    message: str
    children: list[_Span] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return (self.end - self.start) / 1e9


# --- reading ------------------------------------------------------------------------------------------------


def _read(path: Path) -> list[_Span]:
    """The spans of a file without a parent in it, each with its children: stages in order, the rest oldest first."""
    spans = (_span(raw) for request in _requests(path) for raw in _raw_spans(request))
    by_id = {span.span_id: span for span in spans}  # what `recover` wrote again counts once
    ended = {span.trace_id for span in by_id.values() if names.RUN_STAGES in span.attributes}
    roots: list[_Span] = []
    for span in sorted(by_id.values(), key=_place):
        if _says_started(span) and span.trace_id in ended:
            continue
        above = by_id.get(span.parent_id)
        (roots if above is None else above.children).append(span)
    return roots


def _says_started(span: _Span) -> bool:
    return span.name.startswith(_STARTED)


def _place(span: _Span) -> tuple[int, int, int]:
    """Stages by their position, since they overlap; everything else by time."""
    is_stage = span.name.startswith(f"{span.attributes.get(names.STAGE_INDEX, -1):02d} ")
    return (span.attributes[names.STAGE_INDEX] if is_stage else -1, span.start, -span.end)


def _requests(path: Path) -> Iterator[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(
            f"the trace file cannot be read: {exc}",
            field=str(path),
            expected="a file that configure(json_file=…) wrote",
            hint="flush or shut down the telemetry before you read it",
        ) from exc
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            request = json.loads(line)
        except ValueError:
            request = None
        if not isinstance(request, dict):
            raise DataError(
                "this is no trace",
                field=f"{path}:{number}",
                given=line,
                expected="an OTLP request as JSON on each line",
                hint="a line that breaks off means that the disk was full or the process was killed",
            )
        yield request


def _raw_spans(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for resource in request.get("resourceSpans", ()):
        for scope in resource.get("scopeSpans", ()):
            yield from scope.get("spans", ())


def _span(raw: dict[str, Any]) -> _Span:
    status = raw.get("status") or {}
    return _Span(
        trace_id=raw.get("traceId", ""),
        span_id=raw.get("spanId", ""),
        parent_id=raw.get("parentSpanId", ""),
        name=raw.get("name", ""),
        start=int(raw.get("startTimeUnixNano", 0)),
        end=int(raw.get("endTimeUnixNano", 0)),
        attributes={pair["key"]: _value(pair.get("value") or {}) for pair in raw.get("attributes", ())},
        failed=status.get("code") in (_ERROR, "STATUS_CODE_ERROR"),
        message=status.get("message", ""),
    )


def _value(value: dict[str, Any]) -> Any:
    for kind, shown in value.items():
        if kind == "intValue":
            return int(shown)
        if kind == "arrayValue":
            return [_value(item) for item in shown.get("values", ())]
        return shown
    return None


# --- drawing ------------------------------------------------------------------------------------------------


def _lines(span: _Span, max_children: int, depth: int = 0) -> Iterator[str]:
    yield _describe(span)
    windows = [child for child in span.children if names.WINDOW_BATCHES in child.attributes]
    others = [child for child in span.children if names.WINDOW_BATCHES not in child.attributes]
    # Stages are shown all; below them, a sample says as much.
    shown = others if depth == 0 else _choose(others, max_children)
    hidden = "; ".join(filter(None, (_windows(windows), _hidden(span, others, shown))))
    for number, child in enumerate(shown):
        last = number == len(shown) - 1 and not hidden
        for row, line in enumerate(_lines(child, max_children, depth + 1)):
            lead = ("└─ " if last else "├─ ") if row == 0 else ("   " if last else "│  ")
            yield lead + line
    if hidden:
        yield f"└─ {hidden}"


def _choose(spans: list[_Span], most: int) -> list[_Span]:
    if len(spans) <= most:
        return spans
    ranked = sorted(spans, key=lambda span: (not span.failed, -span.seconds))[:most]
    chosen = {id(span) for span in ranked}
    return [span for span in spans if id(span) in chosen]


def _windows(windows: list[_Span]) -> str:
    """How busy a stage was as time went on: a bar for each window, as high as its workers were at work in it."""
    if not windows:
        return ""
    busy = [float(window.attributes[names.WINDOW_PROCESS_TIME]) / (window.seconds or 1) for window in windows]
    highest = max(busy) or 1
    bars = "".join(_BARS[round(height / highest * (len(_BARS) - 1))] for height in busy)
    return f"{len(windows)} windows, at work: {bars}"


def _hidden(span: _Span, others: list[_Span], shown: list[_Span]) -> str:
    parts = []
    if len(shown) < len(others):
        chosen = {id(child) for child in shown}
        rest: dict[str, list[float]] = defaultdict(list)
        for child in others:
            if id(child) not in chosen:
                rest[child.name].append(child.seconds)
        parts += [f"{len(times):,} more {name}, {_duration(sum(times))} in all" for name, times in rest.items()]
    left_out = span.attributes.get(names.SPANS_LEFT_OUT, 0)
    if left_out and names.STAGE_INDEX in span.attributes:
        parts.append(f"{left_out:,} not traced, to keep the limit")
    return "; ".join(parts)


def _describe(span: _Span) -> str:
    text = f"{span.name}  {_duration(span.seconds)}"
    attributes = span.attributes
    if _says_started(span):
        text = f"{span.name}  (it goes on, or its driver was killed)"
    if names.STAGE_BATCHES in attributes:
        batches = attributes[names.STAGE_BATCHES]
        facts = [f"{batches:,} batch{'es' * (batches != 1)}"]
        facts += [
            f"{attributes[name]:,} {word}"
            for name, word in _STAGE_FACTS
            if attributes.get(name) or (attributes.get(name) == 0 and word in ("in", "out"))
        ]
        facts.append(f"{_duration(float(attributes.get(names.STAGE_PROCESS_TIME, 0)))} in its code")
        text += f"  ({', '.join(facts)})"
    if span.failed:
        first = span.message.splitlines()[0] if span.message else ""
        kind = str(attributes.get(names.ERROR_TYPE, ""))
        text += f"  ! {': '.join(filter(None, (kind, first if first != kind else '')))}"
    return text


_STAGE_FACTS = (
    (names.STAGE_IN, "in"),
    (names.STAGE_OUT, "out"),
    (names.STAGE_FILTERED, "filtered"),
    (names.STAGE_FAILED, "failed"),
    (names.STAGE_RETRIED, "retried"),
)


def _duration(seconds: float) -> str:
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} us"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 60:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
