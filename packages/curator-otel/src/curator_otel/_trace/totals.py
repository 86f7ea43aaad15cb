# SPDX-License-Identifier: Apache-2.0
"""The totals of a stage so far: the source of the metrics, of the windows, and of the stage's end time."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING

from curator_core.observers import StageTotals

if TYPE_CHECKING:
    from collections.abc import Mapping

    from curator_core import BatchReport
    from curator_core.observers import BatchOutcome, WorkerReport

__all__ = ["SUMS", "StageActivity", "outcome_of"]

SUMS = (
    *("batches_ok", "batches_failed", "batches_retried"),
    *("passed", "out", "filtered", "failed", "merged", "items"),
    *("process_ns", "cpu_ns", "idle_ns"),
)
"""The fields of `StageTotals` that only batches change."""

_ALL = (*SUMS, "last_ns", "setups_failed", "startup_ns", "workers")
_sums = attrgetter(*SUMS)


class StageActivity(StageTotals):
    """The running totals of one stage, with all that its workers did.

    Attributes:
        setups_failed: Workers whose setup failed.
        last_ns: When its last activity ended, in Unix nanoseconds, also of a worker.
    """

    __slots__ = ("setups_failed",)

    def __init__(self) -> None:
        super().__init__()
        self.setups_failed = 0

    @classmethod
    def of(cls, values: Mapping[str, int]) -> StageActivity:
        """Return totals from the result of `values`."""
        totals = cls()
        for name in _ALL:
            setattr(totals, name, values[name])
        return totals

    def values(self) -> dict[str, int]:
        """Return the totals, by name."""
        return {name: getattr(self, name) for name in _ALL}

    def add_worker(self, report: WorkerReport) -> None:
        """Add a worker's setup or teardown."""
        super().add_worker(report)
        if report.event == "setup_failed":
            self.setups_failed += 1
        elif report.event == "ended" and report.error is None:
            # In-process, every stage is torn down at the end of the run, so teardowns would make all stages look
            # busy until then.
            return
        self.last_ns = max(self.last_ns, report.start_unix_ns + report.duration_ns)

    def sums(self) -> tuple[int, ...]:
        """Return the values of `SUMS`."""
        values: tuple[int, ...] = _sums(self)
        return values


def outcome_of(report: BatchReport) -> BatchOutcome:
    """Return the outcome of a batch."""
    if report.is_retried:
        return "retried"
    return "ok" if report.error is None else "failed"
