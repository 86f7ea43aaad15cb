# SPDX-License-Identifier: Apache-2.0
"""Totals of a run: how many tasks each stage received, put out, dropped, and failed on. Made from reports alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from curator_core._bottleneck.rules import Evidence, StageEvidence, Team
from curator_core._reports.totals import StageTotals
from curator_core.results import StageSummary

if TYPE_CHECKING:
    from collections.abc import Callable

    from curator_core._plan.plan import Plan
    from curator_core._reports.batch import BatchReport, ErrorInfo, Tally, WorkerReport
    from curator_core._reports.columns import ReportColumns

__all__ = ["RunTotals"]


class _StageAccount(StageTotals):
    """The totals of one stage, and what its errors cost.

    Attributes:
        failed_ns: Time of the attempts that raised, without the share of inputs that did not fail.
        first_error: The first error that lost a task; empty if there was none.
    """

    __slots__ = ("failed_ns", "first_error")

    def __init__(self) -> None:
        super().__init__()
        self.failed_ns = 0
        self.first_error = ""

    def add_failing(self, report: BatchReport, error: ErrorInfo) -> None:
        """Add a batch that raised."""
        failed_before = self.failed
        is_retried = self.add(report) == "retried"
        num_failed = report.num_in if is_retried else self.failed - failed_before
        self.failed_ns += report.duration_ns * num_failed // max(1, report.num_in)
        if not (is_retried or self.first_error):
            self.first_error = f"{error.type.rpartition('.')[2]}: {error.message}"

    def mark(self) -> Callable[[], None]:
        before = self.counts()
        first_error = self.first_error

        def withdraw() -> None:
            self.add_counts(self.counts(), -1)
            self.add_counts(before)
            self.first_error = first_error

        return withdraw

    def summary(self, name: str) -> StageSummary:
        return StageSummary(
            name=name,
            batches=self.batches,
            tasks_in=self.tasks_in,
            tasks_passed=self.passed,
            tasks_out=self.out,
            tasks_filtered=self.filtered,
            tasks_failed=self.failed,
            tasks_merged=self.merged,
            attempts_retried=self.batches_retried,
            items=self.items,
            process_s=self.process_ns / 1e9,
            cpu_s=self.cpu_ns / 1e9,
            idle_s=self.idle_ns / 1e9,
            startup_s=self.startup_ns / 1e9,
            workers=self.workers,
            first_start_unix_ns=self.first_ns,
            last_end_unix_ns=self.last_ns,
            first_error=self.first_error,
        )


class RunTotals:
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
        account = self._accounts[report.stage_index]
        if report.error is None:
            account.add(report)
        else:
            account.add_failing(report, report.error)

    def on_columns(self, reports: ReportColumns) -> None:
        """Add ordinary batches."""
        self._accounts[reports.stage_index].add_columns(reports)

    def on_worker(self, report: WorkerReport) -> None:
        """Add the setup of a worker."""
        self._accounts[report.stage_index].add_worker(report)

    def withdraw(self, stage_index: int, tally: Tally) -> None:
        """Subtract tasks that will be processed again; they count only then."""
        account = self._accounts[stage_index]
        account.add_counts(tally, -1)
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
        return self._accounts[stage_index].tasks_in

    def summaries(self) -> tuple[StageSummary, ...]:
        """Return the totals of each stage so far."""
        pairs = zip(self._views, self._accounts, strict=True)
        return tuple(account.summary(compiled.name) for compiled, account in pairs)

    def stage_evidence(self) -> list[StageEvidence]:
        """Return the evidence about each stage for the verdict."""
        return [
            StageEvidence(
                name=compiled.name,
                batches=account.batches + account.batches_retried,
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
        active = [account for account in self._accounts if account.first_ns]
        if not active:
            return Evidence((), (), 0, 0)
        work_ns = max(account.last_ns for account in active) - min(account.first_ns for account in active)
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
            went_in = account.tasks_in
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
