# SPDX-License-Identifier: Apache-2.0
"""The metrics of one run.

Counters are fed from the stages' totals, once a second: an ``add`` costs 5 us, a batch must not. Histograms take single
batches, and only so many between two feeds: what they leave out is counted. A batch that has a span is its bucket's
exemplar. All else is recorded outside of any span: counters draw exemplars with the global `random`, and a user's
seeded sequence is to stay as it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from curator_otel import conventions as names
from curator_otel.attributes import cut
from curator_otel.writer import NO_PARENT, below

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.context import Context
    from opentelemetry.metrics import Meter
    from opentelemetry.trace import Span

    from curator_core import BatchReport
    from curator_core.observers import RunInfo, WorkerReport
    from curator_otel.conventions import Metric
    from curator_otel.totals import BatchOutcome, StageTotals

__all__ = ["RunMeter"]

_RECORDS_A_FEED = 200  # of histograms, over all stages: 1.5 ms of each second

# Counter, outcome, field of `StageTotals`.
_COUNTS: tuple[tuple[Metric, str, str], ...] = (
    (names.BATCH_COUNT, "ok", "batches_ok"),
    (names.BATCH_COUNT, "failed", "batches_failed"),
    (names.BATCH_COUNT, "retried", "batches_retried"),
    (names.TASK_COUNT, "out", "passed"),
    (names.TASK_COUNT, "filtered", "filtered"),
    (names.TASK_COUNT, "failed", "failed"),
    (names.TASK_PRODUCED, "", "out"),
    (names.ITEM_COUNT, "", "items"),
    (names.PROCESS_TIME, "", "process_ns"),
    (names.CPU_TIME, "", "cpu_ns"),
    (names.IDLE_TIME, "", "idle_ns"),
)


class RunMeter:
    """Feeds the metrics of one run.

    Args:
        meter: What makes the instruments; the same ones for every run.
        run: The run.
        totals: The totals of its stages, kept by the caller; read when the counters are fed.
    """

    def __init__(self, meter: Meter, run: RunInfo, totals: Sequence[StageTotals]) -> None:
        self._totals = totals
        self._instruments = {
            metric.name: _instrument(meter, metric) for metric in names.METRICS.values() if metric.labels
        }
        self._stages = [cut(stage.name) for stage in run.stages]
        self._fed: list[list[float]] = [[0] * len(_COUNTS) for _ in run.stages]
        self._share = max(1, _RECORDS_A_FEED // 2 // max(1, len(run.stages)))  # two records a batch
        self._left = [self._share] * len(run.stages)
        self._unrecorded = [0] * len(run.stages)

    def batch(self, report: BatchReport, outcome: BatchOutcome, span: Span | None = None) -> None:
        """Enter a batch; the caller has entered it in the totals."""
        index = report.stage_index
        if not self._left[index]:
            self._unrecorded[index] += 1
            return
        self._left[index] -= 1
        where = NO_PARENT if span is None else below(span)
        self._record(names.BATCH_DURATION, report.duration_ns, index, outcome, where)
        self._record(names.BATCH_IDLE, report.idle_ns, index, "", where)

    def worker(self, report: WorkerReport) -> None:
        """Enter a worker's set-up."""
        if report.event != "ended":
            outcome = "failed" if report.error else "ok"
            self._record(names.SETUP_DURATION, report.duration_ns, report.stage_index, outcome)

    def feed(self) -> None:
        """Feed the counters with what came since the last time."""
        for index in range(len(self._stages)):
            self._left[index] = self._share
            self._feed_stage(index)
            if self._unrecorded[index]:
                self._add(names.UNRECORDED, self._unrecorded[index], index)
                self._unrecorded[index] = 0

    def run_ended(self, *, failed: bool) -> None:
        """Feed the rest, and count the run."""
        self.feed()
        labels = {names.OUTCOME: "failed" if failed else "ok"}
        self._instruments[names.RUN_COUNT.name].add(1, labels, context=NO_PARENT)

    def _feed_stage(self, index: int) -> None:
        totals, fed = self._totals[index], self._fed[index]
        for number, (metric, outcome, field) in enumerate(_COUNTS):
            value = getattr(totals, field)
            # Held against the sum as the SDK has it, and not as it should be: rounding does not add up then.
            new = (value / 1e9 if metric.unit == "s" else value) - fed[number]
            if new > 0:
                fed[number] += new
                self._add(metric, new, index, outcome)

    def _add(self, metric: Metric, amount: float, index: int, outcome: str = "") -> None:
        self._instruments[metric.name].add(amount, self._labels(index, outcome), context=NO_PARENT)

    def _record(self, metric: Metric, ns: int, index: int, outcome: str, where: Context = NO_PARENT) -> None:
        self._instruments[metric.name].record(ns / 1e9, self._labels(index, outcome), context=where)

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
