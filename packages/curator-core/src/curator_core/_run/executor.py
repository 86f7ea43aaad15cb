# SPDX-License-Identifier: Apache-2.0
"""The base class of executors. An executor only moves batches; everything else is the same for all executors."""

from __future__ import annotations

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from curator_core._adapter.worker_state import RunContext, is_isolated
from curator_core._checkpoint.settings import Checkpoint
from curator_core._foreign import find_dialect
from curator_core._guard.interrupts import heard_interrupts
from curator_core._plan.plan import Plan
from curator_core._plan.sendable import check_sent
from curator_core._reports.observers import RunObserver, ambient_observers
from curator_core._run.presets import PRESETS, checked_presets, presets_of_environment
from curator_core.errors import ConfigurationError, CuratorError, ExecutorError
from curator_core.logs import marked_records
from curator_core.tasks import SourceIds, Task, new_state, stamp, state_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

    from curator_core._files.paths import PathLike
    from curator_core._plan.compiled import CompiledStage
    from curator_core._run.run import Run
    from curator_core._run.settings import FailurePolicy
    from curator_core._shard import ShardChoice
    from curator_core.errors import RunStopped
    from curator_core.results import RunResult

__all__ = ["BaseExecutor"]


class BaseExecutor(ABC):
    """Runs plans. A subclass moves batches, in `run_plan`; everything else is the same for all executors.

    Attributes:
        in_process: Whether all stages run in the calling thread, one after the other.
        engine: Top-level package of an engine that installs signal handlers on its own. A run replaces these handlers
            as if they were not there, and restores them at its end.
    """

    in_process: bool = False
    engine: str = ""
    _presets: Mapping[str, Any] = {}

    def execute(
        self,
        plan: Plan | Iterable[Any],
        initial_tasks: Iterable[Task[Any]] | None = None,
        *,
        observers: Sequence[RunObserver] = (),
        on_error: FailurePolicy = "raise",
        max_failures: float | None = None,
        checkpoint: Checkpoint | PathLike | None = None,
        collect: bool = True,
        keep_ids: bool = False,
        shard: ShardChoice | None = None,
        shutdown_grace_s: float = 10.0,
    ) -> RunResult:
        """Run a plan to its end.

        Args:
            plan: A plan, or its stages.
            initial_tasks: The tasks for the first stage; None for a source, which is given one `EmptyTask`. The tasks
                are not modified.
            observers: Observers of the run, in addition to those of `watch_all_runs`.
            on_error: ``"raise"`` ends the run at the first failure; ``"skip"`` drops failed tasks, counts them, and
                continues; a `DeadLetter` also keeps the failed tasks.
            max_failures: How many tasks may fail, as a number, or as a share of the tasks that a stage is given. None
                ends the run if a stage fails on all of its first 100 tasks; ``math.inf`` allows any number.
            checkpoint: A `Checkpoint`, or its path, in which finished source tasks are recorded. A later run with it
                skips them.
            collect: Whether to return the outputs in the result. If not, they stay where the last stage puts them.
            keep_ids: Whether initial tasks keep the ids from the run that they come from.
            shard: The part of the source for this run: ``(index, count)``, or ``"auto"`` to read it from the
                environment of an array job; None for all. Source tasks are divided by their ids, which are derived from
                their content.
            shutdown_grace_s: Seconds from SIGTERM or SIGUSR1 to the end of the process. Stages get most of this time to
                finish their current work and to tear down, and the same time after a failure or Ctrl-C.

        Raises:
            RunError: A stage raised, a worker died, the cluster failed, tasks were lost, or too many tasks failed. The
                ``result`` of this error, and of any other error that ends a run, has the work done so far.
            ConfigurationError: A setting is invalid, or the checkpoint belongs to another pipeline.
            DataError: A checkpoint or a dead letter cannot be read or written.
            KeyboardInterrupt: Ctrl-C was pressed. A summary of the work done so far is added as a note, and as
                ``result``.
            RunStopped: SIGTERM or SIGUSR1 arrived, the run is in the main thread, and the user has no handler for the
                signal.
        """
        # Imported with the first run, because code that only builds a pipeline does not need them.
        from curator_core._run.run import Run  # noqa: PLC0415 - see above
        from curator_core._run.settings import RunSettings  # noqa: PLC0415 - see above
        from curator_core._shard import read_shard  # noqa: PLC0415 - see above

        if not isinstance(plan, Plan):
            plan, initial_tasks = self._compiled(plan, initial_tasks)
        plan = replace(plan, has_source=initial_tasks is None)  # a plan made without this knowledge has only guessed
        asked = self._with_presets(
            plan,
            {
                "observers": observers,
                "on_error": on_error,
                "max_failures": max_failures,
                "checkpoint": checkpoint,
                "collect": collect,
                "shard": shard,
                "shutdown_grace_s": shutdown_grace_s,
            },
        )
        if asked["stages"]:
            plan = plan.with_settings(asked["stages"])
        settings = RunSettings(
            on_error=self.failure_policy(asked["on_error"]),
            max_failures=asked["max_failures"],
            checkpoint=_checkpoint(asked["checkpoint"]),
            collect=asked["collect"],
            shard=None if asked["shard"] is None else read_shard(asked["shard"], os.environ),
            shutdown_grace_s=asked["shutdown_grace_s"],
        )
        check_sent(self.sent_stages(plan))
        if plan.dialect is not None and initial_tasks is not None:
            initial_tasks = plan.dialect.box(_iterable(initial_tasks), copies=self.in_process)
        watching = (*_check_observers(asked["observers"]), *ambient_observers(asked["observers"]))
        run = Run(
            plan,
            type(self).__name__,
            watching,
            settings,
            in_process=self.in_process,
            runs_source=self.runs_source(plan),
            engine=self.engine,
        )
        with run.stop.armed(partial(_give_up, run)):
            return self._execute(run, initial_tasks, keep_ids=keep_ids)

    def with_(self, **settings: Any) -> Self:
        """Return a copy of the executor with settings for the runs that are started without them.

        Another framework starts a run with nothing but an executor:

            pipeline.run(executor=LocalExecutor(workers=8).with_(on_error="skip", checkpoint="run.checkpoint"))

        A run that is given the default of a setting counts as started without it. A second call replaces the settings
        that it names, also ``stages`` as a whole.

        Args:
            **settings: ``name``, the name of the pipeline; ``stages``, other settings of stages by their names, such as
                ``{"caption": {"timeout_s": 60.0}}``; and the arguments of `execute` from ``observers`` on, except
                ``keep_ids``. Observers may be names of installed ones.

        Raises:
            ExecutorError: A setting is unknown or of the wrong type, or no observer of that name is installed.
        """
        changed = copy.copy(self)
        changed._presets = {**self._presets, **checked_presets(settings)}
        return changed

    def _compiled(self, stages: Iterable[Any], initial_tasks: Any) -> tuple[Plan, Any]:
        """Return the plan of stages, and the initial tasks; None if the first stage is a source."""
        stages = [*stages]
        name, dialect = self._presets.get("name"), find_dialect(stages)
        if dialect is not None:
            name = name or dialect.name_of_run()
            initial_tasks = dialect.initial(initial_tasks or ())
        name = name or PRESETS["name"]
        return Plan.from_stages(stages, name, fed=initial_tasks is not None), initial_tasks

    def _with_presets(self, plan: Plan, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of a run: as asked for, or of `with_`, or, for other frameworks, of the environment."""
        given = {name: value for name, value in asked.items() if value not in (PRESETS[name], [])}
        if plan.dialect is None:
            return {**PRESETS, **self._presets, **given}
        given = {**presets_of_environment(os.environ), **self._presets, **given}
        return {**PRESETS, **given, **plan.dialect.settings(given)}

    def _execute(self, run: Run, initial_tasks: Iterable[Any] | None, *, keep_ids: bool) -> RunResult:
        sources = (
            None if initial_tasks is None else _name_sources(initial_tasks, run.new_source_ids(), keep_ids=keep_ids)
        )
        with run.open():
            try:
                sources = run.initial_tasks = None if sources is None else [*run.admit(sources)]
                run.start(None if sources is None else len(sources))
                with marked_records(), heard_interrupts():
                    self.run_plan(run)
                run.settle()
            except BaseException as exc:
                run.stop.close_accounts()
                _attach(exc, run.finish(run.stop.reason(exc)))
                raise
            run.stop.close_accounts()
            return run.finish(None)

    def sent_stages(self, plan: Plan) -> Sequence[CompiledStage]:
        """Return the stages that leave this process, so they and everything that they use must be picklable.

        Args:
            plan: The plan; ``has_source`` is False if it is run with initial tasks.
        """
        stays = len(plan.stages) if self.in_process else plan.has_source and self.runs_source(plan)
        return [*_isolated_stages(plan.stages[:stays]), *plan.stages[stays:]]

    def failure_policy(self, on_error: FailurePolicy) -> FailurePolicy:
        """Return the failure policy for a run, which a setting of the executor may override.

        Args:
            on_error: The policy that the run was given.
        """
        return on_error

    def runs_source(self, plan: Plan) -> bool:
        """Whether the driver runs the source of a plan; otherwise the source's one task goes to a worker.

        Args:
            plan: A plan with a source.
        """
        return True

    @abstractmethod
    def run_plan(self, run: Run) -> None:
        """Move the tasks of ``run.source()`` through ``run.stages``, and collect the outputs of the last one.

        Each batch goes through the adapter of its stage: `Run.adapter` for stages in this thread; elsewhere, a
        `BaseStageAdapter` bound to ``run.context``, whose reports are passed to ``run.report``.

        Args:
            run: The run.
        """


def _isolated_stages(stages: Iterable[CompiledStage]) -> list[CompiledStage]:
    """Return the stages that run in a process of their own on every executor."""
    return [compiled for compiled in stages if is_isolated(compiled, RunContext())]


def _checkpoint(given: Checkpoint | PathLike | None) -> Checkpoint | None:
    return given if given is None or isinstance(given, Checkpoint) else Checkpoint(given)


def _iterable(tasks: Any) -> Iterable[Any]:
    """Return initial tasks as they are; raise if they are not a list or another iterable of tasks."""
    if isinstance(tasks, Task) or not isinstance(tasks, Iterable):
        raise ConfigurationError(
            "initial_tasks is not a list of tasks",
            field="initial_tasks",
            given=tasks,
            expected="a list of tasks, or None if the first stage is a source",
            hint="pass initial_tasks=[task]",
        )
    return tasks


def _name_sources(tasks: Iterable[Any], names: SourceIds, *, keep_ids: bool) -> list[Any]:
    named, seen = [], set[str]()
    for number, given in enumerate(_iterable(tasks)):
        if not isinstance(given, Task):
            raise ConfigurationError(
                "an initial task is not a Task",
                field=f"initial_tasks[{number}]",
                given=given,
                expected="an instance of Task",
                hint="wrap the data: Task(data=…)",
            )
        # The framework's state goes on a copy that has its own notes, so that the caller's task does not change.
        task, (task_id, _, notes) = _copied(given), state_of(given)
        name = task_id if keep_ids and task_id else names.name(given)
        if name in seen:
            raise ConfigurationError(
                "two initial tasks have the same id",
                field=f"initial_tasks[{number}]",
                given=name,
                expected="unique ids, because these tasks keep the ids from an earlier run",
                hint="pass the tasks of one stage, from one directory of dead letters, at a time",
            )
        seen.add(name)
        stamp(task, new_state(name, metadata=dict(notes) if notes else None))
        named.append(task)
    return named


def _copied(task: Any) -> Any:
    """Return a shallow copy, five times as fast as `copy.copy` if the class does not customize copying."""
    if not _copies_plainly(task.__class__):
        return copy.copy(task)
    copied = object.__new__(type(task))
    copied.__dict__.update(task.__dict__)
    return copied


@lru_cache(256)
def _copies_plainly(task_class: type) -> bool:
    is_plain = all(getattr(task_class, name) is getattr(object, name) for name in ("__reduce__", "__reduce_ex__"))
    own = ("__copy__", "__getstate__", "__setstate__", "__slots__")
    return is_plain and not any(vars(base).get(name) for base in task_class.__mro__[:-1] for name in own)


def _check_observers(observers: Sequence[Any]) -> Sequence[RunObserver]:
    for number, observer in enumerate(observers):
        if not isinstance(observer, RunObserver):
            raise ExecutorError(
                "an observer is not a RunObserver",
                field=f"observers[{number}]",
                given=observer,
                expected="an instance of a subclass of RunObserver",
                hint="call the class, or pass the name of an installed observer to Pipeline.run",
            )
    return [
        *{id(observer): observer for observer in observers}.values()
    ]  # each is called once, even if it is listed twice


def _give_up(run: Run, stopped: RunStopped) -> None:
    """Close the run in place of the main thread, which is stuck in a call."""
    run.close_anyway(stopped)  # first, because a lock that is left behind keeps other hosts from continuing
    run.finish(stopped)


def _attach(exc: BaseException, result: RunResult) -> None:
    """Attach the result of the work done so far to an exception."""
    if isinstance(exc, CuratorError | KeyboardInterrupt):
        exc.result = result  # type: ignore[union-attr]  # documented for both
    if isinstance(exc, KeyboardInterrupt):
        exc.add_note(f"interrupted; work done so far:\n{result.summary()}")
