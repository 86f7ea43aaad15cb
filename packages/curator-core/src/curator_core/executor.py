# SPDX-License-Identifier: Apache-2.0
"""What an executor is, and what a run leaves behind."""

from __future__ import annotations

import copy
import logging
import os
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from curator_core.adapter import RunContext
from curator_core.errors import ConfigurationError, ExecutorError, RunError, TasksLostError
from curator_core.ledger import Ledger, StageSummary, table
from curator_core.plan import Plan
from curator_core.report import BatchReport, RunInfo, RunObserver, StageInfo, WorkerReport
from curator_core.task import EmptyTask, Task, TaskState, root_id, stamp, state_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from curator_core.adapter import OnError

__all__ = ["BaseExecutor", "Run", "RunResult"]

logger = logging.getLogger(__name__)


class RunResult(list[Any]):
    """The output tasks of a run, and its accounts.

    The order of the tasks is that of the pipeline on `LocalExecutor`, and that of completion elsewhere.

    Attributes:
        run_id: 32 hex digits.
        pipeline_name: Name of the pipeline.
        wall_time_s: Seconds from start to end, set-up of the engine included.
        stages: What each stage did.
        complete: Whether the run came to its end.
        lost: Where the counts do not add up, in words; empty on a good run.
    """

    def __init__(
        self,
        tasks: Iterable[Any] = (),
        *,
        run_id: str = "",
        pipeline_name: str = "",
        wall_time_s: float = 0.0,
        stages: Sequence[StageSummary] = (),
        complete: bool = True,
        lost: Sequence[str] = (),
    ) -> None:
        super().__init__(tasks)
        self.run_id = run_id
        self.pipeline_name = pipeline_name
        self.wall_time_s = wall_time_s
        self.stages = tuple(stages)
        self.complete = complete
        self.lost = tuple(lost)

    def summary(self) -> str:
        """The run as a text table."""
        state = "" if self.complete else " (ended early)"
        lines = [f"{self.pipeline_name}: {len(self):,} tasks out in {self.wall_time_s:.1f} s{state}, run {self.run_id}"]
        if self.stages:
            lines.append(table(self.stages))
        lines += [f"unaccounted for: {finding}" for finding in self.lost]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<RunResult {self.run_id}: {len(self)} tasks, {len(self.stages)} stages>"


class Run:
    """One run as its executor sees it: where reports go in, and outputs are gathered.

    Not for stages, and not for workers: it lives in the driver. Calls must come from one thread at a time.

    Attributes:
        plan: What is run.
        context: What adapters are bound to.
        outputs: The output tasks so far.
        fed: Tasks handed to the first stage so far.
    """

    def __init__(self, plan: Plan, executor_name: str, observers: Sequence[RunObserver], on_error: OnError) -> None:
        # From the operating system, not from `random`: a user's seeded sequence stays as it was.
        self.context = RunContext(run_id=os.urandom(16).hex(), on_error=on_error)
        self.plan = plan
        self.outputs: list[Any] = []
        self.fed = 0
        self._ledger = Ledger(plan)
        self._observers = list(observers)
        self._executor_name = executor_name
        self._start = time.perf_counter()

    def start(self, num_source_tasks: int | None) -> None:
        """Tell the observers that the run begins."""
        stages = tuple(StageInfo(view.index, view.name, view.class_name) for view in self.plan.stages)
        info = RunInfo(
            run_id=self.context.run_id,
            pipeline_name=self.plan.name,
            executor_name=self._executor_name,
            stages=stages,
            start_unix_ns=time.time_ns(),
            num_source_tasks=num_source_tasks,
        )
        self._tell("on_run_start", info)

    def report(self, report: BatchReport | WorkerReport) -> None:
        """Enter a report, and show it to the observers."""
        if isinstance(report, BatchReport):
            self._ledger.on_batch(report)
            self._tell("on_batch", report)
        else:
            self._ledger.on_worker(report)
            self._tell("on_worker", report)

    def finish(self, error: BaseException | None) -> RunResult:
        """Close the accounts, and tell the observers that the run is over."""
        result = RunResult(
            self.outputs,
            run_id=self.context.run_id,
            pipeline_name=self.plan.name,
            wall_time_s=time.perf_counter() - self._start,
            stages=self._ledger.summaries(),
            complete=error is None,
            lost=self._ledger.lost(self.fed) if error is None else (),
        )
        self._tell("on_run_end", result, error)
        return result

    def _tell(self, method: str, *args: Any) -> None:
        for observer in list(self._observers):
            try:
                getattr(observer, method)(*args)
            except Exception:
                # A broken observer is shown once and then left out; the run goes on without it.
                logger.exception("observer %s failed in %s and is left out of this run", observer, method)
                self._observers.remove(observer)


class BaseExecutor(ABC):
    """Runs plans. A subclass says how batches move, in `run_plan`; everything else is the same for all."""

    def execute(
        self,
        plan: Plan | Iterable[Any],
        initial_tasks: Iterable[Task[Any]] | None = None,
        *,
        observers: Sequence[RunObserver] = (),
        on_error: OnError = "raise",
    ) -> RunResult:
        """Run a plan to its end.

        Args:
            plan: A plan, or the stages of one.
            initial_tasks: What the first stage is given; None for a source, which is given one `EmptyTask`.
                They are left as they are.
            observers: Who watches.
            on_error: ``"raise"`` ends the run at the first failure, ``"skip"`` drops what failed, counts it
                and goes on.

        Raises:
            RunError: A stage raised, a worker died, the cluster failed, or tasks were lost; its ``result``
                has what was done.
            KeyboardInterrupt: Ctrl-C; the summary of what was done is added as a note, and ``result``.
        """
        if on_error not in ("raise", "skip"):
            raise ConfigurationError(
                "there is no such failure policy",
                field="on_error",
                given=on_error,
                expected="'raise' or 'skip'",
                hint="use 'skip' to go on after failures",
            )
        plan = plan if isinstance(plan, Plan) else Plan.from_stages(plan)
        sources = None if initial_tasks is None else _name_sources(initial_tasks)
        run = Run(plan, type(self).__name__, _check_observers(observers), on_error)
        run.start(None if sources is None else len(sources))
        try:
            self.run_plan(run, sources)
        except BaseException as exc:
            _attach(exc, run.finish(exc))
            raise
        result = run.finish(None)
        if result.lost and on_error == "raise":
            raise _tasks_lost(result)
        return result

    @abstractmethod
    def run_plan(self, run: Run, sources: list[Any] | None) -> None:
        """Run ``run.plan``: move every task through its adapters, give every report to ``run.report``, and
        append what comes out to ``run.outputs``.

        Args:
            run: The run.
            sources: The named source tasks; None where the first stage is a source, to be given the task of
                `empty_source`.
        """


def empty_source() -> EmptyTask:
    """The task for a source stage. It has no id, so that what the source makes of it begins lineages."""
    return EmptyTask()


def _name_sources(tasks: Iterable[Any]) -> list[Any]:
    named, taken = [], dict[str, int]()
    for ordinal, given in enumerate(tasks):
        if not isinstance(given, Task):
            raise ConfigurationError(
                "an initial task is no task",
                field=f"initial_tasks[{ordinal}]",
                given=given,
                expected="an instance of Task",
                hint="wrap the data: Task(data=…)",
            )
        task = copy.copy(given)  # the framework's state goes on a copy: the caller's task stays as it is
        stamp(task, TaskState(root_id(given, ordinal, taken), (), state_of(given).metadata))
        named.append(task)
    return named


def _check_observers(observers: Sequence[Any]) -> Sequence[RunObserver]:
    for number, observer in enumerate(observers):
        if not isinstance(observer, RunObserver):
            raise ExecutorError(
                "an observer is no RunObserver",
                field=f"observers[{number}]",
                given=observer,
                expected="an instance of a subclass of RunObserver",
                hint="call the class, or give an installed observer's name to Pipeline.run",
            )
    return observers


def _attach(exc: BaseException, result: RunResult) -> None:
    if isinstance(exc, RunError):
        exc.result = result
    elif isinstance(exc, KeyboardInterrupt):
        exc.result = result  # type: ignore[attr-defined]
        exc.add_note(f"interrupted; what was done until then:\n{result.summary()}")


def _tasks_lost(result: RunResult) -> TasksLostError:
    error = TasksLostError(
        f"the run lost tasks: {'; '.join(result.lost)}",
        expected="in = out + filtered + failed, from each stage to the next",
        hint="run it again; what was complete is in this error's `result`",
    )
    error.result = result
    return error
