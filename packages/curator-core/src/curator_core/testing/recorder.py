# SPDX-License-Identifier: Apache-2.0
"""What the conformance kit watches a run with."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from curator_core._reports.observers import RunObserver

if TYPE_CHECKING:
    from curator_core._reports.batch import BatchReport, RunInfo, WorkerReport
    from curator_core.results import RunResult

__all__ = ["Event", "Journal", "Recorder", "Troublemaker"]


class Recorder(RunObserver):
    """Keeps all that an observer is told.

    Attributes:
        run: What it was told at the start.
        batches: The reports, in the order of arrival.
        workers: The workers' reports, likewise.
        ends: The result and the error, once for each time the end was told.
    """

    def __init__(self) -> None:
        self.run: RunInfo | None = None
        self.batches: list[BatchReport] = []
        self.workers: list[WorkerReport] = []
        self.ends: list[tuple[RunResult, BaseException | None]] = []

    def on_run_start(self, run: RunInfo) -> None:
        """Keep it."""
        self.run = run

    def on_batch(self, report: BatchReport) -> None:
        """Keep it."""
        self.batches.append(report)

    def on_worker(self, report: WorkerReport) -> None:
        """Keep it."""
        self.workers.append(report)

    def on_run_end(self, result: RunResult, error: BaseException | None) -> None:
        """Keep both."""
        self.ends.append((result, error))

    def of(self, stage: str) -> list[BatchReport]:
        """The reports of one stage."""
        return [report for report in self.batches if report.stage_name == stage]

    def final(self) -> list[BatchReport]:
        """The reports that say what became of their inputs: all but those of attempts that were retried."""
        return [r for r in self.batches if not r.is_retried]

    def outcomes(self, stage: str) -> dict[str, tuple[str, int]]:
        """What became of each input of a stage: kind and count, by task id."""
        final = [r for r in self.final() if r.stage_name == stage]
        return {outcome.task_id: (outcome.kind, outcome.count) for r in final for outcome in r.inputs}


class Troublemaker(RunObserver):
    """An observer that fails at everything."""

    def on_run_start(self, run: RunInfo) -> None:
        """Raises."""
        raise ValueError("an observer failed at the start, as it was made to")

    def on_batch(self, report: BatchReport) -> None:
        """Raises."""
        raise ValueError("an observer failed at a batch, as it was made to")

    def on_worker(self, report: WorkerReport) -> None:
        """Raises."""
        raise ValueError("an observer failed at a worker, as it was made to")

    def on_run_end(self, result: RunResult, error: BaseException | None) -> None:
        """Raises."""
        raise ValueError("an observer failed at the end, as it was made to")


class Event(NamedTuple):
    """A line of a journal.

    Attributes:
        stage: Name of the stage.
        event: What happened.
        who: The worker or node.
        pid: The process.
    """

    stage: str
    event: str
    who: str
    pid: int


class Journal:
    """A file that stages write their lives into, from whatever process they run in.

    Args:
        directory: Where it is; every worker must see the same one.
    """

    def __init__(self, directory: Path | str) -> None:
        self.path = Path(directory) / "journal"

    def write(self, stage: str, event: str, who: str) -> None:
        """Add a line. Lines of all processes stand in the order in which they were written."""
        handle = os.open(self.path, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o644)
        try:
            os.write(handle, f"{stage}\t{event}\t{who}\t{os.getpid()}\n".encode())
        finally:
            os.close(handle)

    def read(self) -> list[Event]:
        """All lines so far."""
        if not self.path.exists():
            return []
        rows = [line.split("\t") for line in self.path.read_text().splitlines()]
        return [Event(stage, event, who, int(pid)) for stage, event, who, pid in rows]

    def lives(self) -> dict[tuple[str, str, int], list[str]]:
        """What happened to each worker, in order; by stage, worker and process."""
        found: dict[tuple[str, str, int], list[str]] = defaultdict(list)
        for stage, event, who, pid in self.read():
            if event != "setup_on_node":
                found[stage, who, pid].append(event)
        return found
