# SPDX-License-Identifier: Apache-2.0
"""A stage under test, without an executor around it."""

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
    """Does with each task what a function says.

    Args:
        function: What ``process`` is to do.
        **settings: As for `ProcessingStage.with_`.
    """

    def __init__(self, function: Callable[[Any], Any], **settings: Any) -> None:
        self.function = function
        vars(self).update(settings)

    def process(self, task: Any) -> Any:
        """What the function says."""
        return self.function(task)


class CallingBatches(Calling):
    """Does with each batch what a function says."""

    batch_size = 8

    def process_batch(self, tasks: list[Any]) -> Any:
        """What the function says."""
        return self.function(tasks)


def fail_at(*bad: Any) -> Callable[[Any], Any]:
    """For `Calling`: raises a `ValueError` at some data, and gives back other tasks as they are."""

    def work(task: Any) -> Any:
        if task.data in bad:
            raise ValueError(f"cannot work on {task.data}")
        return task

    return work


class Probe:
    """An adapter around a stage, to be called with tasks, and what it reported.

    Args:
        stage: The stage.
        on_error: What failures do.
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
        """What became of the inputs of the last batch."""
        return [(outcome.kind, outcome.count) for outcome in self.reports[-1].inputs]


def seen(task_id: str, data: Any = None, **metadata: Any) -> Task[Any]:
    """A task as it is inside a pipeline."""
    task = Task(data=data)
    stamp(task, new_state(task_id, metadata=metadata or None))
    return task
