# SPDX-License-Identifier: Apache-2.0
"""A pipeline: a name and some stages."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from curator_core.errors import ExecutorError, unknown_name
from curator_core.local import LocalExecutor
from curator_core.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Self

    from curator_core.adapter import OnError
    from curator_core.executor import BaseExecutor, RunResult
    from curator_core.report import RunObserver
    from curator_core.stage import ProcessingStage
    from curator_core.task import Task

__all__ = ["Pipeline", "find_installed"]


class Pipeline:
    """Some stages in order, under a name.

    Args:
        name: Shown in logs, progress and traces.
        stages: The stages; more can be added.
        description: For people.
    """

    def __init__(
        self, name: str, stages: Iterable[ProcessingStage[Any, Any]] = (), description: str = ""
    ) -> None:
        self.name = name
        self.description = description
        self.stages: list[ProcessingStage[Any, Any]] = list(stages)

    def add_stage(self, stage: ProcessingStage[Any, Any]) -> Self:
        """Add a stage at the end; calls can be chained."""
        self.stages.append(stage)
        return self

    def describe(self) -> str:
        """The compiled pipeline, one line a stage."""
        text = self.compile().describe()
        return f"{text}\n{self.description}" if self.description else text

    def compile(self) -> Plan:
        """Check the pipeline and read its stages; changes nothing here.

        Raises:
            PipelineError: It cannot run as it is; see `Plan.from_stages`.
        """
        return Plan.from_stages(self.stages, self.name)

    def run(
        self,
        executor: BaseExecutor | str | None = None,
        initial_tasks: Iterable[Task[Any]] | None = None,
        observers: Sequence[RunObserver | str] = (),
        *,
        on_error: OnError = "raise",
    ) -> RunResult:
        """Compile and run.

        Args:
            executor: Who runs it: an executor, the name of an installed one such as ``"xenna"``, or None
                for `LocalExecutor`.
            initial_tasks: What the first stage is given; None where it is a source.
            observers: Who watches: observers, or names of installed ones such as ``"progress"``.
            on_error: ``"raise"`` or ``"skip"``; see `BaseExecutor.execute`.

        Raises:
            PipelineError: The pipeline cannot run as it is.
            ExecutorError: No executor or observer of that name is installed.
            RunError: Something went wrong while it ran.
        """
        plan = self.compile()
        chosen = LocalExecutor() if executor is None else _instance("executor", executor)
        watching = [_instance("observer", observer) for observer in observers]
        if not hasattr(chosen, "execute"):
            raise ExecutorError(
                "this cannot run a pipeline",
                field="executor",
                given=chosen,
                expected="an executor, or the name of an installed one",
                hint="call the class: LocalExecutor()" if isinstance(chosen, type) else "use LocalExecutor()",
            )
        result: RunResult = chosen.execute(plan, initial_tasks, observers=watching, on_error=on_error)
        return result

    def __repr__(self) -> str:
        return f"<Pipeline '{self.name}': {len(self.stages)} stages>"


def find_installed(kind: str, name: str) -> Any:
    """What an installed package offers under a name.

    Args:
        kind: ``"executor"`` or ``"observer"``.
        name: Its name in the entry points ``curator.executors`` or ``curator.observers``.

    Raises:
        ExecutorError: Nothing of that name is installed.
    """
    found = entry_points(group=f"curator.{kind}s")
    if name not in found.names:
        raise ExecutorError(f"no {kind} '{name}' is installed", **unknown_name(kind, name, found.names))
    return found[name].load()


def _instance(kind: str, value: Any) -> Any:
    return find_installed(kind, value)() if isinstance(value, str) else value
