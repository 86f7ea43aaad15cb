# SPDX-License-Identifier: Apache-2.0
"""A timeline from finished tasks or from a trace: slices on the tracks of workers and stages."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from curator_otel import conventions as names
from curator_otel._trace.attributes import custom_metrics

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Sequence

    from curator_core import StagePerfStats, Task
    from curator_otel.offline.trace_file import FileSpan

__all__ = ["Mark", "Slice", "Timeline", "Track", "timeline_of_spans", "timeline_of_tasks"]

State = Literal["ok", "failed", "retried"]

_LOCAL = "local"  # the name of node and worker for the in-process executor
_ON_TRACK = {names.STAGE_NAME, names.STAGE_INDEX, names.WORKER_ID, names.NODE_ID}  # not repeated on slices
_BY_WORKERS = (names.SETUP_SPAN, names.TEARDOWN_SPAN)
_PREFIX = "curator."


class Track(NamedTuple):
    """A line of slices, in a group of lines.

    Attributes:
        is_node: Whether the group is a node with lines for its workers; otherwise it is a run with lines for its
            stages.
        group_key: The key that identifies the group.
        group: The name of the group.
        name: The name of the line, unique in its group.
    """

    is_node: bool
    group_key: str
    group: str
    name: str


class Mark(NamedTuple):
    """An event at a point in time."""

    name: str
    time: int
    args: dict[str, Any]


@dataclass(slots=True)
class Slice:
    """A period on a track. Times are in nanoseconds since the Unix epoch.

    Attributes:
        key: The key by which other slices refer to it.
        name: Its label.
        category: ``"batch"``, ``"worker"``, ``"stage"``, or ``"run"``.
        track: Its track.
        start: When it began.
        end: When it ended; never before ``start``.
        args: Its attributes.
        state: Its outcome.
        follows: The keys of the slices that it is linked to.
        marks: Its events.
    """

    key: Hashable
    name: str
    category: str
    track: Track
    start: int
    end: int
    args: dict[str, Any]
    state: State = "ok"
    follows: list[Hashable] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)


class Timeline(NamedTuple):
    """The content of a timeline.

    Attributes:
        slices: The slices, in any order.
        batches: How many of them are batches.
        left_out: The number of known batches that have no slice.
    """

    slices: list[Slice]
    batches: int
    left_out: int


# --- from tasks ---------------------------------------------------------------------------------------------


def timeline_of_tasks(tasks: Iterable[Task[Any]]) -> Timeline:
    """Return the timeline of the batches that tasks went through, each once, because its tasks share its statistics."""
    stats: dict[Hashable, StagePerfStats] = {}
    made_by: dict[Hashable, dict[Hashable, None]] = defaultdict(dict)
    for task in tasks:
        before: Hashable = None
        for perf in task.stage_perf:
            key = (perf.stage_name, perf.batch_id, perf.start_time_unix_ns)
            stats.setdefault(key, perf)
            if before is not None:
                made_by[key][before] = None
            before = key
    slices = [_of_batch(key, perf, made_by[key]) for key, perf in stats.items() if perf.start_time_unix_ns]
    return Timeline(slices, len(slices), len(stats) - len(slices))


def _of_batch(key: Hashable, perf: StagePerfStats, made_by: Iterable[Hashable]) -> Slice:
    known = custom_metrics(perf.custom_metrics) | {
        names.BATCH_ID: perf.batch_id,
        names.ITEMS: perf.num_items_processed,
        names.IDLE_TIME: perf.actor_idle_time,
    }
    if perf.startup_time:
        known[names.SETUP_TIME] = perf.startup_time
    return Slice(
        key=key,
        name=perf.stage_name,
        category="batch",
        track=_worker_track(perf.node_id, perf.worker_id),
        start=perf.start_time_unix_ns,
        end=perf.end_time_unix_ns,
        args=_shown(known),
        follows=list(made_by),
    )


def _worker_track(node_id: str, worker_id: str) -> Track:
    node = node_id or _LOCAL
    return Track(is_node=True, group_key=node, group=f"node {node}", name=worker_id or _LOCAL)


def _shown(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes to show: without those that the track already shows, and without our prefix."""
    return {name.removeprefix(_PREFIX): value for name, value in attributes.items() if name not in _ON_TRACK}


# --- from spans ---------------------------------------------------------------------------------------------


def timeline_of_spans(roots: Sequence[FileSpan]) -> Timeline:
    """Return the timeline of spans: on the tracks of workers, stages (also windows), and runs (all other spans).

    Args:
        roots: The spans without a parent, with their descendants.
    """
    groups = _Groups(roots)
    slices: dict[Hashable, Slice] = {}
    known = 0
    again: dict[Hashable, Hashable] = {}  # a batch can be in the run's trace and in a detail trace
    drawn: dict[Hashable, Slice] = {}
    for span, track in _walk(roots, groups):
        if span.is_stage:
            known += span.attributes[names.BATCHES] + span.attributes.get(names.BATCHES_RETRIED, 0)
        if not span.start or groups.is_said_again(span):
            continue
        made = _of_span(span, track)
        same = drawn.setdefault(_identity(span, groups), made)
        if same is not made:
            again[made.key] = same.key
            same.args |= made.args
            same.follows += made.follows
        slices[same.key] = same
    for one in slices.values():
        one.follows = [key for key in dict.fromkeys(again.get(key, key) for key in one.follows) if key in slices]
    batches = sum(one.category == "batch" for one in slices.values())
    return Timeline(list(slices.values()), batches, max(0, known - batches))


class _Groups:
    """The run of each trace, and the name of each run.

    A run can have several traces, and a trace can have several runs.
    """

    def __init__(self, roots: Iterable[FileSpan]) -> None:
        runs: dict[str, set[str]] = defaultdict(set)
        self._ended: set[str] = set()
        for span in _all(roots):
            run_id = span.attributes.get(names.RUN_ID)
            if run_id is not None:
                runs[span.key.trace_id].add(run_id)
            if run_id is not None and names.STAGES in span.attributes:
                self._ended.add(run_id)
        self._runs = {trace_id: next(iter(found)) for trace_id, found in runs.items() if len(found) == 1}
        self._names: dict[str, str] = {}
        for span in sorted(roots, key=lambda root: root.start):
            if names.STAGE_INDEX not in span.attributes:
                self._names.setdefault(self.key(span), span.name)

    def key(self, span: FileSpan) -> str:
        """Return the id of the run if the span's trace has only one run; otherwise the id of the trace."""
        return self._runs.get(span.key.trace_id, span.key.trace_id)

    def is_said_again(self, span: FileSpan) -> bool:
        """Whether the span only says that a run started, and the span of the run itself exists."""
        return span.attributes.get(names.RUN_STATE) == "started" and span.attributes.get(names.RUN_ID) in self._ended

    def track(self, span: FileSpan, name: str = "") -> Track:
        """Return a track of a span's run; the track of the run itself if there is no name."""
        key = self.key(span)
        group = self._names.get(key, f"trace {span.key.trace_id}")
        return Track(is_node=False, group_key=key, group=group, name=name or group)


def _all(roots: Iterable[FileSpan]) -> Iterator[FileSpan]:
    waiting = list(roots)
    while waiting:
        span = waiting.pop()
        yield span
        waiting += span.children


def _walk(roots: Iterable[FileSpan], groups: _Groups) -> Iterator[tuple[FileSpan, Track]]:
    """Yield every span and its track. A span of neither a worker nor a stage is on the track of its parent."""
    waiting = [(span, groups.track(span)) for span in roots]
    while waiting:
        span, above = waiting.pop()
        known = span.attributes
        track = above
        if _is_workers(span):
            track = _worker_track(known.get(names.NODE_ID, ""), known.get(names.WORKER_ID, ""))
        elif names.STAGE_INDEX in known:
            stage = str(known.get(names.STAGE_NAME, ""))
            track = groups.track(span, names.STAGE_SPAN.format(index=known[names.STAGE_INDEX], stage=stage))
        yield span, track
        waiting += [(child, track) for child in span.children]


def _is_workers(span: FileSpan) -> bool:
    known = span.attributes
    return names.WORKER_ID in known or names.BATCH_ID in known or span.name in _BY_WORKERS


def _identity(span: FileSpan, groups: _Groups) -> Hashable:
    """Return a key that is equal for spans of the same attempt at the same batch of the same run."""
    known = span.attributes
    if names.BATCH_ID not in known:
        return span.key
    return groups.key(span), known[names.BATCH_ID], known.get(names.BATCH_ATTEMPT), span.start


def _of_span(span: FileSpan, track: Track) -> Slice:
    known = span.attributes
    stage = str(known.get(names.STAGE_NAME, ""))
    name, category = span.name, "stage" if names.STAGE_INDEX in known else "run"
    if names.BATCH_ID in known:
        name, category = stage or span.name, "batch"
    elif _is_workers(span):
        name, category = f"{span.name} {stage}".strip(), "worker"
    args = _shown(known)
    if span.message:
        args["message"] = span.message
    return Slice(
        key=span.key,
        name=name,
        category=category,
        track=track,
        start=span.start,
        end=max(span.start, span.end),
        args=args,
        state=_state(span),
        follows=list(span.links),
        marks=[_mark(event.name, event.time or span.end, event.attributes) for event in span.events],
    )


def _state(span: FileSpan) -> State:
    if span.attributes.get(names.OUTCOME) == "retried":
        return "retried"
    return "failed" if span.failed else "ok"


def _mark(name: str, time: int, attributes: dict[str, Any]) -> Mark:
    return Mark(str(attributes.get(names.EXCEPTION_TYPE, name)), time, attributes)
