# SPDX-License-Identifier: Apache-2.0
"""Renders a trace file as a text tree, for machines without a trace viewer.

This reads files that ``configure(json_file=…)`` writes: OTLP as JSON, one request per line. It does not need
OpenTelemetry.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from curator_core.observers import Verdict
from curator_otel import conventions as names
from curator_otel.offline.trace_file import read_trace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import PathLike

    from curator_otel.offline.trace_file import FileSpan

__all__ = ["render_tree", "slowest_stage"]

_BARS = "▁▂▃▄▅▆▇█"


def render_tree(path: str | PathLike[str], *, max_children: int = 6) -> str:
    """Return the traces of a file as text: durations, failures, and the slowest stage.

    Args:
        path: The file.
        max_children: How many spans to show below a stage: failed ones first, then the longest.

    Raises:
        DataError: The file cannot be read, or is not a trace.
    """
    blocks = []
    roots = _read(Path(path))
    details = [root for root in roots if names.WINDOW_NUMBER in root.attributes]
    for root in roots:
        if root in details:
            continue
        lines = list(_lines(root, max_children))
        slowest = root.attributes.get(names.SLOWEST_STAGE)
        if slowest:
            took = {str(stage.attributes.get(names.STAGE_NAME)): _in_code(stage) for stage in root.children}
            seconds, whole = took.get(slowest, 0.0), sum(took.values())
            share = f", {seconds / whole:.0%} of the time in all stages" if whole else ""
            lines.append(f"slowest stage: {slowest}, {_duration(seconds)} in its code{share}")
        lines += _verdict(root)
        blocks.append("\n".join(lines))
    if details:
        batches = sum(len(root.children) for root in details)
        blocks.append(f"in separate traces: {batches:,} batches in {len(details):,} windows")
    return "\n\n".join(blocks) if blocks else "no spans"


def _verdict(root: FileSpan) -> list[str]:
    known = root.attributes
    if names.BOTTLENECK_KIND not in known:
        return []  # a replayed run, or a trace of another program
    verdict = Verdict(
        kind=known[names.BOTTLENECK_KIND],
        stage=known.get(names.BOTTLENECK_STAGE, ""),
        reason=known.get(names.BOTTLENECK_REASON, ""),
        advice=known.get(names.BOTTLENECK_ADVICE, ""),
    )
    return [str(verdict)]


def slowest_stage(path: str | PathLike[str]) -> str | None:
    """Return the stage that spent the most time in its code, in the last run of a file; None if there is no run.

    Raises:
        DataError: The file cannot be read, or is not a trace.
    """
    found = [root.attributes.get(names.SLOWEST_STAGE) for root in _read(Path(path))]
    return next((str(name) for name in reversed(found) if name), None)


def _read(path: Path) -> list[FileSpan]:
    """Return the root spans of a file, with their children sorted: stages by position, others by start."""
    roots = read_trace(path)
    ended = {root.key.trace_id for root in roots if names.STAGES in root.attributes}
    return _in_order([root for root in roots if not (_says_started(root) and root.key.trace_id in ended)])


def _in_order(spans: list[FileSpan]) -> list[FileSpan]:
    for span in spans:
        span.children = _in_order([child for child in span.children if not _says_started(child)])
    return sorted(spans, key=_place)


def _place(span: FileSpan) -> tuple[int, int, int]:
    """Return the sort key of a span: stages by position, because they overlap; all others by time."""
    return (span.attributes[names.STAGE_INDEX] if span.is_stage else -1, span.start, -span.end)


def _says_started(span: FileSpan) -> bool:
    return span.attributes.get(names.RUN_STATE) == "started"


# --- drawing ------------------------------------------------------------------------------------------------


def _lines(span: FileSpan, max_children: int, depth: int = 0) -> Iterator[str]:
    yield _describe(span)
    windows = [child for child in span.children if names.WINDOW_NUMBER in child.attributes]
    others = [child for child in span.children if names.WINDOW_NUMBER not in child.attributes]
    # All stages are shown; below them, a sample is enough.
    shown = others if depth == 0 else _choose(others, max_children)
    hidden = "; ".join(filter(None, (_windows(windows), _hidden(span, others, shown))))
    for number, child in enumerate(shown):
        last = number == len(shown) - 1 and not hidden
        for row, line in enumerate(_lines(child, max_children, depth + 1)):
            lead = ("└─ " if last else "├─ ") if row == 0 else ("   " if last else "│  ")
            yield lead + line
    if hidden:
        yield f"└─ {hidden}"


def _choose(spans: list[FileSpan], most: int) -> list[FileSpan]:
    if len(spans) <= most:
        return spans
    ranked = sorted(spans, key=lambda span: (not span.failed, -_seconds(span)))[:most]
    chosen = {id(span) for span in ranked}
    return [span for span in spans if id(span) in chosen]


def _windows(windows: list[FileSpan]) -> str:
    """Show how busy a stage was over time: one bar for each window, as high as its workers were busy in it."""
    if not windows:
        return ""
    busy = [_in_code(window) / (_seconds(window) or 1) for window in windows]
    highest = max(busy) or 1
    bars = "".join(_BARS[round(height / highest * (len(_BARS) - 1))] for height in busy)
    return f"{len(windows)} windows, activity: {bars}"


def _hidden(span: FileSpan, others: list[FileSpan], shown: list[FileSpan]) -> str:
    parts = []
    if len(shown) < len(others):
        chosen = {id(child) for child in shown}
        rest: dict[str, list[float]] = defaultdict(list)
        for child in others:
            if id(child) not in chosen:
                rest[child.name].append(_seconds(child))
        parts += [f"{len(times):,} more {name}, {_duration(sum(times))} in all" for name, times in rest.items()]
    left_out = span.attributes.get(names.SPANS_LEFT_OUT, 0)
    if left_out and names.STAGE_INDEX in span.attributes:
        parts.append(f"{left_out:,} not traced, to keep the limit")
    return "; ".join(parts)


def _describe(span: FileSpan) -> str:
    text = f"{span.name}  {_duration(_seconds(span))}"
    attributes = span.attributes
    if _says_started(span):
        text = f"{span.name}  (still running, or its driver was killed)"
    if span.is_stage:
        batches = attributes[names.BATCHES]
        facts = [f"{batches:,} batch{'es' * (batches != 1)}"]
        facts += [
            f"{attributes[name]:,} {word}"
            for name, word in _STAGE_FACTS
            if attributes.get(name) or (attributes.get(name) == 0 and word in ("in", "out"))
        ]
        facts.append(f"{_duration(_in_code(span))} in its code")
        text += f"  ({', '.join(facts)})"
    if span.failed:
        first = span.message.splitlines()[0] if span.message else ""
        kind = str(attributes.get(names.ERROR_TYPE, ""))
        text += f"  ! {': '.join(filter(None, (kind, first if first != kind else '')))}"
    return text


_STAGE_FACTS = (
    (names.TASKS_IN, "in"),
    (names.TASKS_OUT, "out"),
    (names.TASKS_FILTERED, "filtered"),
    (names.TASKS_FAILED, "failed"),
    (names.TASKS_MERGED, "merged"),
    (names.BATCHES_RETRIED, "retried"),
)


def _in_code(span: FileSpan) -> float:
    return float(span.attributes.get(names.PROCESS_TIME, 0))


def _seconds(span: FileSpan) -> float:
    return (span.end - span.start) / 1e9


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
