# SPDX-License-Identifier: Apache-2.0
"""The metrics of one run.

Counters are fed from the stages' totals once a second, because an ``add`` costs 5 us, which is too much for each batch.
Histograms record individual batches, but only a limited number between two feeds; the others are counted. A batch with
a span becomes the exemplar of its bucket. Everything else is recorded outside of any span: counters choose exemplars
with the global `random`, which would shift a user's seeded sequence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from curator_otel import conventions as names
from curator_otel._trace.attributes import cut
from curator_otel._trace.writer import NO_PARENT, below

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.context import Context
    from opentelemetry.metrics import Meter
    from opentelemetry.trace import Span

    from curator_core import BatchReport
    from curator_core.observers import BatchOutcome, RunInfo, WorkerReport
    from curator_otel._trace.totals import StageActivity
    from curator_otel.conventions import Metric

__all__ = ["RunMeter"]

_RECORDS_A_FEED = 200  # histogram records of all stages between two feeds: 1.5 ms of each second

# Counter, outcome, field of `StageActivity`.
_COUNTS = (
    (names.BATCH_COUNT, "ok", "batches_ok"),
    (names.BATCH_COUNT, "failed", "batches_failed"),
    (names.BATCH_COUNT, "retried", "batches_retried"),
    (names.TASK_COUNT, "out", "passed"),
    (names.TASK_COUNT, "filtered", "filtered"),
    (names.TASK_COUNT, "failed", "failed"),
    (names.TASK_COUNT, "merged", "merged"),
    (names.TASKS_OUT, "", "out"),
    (names.ITEMS, "", "items"),
    (names.PROCESS_TIME, "", "process_ns"),
    (names.CPU_TIME, "", "cpu_ns"),
    (names.IDLE_TIME, "", "idle_ns"),
)


class RunMeter:
    """Feeds the metrics of one run.

    Args:
        meter: The meter that creates the instruments, which all runs share.
        run: The run.
        totals: The totals of its stages, updated by the caller and read when the counters are fed.
    """

    def __init__(self, meter: Meter, run: RunInfo, totals: Sequence[StageActivity]) -> None:
        self._totals = totals
        self._instruments = {
            metric.name: _instrument(meter, metric) for metric in names.METRICS.values() if metric.labels
        }
        self._stages = [cut(stage.name) for stage in run.stages]
        self._fed: list[list[float]] = [[0] * len(_COUNTS) for _ in run.stages]
        self._share = max(1, _RECORDS_A_FEED // 2 // max(1, len(run.stages)))  # two records per batch
        self._left = [self._share] * len(run.stages)
        self._unrecorded = [0] * len(run.stages)

    def batch(self, report: BatchReport, outcome: BatchOutcome, span: Span | None = None) -> None:
        """Record a batch that the caller has already added to the totals."""
        index = report.stage_index
        if not self._left[index]:
            self._unrecorded[index] += 1
            return
        self._left[index] -= 1
        where = NO_PARENT if span is None else below(span)
        self._record(names.BATCH_DURATION, report.duration_ns, index, outcome, where)
        self._record(names.BATCH_IDLE, report.idle_ns, index, "", where)

    def worker(self, report: WorkerReport) -> None:
        """Record a worker's setup."""
        if report.event != "ended":
            outcome = "failed" if report.error else "ok"
            self._record(names.SETUP_DURATION, report.duration_ns, report.stage_index, outcome)

    def feed(self) -> None:
        """Feed the counters with the increase since the last call."""
        for index in range(len(self._stages)):
            self._left[index] = self._share
            self._feed_stage(index)
            if self._unrecorded[index]:
                self._add(names.UNRECORDED, self._unrecorded[index], index)
                self._unrecorded[index] = 0

    def run_ended(self, *, failed: bool) -> None:
        """Feed the counters for the last time, and count the run."""
        self.feed()
        labels = {names.OUTCOME: "failed" if failed else "ok"}
        self._instruments[names.RUN_COUNT].add(1, labels, context=NO_PARENT)

    def _feed_stage(self, index: int) -> None:
        totals, fed = self._totals[index], self._fed[index]
        for number, (metric, outcome, field) in enumerate(_COUNTS):
            value = getattr(totals, field)
            # The difference to the sum that the SDK has, not to the exact one, so that rounding errors do not add up.
            new = (value / 1e9 if field.endswith("_ns") else value) - fed[number]
            if new > 0:
                fed[number] += new
                self._add(metric, new, index, outcome)

    def _add(self, metric: str, amount: float, index: int, outcome: str = "") -> None:
        self._instruments[metric].add(amount, self._labels(index, outcome), context=NO_PARENT)

    def _record(self, metric: str, ns: int, index: int, outcome: str, where: Context = NO_PARENT) -> None:
        self._instruments[metric].record(ns / 1e9, self._labels(index, outcome), context=where)

    def _labels(self, index: int, outcome: str) -> dict[str, str]:
        labels = {names.STAGE_NAME: self._stages[index]}
        if outcome:
            labels[names.OUTCOME] = outcome
        return labels


def _instrument(meter: Meter, metric: Metric) -> Any:
    if metric.instrument == "histogram":
        return meter.create_histogram(
            metric.name,
            unit=metric.unit,
            description=metric.description,
            explicit_bucket_boundaries_advisory=metric.boundaries,
        )
    return meter.create_counter(metric.name, unit=metric.unit, description=metric.description)
