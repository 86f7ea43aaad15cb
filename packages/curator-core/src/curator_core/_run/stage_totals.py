# SPDX-License-Identifier: Apache-2.0
"""Totals of a run: how many tasks each stage received, put out, dropped, and failed on. Made from reports alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from curator_core._bottleneck.rules import Evidence, StageEvidence, Team
from curator_core.results import StageSummary

if TYPE_CHECKING:
    from collections.abc import Callable

    from curator_core._plan.plan import Plan
    from curator_core._reports.batch import BatchReport, Tally, WorkerReport

__all__ = ["StageTotals"]


class _StageAccount:
    """Running totals of one stage, in whole nanoseconds."""

    __slots__ = (
        "batches",
        "cpu_ns",
        "filtered",
        "failed",
        "failed_ns",
        "first_error",
        "first_start",
        "idle_ns",
        "items",
        "last_end",
        "out",
        "passed",
        "process_ns",
        "retried",
        "startup_ns",
        "workers",
    )

    def __init__(self) -> None:
        self.batches = self.passed = self.out = self.filtered = self.failed = self.retried = 0
        self.items = self.process_ns = self.cpu_ns = self.idle_ns = self.startup_ns = self.workers = self.failed_ns = 0
        self.first_start = self.last_end = 0
        self.first_error = ""

    def add(self, report: BatchReport) -> None:
        self.process_ns += report.duration_ns
        self.cpu_ns += report.cpu_ns
        self.idle_ns += report.idle_ns
        if not self.first_start or report.start_unix_ns < self.first_start:
            self.first_start = report.start_unix_ns
        end = report.start_unix_ns + report.duration_ns
        if end > self.last_end:
            self.last_end = end
        tally = report.tally()
        if report.error is not None:
            self.failed_ns += report.duration_ns * (tally.failed + tally.retried) // max(1, report.num_in)
        if tally.retried:
            self.retried += 1
            return
        self.batches += 1
        self.items += report.num_items
        if report.error is not None and not self.first_error:
            self.first_error = f"{report.error.type.rpartition('.')[2]}: {report.error.message}"
        self.out += tally.out
        self.passed += tally.passed
        self.filtered += tally.filtered
        self.failed += tally.failed

    def mark(self) -> Callable[[], None]:
        before = (self.passed, self.out, self.filtered, self.failed)
        first_error = self.first_error

        def withdraw() -> None:
            self.passed, self.out, self.filtered, self.failed = before
            self.first_error = first_error

        return withdraw

    def summary(self, name: str) -> StageSummary:
        return StageSummary(
            name=name,
            batches=self.batches,
            tasks_in=self.passed + self.filtered + self.failed,
            tasks_passed=self.passed,
            tasks_out=self.out,
            tasks_filtered=self.filtered,
            tasks_failed=self.failed,
            attempts_retried=self.retried,
            items=self.items,
            process_s=self.process_ns / 1e9,
            cpu_s=self.cpu_ns / 1e9,
            idle_s=self.idle_ns / 1e9,
            startup_s=self.startup_ns / 1e9,
            workers=self.workers,
            first_start_unix_ns=self.first_start,
            last_end_unix_ns=self.last_end,
            first_error=self.first_error,
        )


class StageTotals:
    """The totals of a run, by stage. Memory does not grow with the number of tasks.

    Args:
        plan: The plan of the run.
    """

    def __init__(self, plan: Plan) -> None:
        self._views = plan.stages
        self._has_source = plan.has_source
        self._accounts = [_StageAccount() for _ in plan.stages]

    def on_batch(self, report: BatchReport) -> None:
        """Add a batch."""
        self._accounts[report.stage_index].add(report)

    def on_worker(self, report: WorkerReport) -> None:
        """Add the setup of a worker."""
        if report.event == "ready":
            account = self._accounts[report.stage_index]
            account.workers += 1
            account.startup_ns += report.duration_ns

    def withdraw(self, stage_index: int, tally: Tally) -> None:
        """Subtract tasks that will be processed again; they count only then."""
        account = self._accounts[stage_index]
        account.passed -= tally.passed
        account.out -= tally.out
        account.filtered -= tally.filtered
        account.failed -= tally.failed
        if not account.failed:
            account.first_error = ""

    def mark(self) -> Callable[[], None]:
        """Return a function that subtracts all tasks added from now on; the time that they took stays."""
        marks = [account.mark() for account in self._accounts]

        def withdraw() -> None:
            for each in marks:
                each()

        return withdraw

    def tasks_in(self, stage_index: int) -> int:
        """Return how many input tasks of a stage have an outcome so far."""
        account = self._accounts[stage_index]
        return account.passed + account.filtered + account.failed

    def summaries(self) -> tuple[StageSummary, ...]:
        """Return the totals of each stage so far."""
        pairs = zip(self._views, self._accounts, strict=True)
        return tuple(account.summary(compiled.name) for compiled, account in pairs)

    def stage_evidence(self) -> list[StageEvidence]:
        """Return the evidence about each stage for the verdict."""
        return [
            StageEvidence(
                name=compiled.name,
                batches=account.batches + account.retried,
                busy_ns=account.process_ns,
                cpu_ns=account.cpu_ns,
                failed_ns=account.failed_ns,
                setup_ns=account.startup_ns // max(1, account.workers),
                is_source=self._has_source and compiled.index == 0,
                on_gpu=compiled.resources.requires_gpu,
            )
            for compiled, account in zip(self._views, self._accounts, strict=True)
        ]

    def evidence(self) -> Evidence:
        """Return the evidence for a run in one process: it does one thing at a time, so the totals are enough."""
        active = [account for account in self._accounts if account.first_start]
        if not active:
            return Evidence((), (), 0, 0)
        work_ns = max(account.last_end for account in active) - min(account.first_start for account in active)
        use = min(1.0, sum(account.process_ns for account in active) / work_ns) if work_ns else 0.0
        setup_ns = sum(account.startup_ns for account in self._accounts)
        team = Team(tuple(range(len(self._accounts))), 1, use, use)
        return Evidence(tuple(self.stage_evidence()), (team,), work_ns, work_ns + setup_ns)

    def lost(self, fed: int, skipped: int = 0) -> list[str]:
        """Describe where tasks are missing; empty if everything adds up.

        Args:
            fed: Tasks that the executor handed to the first stage.
            skipped: Tasks that a source made and that were not passed to a stage because an earlier run finished them
                or they belong to another shard.
        """
        findings = []
        came, before = fed, "the input"
        for compiled, account in zip(self._views, self._accounts, strict=True):
            name = compiled.name
            went_in = account.passed + account.filtered + account.failed
            if went_in != came:
                findings.append(
                    f"{came - went_in} of {came} tasks between {before} and '{name}'"
                    if went_in < came
                    else f"{went_in - came} more tasks reached '{name}' than the {came} from {before}"
                )
            came, before = account.out, f"'{name}'"
            if compiled.index == 0 and self._has_source:
                came -= skipped
        return findings
