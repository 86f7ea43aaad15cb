# SPDX-License-Identifier: Apache-2.0
"""Writes the trace of a finished run, from the statistics that its tasks carry: our tasks, or NeMo Curator's.

Tasks have less information than reports: batches that output nothing or failed have no tasks, and outcomes, attempts,
and CPU time are not recorded. Spans omit unknown values; nothing is guessed. NeMo Curator's tasks have even less: they
do not say when a batch began, or whether two equal records are the same batch, and their "size in MB" is a count of
items.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry import trace

from curator_core import BatchReport, DataError
from curator_core.observers import BYTES_PER_MB, RunInfo, StageInfo
from curator_otel import conventions as names
from curator_otel.__about__ import __version__
from curator_otel._trace.spans import RunTrace, TraceSettings
from curator_otel._trace.totals import StageActivity
from curator_otel.observer import SCOPE, check_max_spans, parent_context

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence

__all__ = ["Replayed", "replay"]

# Attributes that tasks have no values for.
_UNKNOWN = (
    *(names.TASKS_IN, names.TASKS_OUT, names.TASKS_FILTERED, names.TASKS_FAILED, names.TASKS_MERGED),
    names.TASKS_UNREPORTED,
    *(names.BATCHES_RETRIED, names.WORKERS, names.CPU_TIME, names.OUTCOME),
    *(names.BATCH_SEQUENCE, names.BATCH_ATTEMPT, names.BATCH_GROUP),
)


class Replayed(NamedTuple):
    """The result of `replay`.

    Attributes:
        trace_id: The id of the trace, as 32 hex digits; empty if the tasks went through no batch.
        batches: The number of batches that the tasks went through, each counted once.
        batches_without_start: How many of them have no start time. They are counted on their stage's span and have
            no span.
    """

    trace_id: str
    batches: int
    batches_without_start: int


def replay(
    tasks: Iterable[object],
    tracer_provider: trace.TracerProvider | None = None,
    pipeline_name: str = "replay",
    *,
    max_spans: int = 1500,
) -> Replayed:
    """Write the spans of a finished run from the statistics of its tasks.

    Batches without a start time get no span and are counted on the span of their stage. If no batch has a start time,
    as with NeMo Curator's tasks, the spans of the run and its stages have the time of the replay and no duration, and
    carry the sums.

    Args:
        tasks: Output tasks of a run, or some of them: with ``stage_perf``, or NeMo Curator's with ``_stage_perf``.
        tracer_provider: The provider that creates the spans; None for the global one.
        pipeline_name: The name of the pipeline in the run's span.
        max_spans: The same as for `OTelObserver`.

    Returns:
        The id of the trace, and the number of batches.

    Raises:
        ConfigurationError: The limit is invalid.
        DataError: An object in ``tasks`` is not a task.
    """
    check_max_spans(max_spans)
    history = _History(tasks)
    if not history.batches:
        return Replayed("", 0, 0)
    known = sorted((batch for batch in history.batches if batch.start_unix_ns), key=lambda b: b.start_unix_ns)
    start = known[0].start_unix_ns if known else time.time_ns()
    infos = tuple(StageInfo(index, name, "") for index, name in enumerate(history.stages))
    run = RunInfo(os.urandom(16).hex(), pipeline_name, "", infos, start)
    totals = [StageActivity() for _ in infos]
    tracer = trace.get_tracer(SCOPE, __version__, tracer_provider)
    settings = TraceSettings(max_spans)
    written = RunTrace(tracer, run, totals, parent_context(os.environ), settings, unknown=_UNKNOWN)
    for batch in known:
        written.batch(batch, totals[batch.stage_index].add(batch))
    without = _add_untimed(history.batches, totals)
    for index, count in enumerate(without):
        if not known:
            written.begin_stage(index, start)
        written.add_to_stage(index, {names.BATCHES_WITHOUT_START: count})
    written.end_stages()
    written.root.set_attributes({names.RUN_STATE: "replayed", names.BATCHES_WITHOUT_START: sum(without)})
    written.end(max((batch.end_unix_ns for batch in known), default=start))
    return Replayed(written.trace_id, len(history.batches), sum(without))


def _add_untimed(batches: Iterable[BatchReport], totals: Sequence[StageActivity]) -> list[int]:
    """Add the batches without a start time to the totals; return how many there are for each stage."""
    without = [0] * len(totals)
    for batch in batches:
        did = totals[batch.stage_index]
        did.startup_ns += batch.startup_ns
        if not batch.start_unix_ns:
            last = did.last_ns
            did.add(batch)
            did.last_ns = last
            without[batch.stage_index] += 1
    return without


class _Record(NamedTuple):
    """The statistics that a task has of one batch."""

    key: Hashable  # the same for all tasks of the batch
    stage_name: str
    batch_id: str
    worker_id: str
    node_id: str
    start_unix_ns: int
    process_time: float
    idle_time: float
    startup_time: float
    in_bytes: int
    num_items: int
    metrics: dict[str, float | str]


def _records(task: object) -> list[_Record]:
    for name, read in (("stage_perf", _ours), ("_stage_perf", _nemo_curators)):
        if hasattr(task, name):
            return [read(perf) for perf in getattr(task, name)]
    raise DataError(
        "not a task",
        given=task,
        expected="an object with stage_perf, or with _stage_perf as in NeMo Curator",
        hint="pass the list of tasks that a run returned",
    )


def _ours(perf: Any) -> _Record:
    return _Record(
        (perf.stage_name, perf.batch_id, perf.start_time_unix_ns),
        perf.stage_name,
        perf.batch_id,
        perf.worker_id,
        perf.node_id,
        perf.start_time_unix_ns,
        perf.process_time,
        perf.actor_idle_time,
        perf.startup_time,
        round(perf.input_data_size_mb * BYTES_PER_MB),
        perf.num_items_processed,
        dict(perf.custom_metrics),
    )


def _nemo_curators(perf: Any) -> _Record:
    """Read a record, without its "size", which is a count. Tasks of a batch share one record or have copies of it."""
    metrics = dict(getattr(perf, "custom_metrics", None) or {})
    # Two batches would only be taken for one if both of their times were equal to the last bit.
    key = (perf.stage_name, perf.process_time, perf.actor_idle_time, perf.num_items_processed, repr(metrics))
    idle, items = float(perf.actor_idle_time), int(perf.num_items_processed)
    return _Record(key, perf.stage_name, "", "", "", 0, float(perf.process_time), idle, 0.0, 0, items, metrics)


class _History:
    """The batches that some tasks went through, each once, as reports.

    Attributes:
        stages: The names of the stages, in the order of the tasks' histories.
        batches: The batches.
    """

    def __init__(self, tasks: Iterable[object]) -> None:
        first_seen: dict[str, int] = {}
        records: dict[Hashable, _Record] = {}
        parents: dict[Hashable, dict[str, None]] = {}
        for task in tasks:
            before = ""
            for position, record in enumerate(_records(task)):
                first_seen[record.stage_name] = max(position, first_seen.get(record.stage_name, 0))
                # All tasks of a batch share its statistics, which count once.
                records.setdefault(record.key, record)
                if before:
                    parents.setdefault(record.key, {})[before] = None
                before = record.batch_id
        self.stages = sorted(first_seen, key=lambda name: first_seen[name])
        index = {name: number for number, name in enumerate(self.stages)}
        self.batches = [
            _report(record, index[record.stage_name], tuple(parents.get(key, ()))) for key, record in records.items()
        ]


def _report(record: _Record, stage_index: int, parents: tuple[str, ...]) -> BatchReport:
    return BatchReport(
        run_id="",
        stage_index=stage_index,
        stage_name=record.stage_name,
        batch_id=record.batch_id,
        worker_id=record.worker_id,
        node_id=record.node_id,
        pid=0,
        sequence=0 if record.startup_time else 1,  # a worker's first batch carries its setup time
        start_unix_ns=record.start_unix_ns,
        duration_ns=round(record.process_time * 1e9),
        input_ids=(),
        other_outcomes={},
        idle_ns=round(record.idle_time * 1e9),
        startup_ns=round(record.startup_time * 1e9),
        parents=parents,
        in_bytes=record.in_bytes,
        num_items=record.num_items,
        metrics=record.metrics,
    )
