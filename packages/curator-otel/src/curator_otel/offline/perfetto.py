# SPDX-License-Identifier: Apache-2.0
"""Writes a run as a timeline for ui.perfetto.dev and chrome://tracing, with the activity of each worker over time.

    result = pipeline.run(…)
    to_perfetto(result, "timeline.json.gz")

The file is JSON in the Trace Event Format, optionally gzipped. Both viewers read it without a server.
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
from curator_core.observers import local_path
from curator_otel.__about__ import __version__
from curator_otel.offline.timeline import Timeline, timeline_of_spans, timeline_of_tasks
from curator_otel.offline.trace_file import read_trace

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from curator_core import Task
    from curator_otel.offline.timeline import Slice, Track

__all__ = ["Drawn", "to_perfetto"]

_COLOURS = {"failed": "terrible", "retried": "bad"}  # reserved names of the format
_LINK = {"name": "made the inputs of", "cat": "link"}


class Drawn(NamedTuple):
    """The result of `to_perfetto`.

    Attributes:
        events: The number of events in the file: slices, marks, links, and names of tracks.
        batches: The number of batches that the file shows.
        left_out: The number of known batches that the file does not show, because they have no start time, or no span
            in the trace.
    """

    events: int
    batches: int
    left_out: int


def to_perfetto(
    source: Iterable[Task[Any]] | str | os.PathLike[str],
    path: str | os.PathLike[str],
) -> Drawn:
    """Write a timeline: a process for each node, with a track for each of its workers, and slices for batches.

    The timeline of a trace also has the workers' setups, errors, links between batches, and a process for each run with
    tracks of its stages. The timeline of a result has only the statistics of its tasks: batches without output tasks
    are missing, and so is everything without a time, such as setups.

    Slices of a track are nested or disjoint, as viewers require. If the slices of a worker overlap, such as those of a
    source that works while others wait for it, the track gets a second line.

    Args:
        source: A `RunResult` or other finished tasks, or the path of a trace that ``configure(json_file=…)`` wrote.
        path: The file to write; gzipped if its name ends in ``.gz``. Missing directories are created.

    Returns:
        The numbers of events and batches that were written.

    Raises:
        ConfigurationError: The source has nothing to draw, or the file cannot be written.
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
            expected="a writable path",
            hint="choose another directory, or make this one writable",
        ) from exc
    return Drawn(events, timeline.batches, timeline.left_out)


# --- the source ---------------------------------------------------------------------------------------------


def _timeline(source: Any) -> Timeline:
    if isinstance(source, str | os.PathLike):
        timeline = _of_file(Path(source))
    elif isinstance(source, Iterable):
        timeline = timeline_of_tasks(_checked(source))
    else:
        raise _bad_source("source", source)
    if not timeline.slices:
        raise ConfigurationError(
            "nothing to draw",
            field="source",
            given=str(source) if isinstance(source, str | os.PathLike) else source,
            expected="a trace with spans, or tasks whose stage_perf has start times",
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
        "neither a result nor a trace file",
        field=field,
        given=given,
        expected="a RunResult, or the path of a trace file",
        hint="pass the result of Pipeline.run, or the path that you passed to configure(json_file=…)",
    )


def _why_empty(timeline: Timeline) -> str:
    if timeline.left_out:
        return f"pass tasks with start times: none of the {timeline.left_out:,} batches has one"
    return "pass a result that has tasks, or a trace after it was flushed; a file of metrics has no spans"


def _target(source: Any, path: Any) -> Path:
    target = local_path(path, "path")
    if isinstance(source, str | os.PathLike) and target.exists() and target.samefile(source):
        raise ConfigurationError(
            "the timeline would overwrite the trace it is made from",
            field="path",
            given=str(target),
            expected="a path other than that of the trace",
            hint="pass another path: the trace has more information than the timeline",
        )
    return target


# --- the file -----------------------------------------------------------------------------------------------


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "wt", compresslevel=6, encoding="utf-8")
    return path.open("w", encoding="utf-8")


def _write(timeline: Timeline, file: TextIO) -> int:
    """Write the file, with one event per line; return the number of events."""
    began = min(one.start for one in timeline.slices)
    about = {"start_unix_ns": str(began), "left_out": timeline.left_out, "made_by": f"curator-otel {__version__}"}
    file.write(f'{{"displayTimeUnit": "ms", "otherData": {json.dumps(about)}, "traceEvents": [')
    number = 0
    for number, event in enumerate(_events(timeline.slices, began), 1):
        file.write(f"{',' if number > 1 else ''}\n{json.dumps(event)}")
    file.write("\n]}\n")
    return number


def _events(slices: list[Slice], began: int) -> Iterator[dict[str, Any]]:
    """Yield the events. A slice comes before the slices that it encloses, and its links come directly after it.

    Viewers bind a link to the innermost slice that is open at its time, which is the slice directly before it.
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
    """Return the numbers of outgoing links and of incoming links, by key of the slice."""
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
    """Convert to microseconds, the unit of the format, rounded so that truncating to nanoseconds gives the same time.

    A viewer would drop a slice that ends a nanosecond after the slice that encloses it.
    """
    us = ns / 1000
    return us if int(us * 1000) >= ns else math.nextafter(us, math.inf)


class _Tracks:
    """The tracks of the file, numbered in the order of their first slices."""

    def __init__(self) -> None:
        self._processes: dict[str, int] = {}
        self._lines: dict[Track, list[_Line]] = defaultdict(list)
        self._numbers = count(1)

    def place(self, one: Slice) -> tuple[dict[str, int], list[dict[str, Any]]]:
        """Return the place of a slice, and events that name new places. Call this with slices in order of time."""
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
    """A line of slices that are nested or disjoint.

    Attributes:
        number: The number of the line in the file.
        open: The ends of the slices that are open at the current time, the outermost first.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.open: list[int] = []

    def takes(self, one: Slice) -> bool:
        """Whether a slice fits into the line; it must not begin before any earlier slice."""
        while self.open and self.open[-1] <= one.start:
            self.open.pop()
        return not self.open or one.end <= self.open[-1]
