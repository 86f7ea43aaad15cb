# SPDX-License-Identifier: Apache-2.0
"""Observers and a journal to watch a run."""

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
    """An observer that keeps everything that it receives.

    Attributes:
        run: The information from the start of the run.
        batches: The reports of batches, in the order of arrival.
        workers: The reports of workers, in the order of arrival.
        ends: The result and the error, for each call of `on_run_end`.
    """

    def __init__(self) -> None:
        self.run: RunInfo | None = None
        self.batches: list[BatchReport] = []
        self.workers: list[WorkerReport] = []
        self.ends: list[tuple[RunResult, BaseException | None]] = []

    def on_run_start(self, run: RunInfo) -> None:
        """Keep the information about the run."""
        self.run = run

    def on_batch(self, report: BatchReport) -> None:
        """Keep the report."""
        self.batches.append(report)

    def on_worker(self, report: WorkerReport) -> None:
        """Keep the report."""
        self.workers.append(report)

    def on_run_end(self, result: RunResult, error: BaseException | None) -> None:
        """Keep the result and the error."""
        self.ends.append((result, error))

    def of(self, stage: str) -> list[BatchReport]:
        """Return the reports of one stage."""
        return [report for report in self.batches if report.stage_name == stage]

    def final(self) -> list[BatchReport]:
        """Return the reports of final attempts, without those of attempts that were retried."""
        return [r for r in self.batches if not r.is_retried]

    def outcomes(self, stage: str) -> dict[str, tuple[str, int]]:
        """Return the outcome of each input of a stage: kind and count, by task id."""
        final = [r for r in self.final() if r.stage_name == stage]
        return {outcome.task_id: (outcome.kind, outcome.count) for r in final for outcome in r.inputs}


class Troublemaker(RunObserver):
    """An observer that fails in every method."""

    def on_run_start(self, run: RunInfo) -> None:
        """Raise an error."""
        raise ValueError("this observer always fails at the start")

    def on_batch(self, report: BatchReport) -> None:
        """Raise an error."""
        raise ValueError("this observer always fails at a batch")

    def on_worker(self, report: WorkerReport) -> None:
        """Raise an error."""
        raise ValueError("this observer always fails at a worker")

    def on_run_end(self, result: RunResult, error: BaseException | None) -> None:
        """Raise an error."""
        raise ValueError("this observer always fails at the end")


class Event(NamedTuple):
    """A line of a journal.

    Attributes:
        stage: Name of the stage.
        event: What happened.
        who: The worker or node.
        pid: The process id.
    """

    stage: str
    event: str
    who: str
    pid: int


class Journal:
    """A file in which stages record the events of their life cycle, from any process.

    Args:
        directory: The directory of the file, which all workers must share.
    """

    def __init__(self, directory: Path | str) -> None:
        self.path = Path(directory) / "journal"

    def write(self, stage: str, event: str, who: str) -> None:
        """Append a line. The lines of all processes are in the order in which they were written."""
        handle = os.open(self.path, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o644)
        try:
            os.write(handle, f"{stage}\t{event}\t{who}\t{os.getpid()}\n".encode())
        finally:
            os.close(handle)

    def read(self) -> list[Event]:
        """Return all lines so far."""
        if not self.path.exists():
            return []
        rows = [line.split("\t") for line in self.path.read_text().splitlines()]
        return [Event(stage, event, who, int(pid)) for stage, event, who, pid in rows]

    def lives(self) -> dict[tuple[str, str, int], list[str]]:
        """Return the events of each worker, in order, by stage, worker, and process id."""
        found: dict[tuple[str, str, int], list[str]] = defaultdict(list)
        for stage, event, who, pid in self.read():
            if event != "setup_on_node":
                found[stage, who, pid].append(event)
        return found
