# SPDX-License-Identifier: Apache-2.0
"""A trace made afterwards, from what finished tasks carry with them.

Tasks know less than reports do: batches that output nothing or failed left no task, and outcomes, attempts
and CPU time are not on record. What is not known is left out of the spans, never guessed.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from opentelemetry import trace

from curator_core.perf import BYTES_PER_MB
from curator_core.report import BatchReport, Outcomes, RunInfo, StageInfo
from curator_otel import conventions as names
from curator_otel.__about__ import __version__
from curator_otel.observer import SCOPE, check_max_spans, parent_context
from curator_otel.spans import RunTrace, TraceSettings
from curator_otel.totals import StageTotals

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from curator_core.perf import StagePerfStats
    from curator_core.task import Task

__all__ = ["Replayed", "replay"]

# What the tasks do not know about a batch, and so about a stage.
_UNKNOWN = (
    names.BATCH_SEQUENCE,
    names.BATCH_ATTEMPT,
    names.BATCH_GROUP,
    names.OUTCOME,
    names.BATCH_IN,
    names.BATCH_OUT,
    names.BATCH_FILTERED,
    names.BATCH_FAILED,
    names.BATCH_CPU_TIME,
    names.STAGE_RETRIED,
    names.STAGE_IN,
    names.STAGE_OUT,
    names.STAGE_FILTERED,
    names.STAGE_FAILED,
    names.STAGE_CPU_TIME,
    names.STAGE_WORKERS,
)


class Replayed(NamedTuple):
    """What `replay` found.

    Attributes:
        trace_id: The trace, as 32 hex digits; empty where nothing was written.
        batches: Batches that the tasks went through, each counted once.
        batches_without_start: How many of them do not say when they began. They are counted on their stage,
            and have no span.
    """

    trace_id: str
    batches: int
    batches_without_start: int


def replay(
    tasks: Iterable[Task[object]],
    tracer_provider: trace.TracerProvider | None = None,
    pipeline_name: str = "replay",
    *,
    max_spans: int = 1500,
) -> Replayed:
    """Write the spans of a finished run, from the ``stage_perf`` of its tasks alone.

    Args:
        tasks: The tasks that came out of a run, or some of them.
        tracer_provider: Who makes the spans; None for the global one.
        pipeline_name: The name in the run's span.
        max_spans: As for `OTelObserver`.

    Returns:
        The trace, and how many batches it was made of. Without a single start time there is no trace.

    Raises:
        ConfigurationError: A limit that makes no sense.
    """
    check_max_spans(max_spans)
    history = _History(tasks)
    known = sorted((batch for batch in history.batches if batch.start_unix_ns), key=lambda b: b.start_unix_ns)
    untimed = len(history.batches) - len(known)
    if not known:
        return Replayed("", len(history.batches), untimed)
    infos = tuple(StageInfo(index, name, "") for index, name in enumerate(history.stages))
    run = RunInfo(os.urandom(16).hex(), pipeline_name, "", infos, known[0].start_unix_ns)
    tracer = trace.get_tracer(SCOPE, __version__, tracer_provider)
    totals = [StageTotals() for _ in infos]
    written = RunTrace(tracer, run, totals, parent_context(os.environ), TraceSettings(max_spans))
    for batch in known:
        written.batch(batch, totals[batch.stage_index].add(batch), _UNKNOWN)
    without = [0] * len(infos)
    for batch in history.batches:
        totals[batch.stage_index].startup_ns += batch.startup_ns
        if not batch.start_unix_ns:
            last = totals[batch.stage_index].last_ns
            totals[batch.stage_index].add(batch)
            totals[batch.stage_index].last_ns = last  # it does not say when it was
            without[batch.stage_index] += 1
    for index, count in enumerate(without):
        written.add_to_stage(index, {names.WITHOUT_START: count})
    written.end_stages(_UNKNOWN)
    written.root.set_attributes({names.RUN_REPLAYED: True, names.WITHOUT_START: untimed})
    written.end(max(batch.end_unix_ns for batch in known))
    return Replayed(f"{written.root.get_span_context().trace_id:032x}", len(history.batches), untimed)


class _History:
    """The batches that some tasks went through, each once, as reports.

    Attributes:
        stages: Names of the stages, in the order of the tasks' histories.
        batches: The batches.
    """

    def __init__(self, tasks: Iterable[Task[object]]) -> None:
        first_seen: dict[str, int] = {}
        stats: dict[tuple[str, str, int], StagePerfStats] = {}
        parents: dict[tuple[str, str, int], dict[str, None]] = {}
        for task in tasks:
            before = ""
            for position, perf in enumerate(task.stage_perf):
                key = (perf.stage_name, perf.batch_id, perf.start_time_unix_ns)
                first_seen[perf.stage_name] = max(position, first_seen.get(perf.stage_name, 0))
                # All tasks of a batch share its statistics: they are counted once.
                stats.setdefault(key, perf)
                if before:
                    parents.setdefault(key, {})[before] = None
                before = perf.batch_id
        self.stages = sorted(first_seen, key=lambda name: first_seen[name])
        index = {name: number for number, name in enumerate(self.stages)}
        self.batches = [
            _report(perf, index[perf.stage_name], tuple(parents.get(key, ()))) for key, perf in stats.items()
        ]


def _report(perf: StagePerfStats, stage_index: int, parents: Sequence[str]) -> BatchReport:
    return BatchReport(
        run_id="",
        stage_index=stage_index,
        stage_name=perf.stage_name,
        batch_id=perf.batch_id,
        worker_id=perf.worker_id,
        node_id=perf.node_id,
        pid=0,
        sequence=0 if perf.startup_time else 1,  # a worker's first batch carries its set-up time
        start_unix_ns=perf.start_time_unix_ns,
        duration_ns=round(perf.process_time * 1e9),
        inputs=Outcomes((), {}),
        idle_ns=round(perf.actor_idle_time * 1e9),
        startup_ns=round(perf.startup_time * 1e9),
        parents=tuple(parents),
        in_bytes=round(perf.input_data_size_mb * BYTES_PER_MB),
        num_items=perf.num_items_processed,
        metrics=dict(perf.custom_metrics),
    )
