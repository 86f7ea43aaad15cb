# SPDX-License-Identifier: Apache-2.0
"""The totals of a stage so far, as integers: the source of the metrics and of the stage's end time."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from curator_core import BatchReport
    from curator_core.observers import WorkerReport

__all__ = ["SUMS", "BatchOutcome", "StageTotals", "outcome_of"]

BatchOutcome = Literal["ok", "failed", "retried"]
"""The outcome of a batch: no error, some input was lost to an error, or the batch will be retried."""

SUMS = (
    *("batches_ok", "batches_failed", "batches_retried"),
    *("passed", "out", "filtered", "failed", "items"),
    *("process_ns", "cpu_ns", "idle_ns"),
)
"""The fields of `StageTotals` that only batches change."""

OTHERS = ("last_ns", "setups_failed", "startup_ns", "workers")
_sums = attrgetter(*SUMS)


class StageTotals:
    """The running totals of one stage. Integers, so that sums stay exact for any number of batches.

    Attributes:
        last_ns: When its last activity ended, in Unix nanoseconds.
    """

    __slots__ = (*SUMS, *OTHERS)

    def __init__(self) -> None:
        self.batches_ok = self.batches_failed = self.batches_retried = 0
        self.passed = self.out = self.filtered = self.failed = self.items = 0
        self.process_ns = self.cpu_ns = self.idle_ns = self.startup_ns = 0
        self.workers = self.setups_failed = 0
        self.last_ns = 0

    @classmethod
    def of(cls, values: Mapping[str, int]) -> StageTotals:
        """Return totals from the result of `values`."""
        totals = cls()
        for name in (*SUMS, *OTHERS):
            setattr(totals, name, values[name])
        return totals

    def values(self) -> dict[str, int]:
        """Return all totals, by name."""
        return {name: getattr(self, name) for name in (*SUMS, *OTHERS)}

    def add(self, report: BatchReport) -> BatchOutcome:
        """Add a batch; return its outcome."""
        took = report.duration_ns
        self.process_ns += took
        self.cpu_ns += report.cpu_ns
        self.idle_ns += report.idle_ns
        end = report.start_unix_ns + took
        if end > self.last_ns:
            self.last_ns = end
        number = report.num_in
        if not report.other_outcomes:  # each input gave one task: the usual batch, so this path must be cheap
            self.passed += number
            self.out += number
        elif report.is_retried:
            self.batches_retried += 1
            return "retried"
        else:
            tally = report.tally()
            self.passed += tally.passed
            self.out += tally.out
            self.filtered += tally.filtered
            self.failed += tally.failed
        self.items += report.num_items
        if report.error is None:
            self.batches_ok += 1
            return "ok"
        self.batches_failed += 1
        return "failed"

    def add_worker(self, report: WorkerReport) -> None:
        """Add a worker's setup or teardown."""
        if report.event == "ready":
            self.workers += 1
            self.startup_ns += report.duration_ns
        elif report.event == "setup_failed":
            self.setups_failed += 1
        elif report.error is None:
            # In-process, every stage is torn down at the end of the run, so teardowns would make all stages look
            # busy until then.
            return
        self.last_ns = max(self.last_ns, report.start_unix_ns + report.duration_ns)

    def sums(self) -> tuple[int, ...]:
        """Return the values of `SUMS`."""
        values: tuple[int, ...] = _sums(self)
        return values

    @property
    def batches(self) -> int:
        """The number of batches that ended, not counting retried attempts."""
        return self.batches_ok + self.batches_failed


def outcome_of(report: BatchReport) -> BatchOutcome:
    """Return the outcome of a batch."""
    if report.is_retried:
        return "retried"
    return "ok" if report.error is None else "failed"
