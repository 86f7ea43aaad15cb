# SPDX-License-Identifier: Apache-2.0
"""Writes a run as a timeline for ui.perfetto.dev and chrome://tracing: what each worker did, and when.

    result = pipeline.run(…)
    to_perfetto(result, "timeline.json.gz")

The file is JSON in the Trace Event Format. Both viewers read it, also gzipped, without a server.
"""

from __future__ import annotations

import gzip
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from curator_core import ConfigurationError, DataError
from curator_otel.__about__ import __version__
from curator_otel.config import as_path
from curator_otel.timeline import Timeline, timeline_of_spans, timeline_of_tasks
from curator_otel.tracefile import read_trace

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from curator_core import Task
    from curator_otel.timeline import Slice, Track

__all__ = ["Drawn", "to_perfetto"]

_COLOURS = {"failed": "terrible", "retried": "bad"}  # names that the format reserves
_LINK = {"name": "made the inputs of", "cat": "link"}


class Drawn(NamedTuple):
    """What `to_perfetto` wrote.

    Attributes:
        events: Events in the file: slices, marks, links and names of tracks.
        batches: Batches that it shows.
        left_out: Batches that are known of and not shown: they do not say when they began, or the trace has no
            span of theirs.
    """

    events: int
    batches: int
    left_out: int


def to_perfetto(
    source: Iterable[Task[Any]] | str | os.PathLike[str],
    path: str | os.PathLike[str],
) -> Drawn:
    """Write a timeline: a process for each node with a track for each of its workers, and slices for batches.

    From a trace there are also the workers' set-ups, errors, links between batches, and a process for each run
    with tracks of its stages. From a result there is what its tasks know: batches that gave no task are missing,
    and so is all that has no time, as set-ups.

    Slices on a track nest or are apart, as viewers demand. Where a worker's overlap, as those of a source that
    works while others wait for it, the track has a second line.

    Args:
        source: A `RunResult` or other finished tasks, or the path of a trace that ``configure(json_file=…)`` wrote.
        path: The file to write; gzipped where its name ends in ``.gz``. Directories are made.

    Returns:
        What was written.

    Raises:
        ConfigurationError: There is nothing to draw in the source, or the file cannot be written.
    """
    timeline = _timeline(source)
    target = _target(source, path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _open(target) as file:
            events = _write(timeline, file)
    except OSError as exc:
        raise ConfigurationError(
            f"the file cannot be written: {exc.strerror or exc}",
            field="path",
            given=str(target),
            expected="a path that can be written",
            hint="choose another directory, or make this one writable",
        ) from exc
    return Drawn(events, timeline.batches, timeline.left_out)


# --- what was given -----------------------------------------------------------------------------------------


def _timeline(source: Any) -> Timeline:
    if isinstance(source, str | os.PathLike):
        timeline = _of_file(Path(source))
    elif isinstance(source, Iterable):
        timeline = timeline_of_tasks(_checked(source))
    else:
        raise _bad_source("source", source)
    if not timeline.slices:
        raise ConfigurationError(
            "there is nothing to draw",
            field="source",
            given=str(source) if isinstance(source, str | os.PathLike) else source,
            expected="a trace with spans, or tasks whose stage_perf says when their batches began",
            hint=_why_empty(timeline),
        )
    return timeline


def _of_file(path: Path) -> Timeline:
    try:
        return timeline_of_spans(read_trace(path))
    except DataError as exc:
        raise ConfigurationError(
            exc.message, field=exc.field, given=str(path), expected=exc.expected, hint=exc.hint
        ) from exc


def _checked(tasks: Iterable[Any]) -> Iterator[Any]:
    for number, task in enumerate(tasks):
        if not hasattr(task, "stage_perf"):
            raise _bad_source(f"source[{number}]", task)
        yield task


def _bad_source(field: str, given: Any) -> ConfigurationError:
    return ConfigurationError(
        "this is neither a result nor a trace",
        field=field,
        given=given,
        expected="a RunResult, or the path of a trace file",
        hint="give what Pipeline.run returned, or the path that configure(json_file=…) was given",
    )


def _why_empty(timeline: Timeline) -> str:
    if timeline.left_out:
        return f"none of its {timeline.left_out:,} batches says when it began, so there is no place for them"
    return "give a run's result that has tasks, or a trace after it was flushed; a file of metrics has no spans"


def _target(source: Any, path: Any) -> Path:
    target = as_path(path)
    if target is None:
        raise ConfigurationError(
            "not a path", field="path", given=path, expected="a path", hint='as "timeline.json.gz"'
        )
    if isinstance(source, str | os.PathLike) and target.exists() and target.samefile(source):
        raise ConfigurationError(
            "the timeline would overwrite the trace it is made from",
            field="path",
            given=str(target),
            expected="another path than the trace's",
            hint="the trace has more in it than the timeline: keep it",
        )
    return target


# --- the file -----------------------------------------------------------------------------------------------


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "wt", compresslevel=6, encoding="utf-8")
    return path.open("w", encoding="utf-8")


def _write(timeline: Timeline, file: TextIO) -> int:
    """Write the file, an event a line; the number of events."""
    began = min(one.start for one in timeline.slices)
    about = {"start_unix_ns": str(began), "left_out": timeline.left_out, "made_by": f"curator-otel {__version__}"}
    file.write(f'{{"displayTimeUnit": "ms", "otherData": {json.dumps(about)}, "traceEvents": [')
    number = 0
    for number, event in enumerate(_events(timeline.slices, began), 1):
        file.write(f"{',' if number > 1 else ''}\n{json.dumps(event)}")
    file.write("\n]}\n")
    return number


def _events(slices: list[Slice], began: int) -> Iterator[dict[str, Any]]:
    """The events, track by track. On each, a slice comes before those that it holds, and its links right after it.

    A link is bound to the innermost slice that is open at its time: that of the line before.
    """
    out, into = _links(slices)
    tracks = _Tracks()
    for one in sorted(slices, key=lambda one: (one.track.is_node, one.start, -one.end)):
        place, new = tracks.place(one)
        yield from new
        yield _complete(one, place, began)
        at = {"ts": _microseconds(one.start - began), **place}
        yield from ({"ph": "s", "id": link, **_LINK, **at} for link in out[one.key])
        yield from ({"ph": "f", "bp": "e", "id": link, **_LINK, **at} for link in into[one.key])
        for mark in one.marks:
            when = _microseconds(max(one.start, mark.time) - began)
            yield {"ph": "i", "s": "t", "name": mark.name, "cat": "event", "ts": when, **place, "args": mark.args}


def _complete(one: Slice, place: dict[str, int], began: int) -> dict[str, Any]:
    event = {
        "ph": "X",
        "name": one.name,
        "cat": one.category,
        "ts": _microseconds(one.start - began),
        "dur": _microseconds(one.end - one.start),
        **place,
        "args": one.args,
    }
    if one.state in _COLOURS:
        event["cname"] = _COLOURS[one.state]
    return event


def _links(slices: list[Slice]) -> tuple[dict[Hashable, list[int]], dict[Hashable, list[int]]]:
    """Numbers of the links that leave slices, and of those that lead to them."""
    there = {one.key for one in slices}
    out: dict[Hashable, list[int]] = defaultdict(list)
    into: dict[Hashable, list[int]] = defaultdict(list)
    numbers = count(1)
    for one in slices:
        for key in one.follows:
            if key in there:
                number = next(numbers)
                out[key].append(number)
                into[one.key].append(number)
    return out, into


def _microseconds(ns: int) -> float:
    """As the format has times; never so rounded that a viewer which cuts to nanoseconds lands on the one before.

    A slice that ended a nanosecond after the one around it would be dropped.
    """
    us = ns / 1000
    return us if int(us * 1000) >= ns else math.nextafter(us, math.inf)


class _Tracks:
    """The tracks of the file, numbered as they are met."""

    def __init__(self) -> None:
        self._processes: dict[str, int] = {}
        self._lines: dict[Track, list[_Line]] = defaultdict(list)
        self._numbers = count(1)

    def place(self, one: Slice) -> tuple[dict[str, int], list[dict[str, Any]]]:
        """Where a slice goes, and the events that name the places which are new. Slices come in order of time."""
        track, new = one.track, []
        group = f"{track.is_node} {track.group_key}"
        pid = self._processes.get(group)
        if pid is None:
            pid = self._processes[group] = next(self._numbers)
            new = _names("process", {"pid": pid, "tid": pid}, track.group)
        lines = self._lines[track]
        line = next((line for line in lines if line.takes(one)), None)
        if line is None:
            line = _Line(next(self._numbers))
            lines.append(line)
            name = track.name if len(lines) == 1 else f"{track.name} ({len(lines)})"
            new += _names("thread", {"pid": pid, "tid": line.number}, name)
        line.open.append(one.end)
        return {"pid": pid, "tid": line.number}, new


def _names(kind: str, place: dict[str, int], name: str) -> list[dict[str, Any]]:
    about = {"ts": 0, **place}
    position = place["pid" if kind == "process" else "tid"]
    return [
        {"ph": "M", "name": f"{kind}_name", **about, "args": {"name": name}},
        {"ph": "M", "name": f"{kind}_sort_index", **about, "args": {"sort_index": position}},
    ]


class _Line:
    """A line of slices that nest or are apart.

    Attributes:
        number: Of the line, in the file.
        open: Ends of the slices that hold the time that was reached, the outermost first.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.open: list[int] = []

    def takes(self, one: Slice) -> bool:
        """Whether a slice fits in, which begins no earlier than any before it."""
        while self.open and self.open[-1] <= one.start:
            self.open.pop()
        return not self.open or one.end <= self.open[-1]
