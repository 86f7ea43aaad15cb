# SPDX-License-Identifier: Apache-2.0
"""What a stage did so far, in whole numbers: what the metrics are fed from, and when the stage was active."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from curator_core import BatchReport
    from curator_core.observers import WorkerReport

__all__ = ["SUMS", "BatchOutcome", "StageTotals", "outcome_of"]

BatchOutcome = Literal["ok", "failed", "retried"]
"""Of a batch: all went well, some input was lost to an error, or the batch will be tried again."""

SUMS = (
    *("batches_ok", "batches_failed", "batches_retried"),
    *("passed", "out", "filtered", "failed", "items"),
    *("process_ns", "cpu_ns", "idle_ns"),
)
"""What batches add to: the fields of `StageTotals` that only they change."""

OTHERS = ("last_ns", "setups_failed", "startup_ns", "workers")
_sums = attrgetter(*SUMS)


class StageTotals:
    """The running totals of one stage. Integers, so that sums stay exact however many batches there are.

    Attributes:
        last_ns: When its last activity ended, Unix time.
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
        """The totals that `values` gave."""
        totals = cls()
        for name in (*SUMS, *OTHERS):
            setattr(totals, name, values[name])
        return totals

    def values(self) -> dict[str, int]:
        """All of them, by name."""
        return {name: getattr(self, name) for name in (*SUMS, *OTHERS)}

    def add(self, report: BatchReport) -> BatchOutcome:
        """Enter a batch; says how it went."""
        took = report.duration_ns
        self.process_ns += took
        self.cpu_ns += report.cpu_ns
        self.idle_ns += report.idle_ns
        end = report.start_unix_ns + took
        if end > self.last_ns:
            self.last_ns = end
        ids, others = report.inputs.parts
        if not others:  # each input gave one task: the usual batch, and what this costs is its cost
            self.passed += len(ids)
            self.out += len(ids)
        elif report.is_retried:
            self.batches_retried += 1
            return "retried"
        else:
            tally = report.inputs.tally()
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
        """Enter a step in a worker's life."""
        if report.event == "ready":
            self.workers += 1
            self.startup_ns += report.duration_ns
        elif report.event == "setup_failed":
            self.setups_failed += 1
        elif report.error is None:
            # In-process, every stage is torn down when the run ends; that would make all of them look busy
            # until then.
            return
        self.last_ns = max(self.last_ns, report.start_unix_ns + report.duration_ns)

    def sums(self) -> tuple[int, ...]:
        """The values of `SUMS`."""
        values: tuple[int, ...] = _sums(self)
        return values

    @property
    def batches(self) -> int:
        """Batches that ended, retried attempts not counted."""
        return self.batches_ok + self.batches_failed


def outcome_of(report: BatchReport) -> BatchOutcome:
    """How a batch went."""
    if report.is_retried:
        return "retried"
    return "ok" if report.error is None else "failed"
