# SPDX-License-Identifier: Apache-2.0
"""The totals of a stage: what its reports add up to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from curator_core._reports.batch import Tally

if TYPE_CHECKING:
    from curator_core._reports.batch import BatchReport, WorkerReport
    from curator_core._reports.columns import ReportColumns

__all__ = ["BatchOutcome", "StageTotals"]

BatchOutcome = Literal["ok", "failed", "retried"]
"""The outcome of a batch: no error, some input was lost to an error, or the batch will be retried."""

_COUNTED = [name for name in Tally._fields if name != "retried"]  # retried attempts count when they succeed or fail


class StageTotals:
    """The running totals of one stage. Integers, so that sums stay exact for any number of batches.

    Attributes:
        batches_ok: Batches without an error.
        batches_failed: Batches with an error that were not retried.
        batches_retried: Attempts that were retried; only their times count.
        passed: Input tasks that gave at least one task.
        out: Output tasks.
        filtered: Input tasks that were dropped on purpose.
        failed: Input tasks that were lost to an error.
        merged: Input tasks that went into the tasks of another input.
        items: Items in the input tasks.
        process_ns: Time in the stage's code, over all workers.
        cpu_ns: CPU time of the working threads.
        idle_ns: Time that workers waited for batches.
        startup_ns: Time of setup and imports, over all workers.
        workers: Workers that were set up.
        first_ns: When the first batch began, in Unix nanoseconds; 0 if there was none.
        last_ns: When the last batch ended, in Unix nanoseconds; 0 if there was none.
    """

    __slots__ = (
        *("batches_ok", "batches_failed", "batches_retried", "passed", "out", "filtered", "failed", "merged", "items"),
        *("process_ns", "cpu_ns", "idle_ns", "startup_ns", "workers", "first_ns", "last_ns"),
    )

    def __init__(self) -> None:
        self.batches_ok = self.batches_failed = self.batches_retried = 0
        self.passed = self.out = self.filtered = self.failed = self.merged = self.items = 0
        self.process_ns = self.cpu_ns = self.idle_ns = self.startup_ns = 0
        self.workers = self.first_ns = self.last_ns = 0

    def add(self, report: BatchReport) -> BatchOutcome:
        """Add a batch; return its outcome."""
        start, took = report.start_unix_ns, report.duration_ns
        self.process_ns += took
        self.cpu_ns += report.cpu_ns
        self.idle_ns += report.idle_ns
        if not self.first_ns or start < self.first_ns:
            self.first_ns = start
        if start + took > self.last_ns:
            self.last_ns = start + took
        if not report.other_outcomes:  # each input gave one task: the usual batch, so this path must be cheap
            number = len(report.input_ids)
            self.passed += number
            self.out += number
        elif report.is_retried:
            self.batches_retried += 1
            return "retried"
        else:
            self.add_counts(report.tally())
        self.items += report.num_items
        if report.error is None:
            self.batches_ok += 1
            return "ok"
        self.batches_failed += 1
        return "failed"

    def add_columns(self, reports: ReportColumns) -> None:
        """Add ordinary batches: the same as `add` for each of them."""
        self.process_ns += reports.total("duration_ns")
        self.cpu_ns += reports.total("cpu_ns")
        self.idle_ns += reports.total("idle_ns")
        self.items += reports.total("num_items")
        first = min(reports.column("start_unix_ns"))
        self.first_ns = min(self.first_ns or first, first)
        self.last_ns = max(self.last_ns, *reports.ends())
        self.add_counts(reports.tally())
        self.batches_ok += len(reports)

    def add_worker(self, report: WorkerReport) -> None:
        """Add a worker's setup; other events count nothing."""
        if report.event == "ready":
            self.workers += 1
            self.startup_ns += report.duration_ns

    @property
    def batches(self) -> int:
        """The number of batches that ended, not counting retried attempts."""
        return self.batches_ok + self.batches_failed

    @property
    def tasks_in(self) -> int:
        """The number of input tasks that have an outcome."""
        return self.counts().num_in

    def counts(self) -> Tally:
        """Return the numbers of input tasks by outcome, and of output tasks."""
        return Tally(**{name: getattr(self, name) for name in _COUNTED})

    def add_counts(self, tally: Tally, sign: int = 1) -> None:
        """Add numbers of tasks; subtract them if the sign is -1."""
        for name in _COUNTED:
            setattr(self, name, getattr(self, name) + sign * getattr(tally, name))
