# SPDX-License-Identifier: Apache-2.0
"""A pipeline: a name and a list of stages."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from curator_core._local.executor import LocalExecutor
from curator_core._plan.plan import Plan
from curator_core._plan.sendable import check_sent
from curator_core._run.installed import instance
from curator_core.errors import ExecutorError, PipelineError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from curator_core._checkpoint.settings import Checkpoint
    from curator_core._files.paths import PathLike
    from curator_core._reports.observers import RunObserver
    from curator_core._run.executor import BaseExecutor
    from curator_core._run.settings import FailurePolicy
    from curator_core._shard import ShardChoice
    from curator_core.results import RunResult
    from curator_core.stages import ProcessingStage
    from curator_core.tasks import Task

__all__ = ["Pipeline"]


class Pipeline:
    """A named sequence of stages.

    Args:
        name: Shown in logs, progress, and traces.
        stages: The stages; more can be added.
        description: A description for human readers.

    Raises:
        PipelineError: The name is empty or not a string, or the stages are not iterable.
    """

    def __init__(self, name: str, stages: Iterable[ProcessingStage[Any, Any]] = (), description: str = "") -> None:
        _check_arguments(name, stages)
        self.name = name
        self.description = description
        self.stages: list[ProcessingStage[Any, Any]] = list(stages)

    def add_stage(self, stage: ProcessingStage[Any, Any]) -> Self:
        """Add a stage at the end, and return the pipeline, so that calls can be chained."""
        self.stages.append(stage)
        return self

    def describe(self) -> str:
        """Describe the compiled pipeline, one line per stage."""
        text = self.compile().describe()
        return f"{text}\n{self.description}" if self.description else text

    def compile(self, *, fed: bool | None = None, executor: BaseExecutor | str | None = None) -> Plan:
        """Check the pipeline and read its stages, without changing them.

        Args:
            fed: Whether the pipeline will run with initial tasks; see `Plan.from_stages`.
            executor: The executor that will run it: the stages that it sends to other processes are checked too.
                Without one, the pipeline is checked for a run in this process.

        Raises:
            PipelineError: The pipeline cannot run as it is; see `Plan.from_stages`.
            StageDefinitionError: A stage cannot run as it is written, or cannot be sent to its process.
            ExecutorError: No executor of that name is installed.
        """
        plan = Plan.from_stages(self.stages, self.name, fed=fed)
        if executor is not None:
            check_sent(_executor(executor).sent_stages(plan))
        return plan

    def run(
        self,
        executor: BaseExecutor | str | None = None,
        initial_tasks: Iterable[Task[Any]] | None = None,
        observers: Sequence[RunObserver | str] = (),
        *,
        on_error: FailurePolicy = "raise",
        max_failures: float | None = None,
        checkpoint: Checkpoint | PathLike | None = None,
        collect: bool = True,
        start_at: str | None = None,
        shard: ShardChoice | None = None,
        shutdown_grace_s: float = 10.0,
    ) -> RunResult:
        """Compile and run.

        Args:
            executor: An executor, the name of an installed one such as ``"xenna"``, or None for `LocalExecutor`.
            initial_tasks: The input of the first stage; None if it is a source.
            observers: Observers of the run, or names of installed ones such as ``"progress"``.
            on_error: ``"raise"``, ``"skip"``, or a `DeadLetter`; see `BaseExecutor.execute`.
            max_failures: How many tasks may fail, as a number, or as a share of a stage's input tasks. With None, the
                run ends if a stage fails on all of its first 100 tasks; ``math.inf`` allows any number.
            checkpoint: Where finished source tasks are recorded, so that a later run skips them.
            collect: Whether the result includes the outputs.
            start_at: The stage that receives the initial tasks, which keep their ids: for tasks from
                `curator_core.deadletter.load`.
            shard: The share of the source that this run processes: ``(index, count)``, or ``"auto"`` in an array job
                of Slurm, AWS Batch, Kubernetes, and others. The runs of all shards split the source without overlap,
                and each has its own checkpoint below the given one.
            shutdown_grace_s: Seconds that the run may take to end after SIGTERM or SIGUSR1; see `BaseExecutor.execute`.

        Raises:
            PipelineError: The pipeline cannot run as it is.
            ExecutorError: No executor or observer of that name is installed.
            RunError: Something went wrong during the run.
            RunStopped: The process received SIGTERM or SIGUSR1 during the run.
        """
        plan = self.compile(fed=initial_tasks is not None)
        if start_at is not None:
            plan = _from_stage(plan, start_at, initial_tasks)
        chosen = LocalExecutor() if executor is None else _executor(executor)
        watching = [instance("observer", observer) for observer in observers]
        result: RunResult = chosen.execute(
            plan,
            initial_tasks,
            observers=watching,
            on_error=on_error,
            max_failures=max_failures,
            checkpoint=checkpoint,
            collect=collect,
            keep_ids=start_at is not None,
            shard=shard,
            shutdown_grace_s=shutdown_grace_s,
        )
        return result

    def __repr__(self) -> str:
        return f"<Pipeline '{self.name}': {len(self.stages)} stages>"


def _check_arguments(name: Any, stages: Any) -> None:
    if not (isinstance(name, str) and name.strip()):
        raise PipelineError(
            "a pipeline needs a name",
            field="name",
            given=name,
            expected="a non-empty string",
            hint='pass the name first: Pipeline("name", stages)',
        )
    if not isinstance(stages, Iterable):
        raise PipelineError(
            "not a list of stages",
            field="stages",
            given=stages,
            expected="a list of stages",
            hint="pass stages=[stage]",
        )


def _from_stage(plan: Plan, name: str, initial_tasks: Any) -> Plan:
    """Return the plan from one of its stages on."""
    names = [compiled.name for compiled in plan.stages]
    if name not in names:
        raise PipelineError(f"cannot start at unknown stage '{name}'", given=name, **unknown_name("stage", name, names))
    if initial_tasks is None:
        raise PipelineError(
            "start_at requires initial tasks",
            field="start_at",
            given=name,
            expected="initial_tasks for the stage",
            hint="pass initial_tasks=curator_core.deadletter.load(path, stage=…)",
        )
    first = names.index(name)
    stages = [compiled.stage for compiled in plan.stages[first:]]
    return replace(Plan.from_stages(stages, plan.name, fed=True), dialect=plan.dialect, left_out=tuple(names[:first]))


def _executor(given: Any) -> Any:
    chosen = instance("executor", given)
    if isinstance(chosen, type) or not hasattr(chosen, "execute"):
        raise ExecutorError(
            "not an executor",
            field="executor",
            given=chosen,
            expected="an executor, or the name of an installed one",
            hint=f"call the class: {chosen.__name__}()" if isinstance(chosen, type) else "use LocalExecutor()",
        )
    return chosen
