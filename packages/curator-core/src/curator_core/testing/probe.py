# SPDX-License-Identifier: Apache-2.0
"""Helpers to test a stage without an executor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from curator_core._adapter.adapter import BaseStageAdapter
from curator_core._adapter.worker_state import RunContext
from curator_core.stages import ProcessingStage
from curator_core.tasks import Task, new_state, stamp

if TYPE_CHECKING:
    from collections.abc import Callable

    from curator_core._adapter.worker_state import OnError
    from curator_core._reports.batch import BatchReport

__all__ = ["Calling", "CallingBatches", "Probe", "fail_at", "seen"]


class Calling(ProcessingStage[Any, Any]):
    """A stage that calls a function with each task.

    Args:
        function: The function.
        **settings: See `ProcessingStage.with_`.
    """

    def __init__(self, function: Callable[[Any], Any], **settings: Any) -> None:
        self.function = function
        vars(self).update(settings)

    def process(self, task: Any) -> Any:
        """Return the result of the function."""
        return self.function(task)


class CallingBatches(Calling):
    """A stage that calls a function with each batch."""

    batch_size = 8

    def process_batch(self, tasks: list[Any]) -> Any:
        """Return the result of the function."""
        return self.function(tasks)


def fail_at(*bad: Any) -> Callable[[Any], Any]:
    """Return a function for `Calling` that raises `ValueError` for the given data and returns other tasks unchanged."""

    def work(task: Any) -> Any:
        if task.data in bad:
            raise ValueError(f"cannot work on {task.data}")
        return task

    return work


class Probe:
    """An adapter around a stage, with the reports that it makes. Call it with the tasks of a batch.

    Args:
        stage: The stage.
        on_error: How to handle failures.
    """

    def __init__(self, stage: ProcessingStage[Any, Any], on_error: OnError = "raise") -> None:
        self.reports: list[Any] = []
        self.adapter = BaseStageAdapter(stage)
        self.adapter.bind(RunContext("run", on_error), self.reports.append)

    def __call__(self, *tasks: Any) -> list[Any]:
        """Run one batch."""
        return self.adapter.process_batch(list(tasks))

    @property
    def report(self) -> BatchReport:
        """The only report."""
        (report,) = self.reports
        return report  # type: ignore[no-any-return]

    def kinds(self) -> list[tuple[str, int]]:
        """Return the outcomes of the inputs of the last batch."""
        return [(outcome.kind, outcome.count) for outcome in self.reports[-1].inputs]


def seen(task_id: str, data: Any = None, **metadata: Any) -> Task[Any]:
    """Return a task as it is inside a pipeline."""
    task = Task(data=data)
    stamp(task, new_state(task_id, metadata=metadata or None))
    return task
