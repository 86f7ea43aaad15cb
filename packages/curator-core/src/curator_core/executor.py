# SPDX-License-Identifier: Apache-2.0
"""What an executor is, and what a run leaves behind."""

from __future__ import annotations

import copy
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from curator_core.activity import Activity
from curator_core.adapter import RunContext
from curator_core.ambient import ambient_observers
from curator_core.errors import ConfigurationError, ExecutorError, RunError, TasksLostError
from curator_core.ledger import Ledger, StageSummary, table
from curator_core.logs import marked_records
from curator_core.plan import Plan
from curator_core.report import BatchReport, RunInfo, RunObserver, StageInfo, WorkerReport
from curator_core.task import EmptyTask, RootNames, Task, new_state, stamp, state_of
from curator_core.verdict import TOO_SHORT, Verdict, judge

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from curator_core.adapter import OnError

__all__ = ["BaseExecutor", "Run", "RunResult"]

logger = logging.getLogger(__name__)

_LINE_LIMIT = 120  # characters of an error that the summary shows
_NODES_LIMIT = 4  # whose clocks the summary shows: those that differ most


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
        verdict: What held the run up, and what to change.
        clock_offsets: By node, the seconds that were added to the times in its reports, since its clock differs from
            the driver's: the last estimate. Only nodes that were corrected; empty on one machine.
        trace_id: The trace that an observer wrote, 32 hex digits; empty where none did.
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
        verdict: Verdict | None = None,
        clock_offsets: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(tasks)
        self.run_id = run_id
        self.pipeline_name = pipeline_name
        self.wall_time_s = wall_time_s
        self.stages = tuple(stages)
        self.complete = complete
        self.lost = tuple(lost)
        self.verdict = verdict or TOO_SHORT
        self.clock_offsets = dict(clock_offsets or {})
        self.trace_id = ""

    def summary(self) -> str:
        """The run as a text table."""
        state = "" if self.complete else " (ended early)"
        run = f"run {self.run_id}" + (f", trace {self.trace_id}" if self.trace_id not in ("", self.run_id) else "")
        lines = [f"{self.pipeline_name}: {len(self):,} tasks out in {self.wall_time_s:.1f} s{state}, {run}"]
        if self.stages:
            lines += [table(self.stages), str(self.verdict)]
        for stage in self.stages:
            if stage.first_error:
                failed = f"{stage.tasks_failed:,} task{'s' * (stage.tasks_failed != 1)}"
                lines.append(f"'{stage.name}' failed on {failed}, first with {_first_line(stage.first_error)}")
        if self.clock_offsets:
            lines.append(f"clocks corrected: {_shown_offsets(self.clock_offsets)}")
        lines += [f"unaccounted for: {finding}" for finding in self.lost]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<RunResult {self.run_id}: {len(self)} tasks, {len(self.stages)} stages>"


def _first_line(text: str) -> str:
    line = text.split("\n", 1)[0]
    return line if len(line) <= _LINE_LIMIT else f"{line[:_LINE_LIMIT]}…"


def _shown_offsets(offsets: Mapping[str, float]) -> str:
    largest = sorted(offsets.items(), key=lambda item: -abs(item[1]))
    shown = [f"node {node_id[:8]} by {seconds:+.3f} s" for node_id, seconds in largest[:_NODES_LIMIT]]
    left = len(largest) - len(shown)
    return ", ".join(shown) + (f", and {left} more" if left else "")


class Run:
    """One run as its executor sees it: where reports go in, and outputs are gathered.

    Not for stages, and not for workers: it lives in the driver. Calls must come from one thread at a time.

    Attributes:
        plan: What is run.
        context: What adapters are bound to.
        outputs: The output tasks so far.
        fed: Tasks handed to the first stage so far.
        clock_offsets: As in `RunResult`, from an executor whose workers are on several nodes.
    """

    def __init__(
        self,
        plan: Plan,
        executor_name: str,
        observers: Sequence[RunObserver],
        on_error: OnError,
        *,
        in_process: bool = False,
    ) -> None:
        # From the operating system, not from `random`: a user's seeded sequence stays as it was.
        self.context = RunContext(run_id=os.urandom(16).hex(), on_error=on_error)
        self.plan = plan
        self.outputs: list[Any] = []
        self.fed = 0
        self.clock_offsets: dict[str, float] = {}
        self._ledger = Ledger(plan)
        # In one process the accounts say it all; a report there is to cost next to nothing.
        self._activity = None if in_process else Activity(len(plan.stages))
        self._observers = tuple(observers)
        self._failed_observers = set[int]()
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
            if self._activity is not None:
                self._activity.on_batch(report)
            if self._observers:
                self._tell("on_batch", report)
            return
        self._ledger.on_worker(report)
        if self._activity is not None:
            self._activity.on_worker(report)
        if report.event == "ended" and report.error is not None:
            # Nobody raises it, since the work is done; a stage that writes at the end may have lost some of it.
            logger.error("stage '%s' raised in teardown:\n%s", report.stage_name, report.error.traceback)
        self._tell("on_worker", report)

    def lost(self) -> list[str]:
        """Where tasks are missing from the counts, in words; empty where all add up."""
        return self._ledger.lost(self.fed)

    def check_accounts(self) -> None:
        """Raise `TasksLostError` where the counts do not add up, and the run is to end at a failure."""
        lost = self.lost()
        if lost and self.context.on_error == "raise":
            raise TasksLostError(
                f"the run lost tasks: {'; '.join(lost)}",
                expected="in = out + filtered + failed, from each stage to the next",
                hint="run it again; what was complete is in this error's `result`",
            )

    def finish(self, error: BaseException | None) -> RunResult:
        """Close the accounts, and tell the observers that the run is over."""
        result = RunResult(
            self.outputs,
            run_id=self.context.run_id,
            pipeline_name=self.plan.name,
            wall_time_s=time.perf_counter() - self._start,
            stages=self._ledger.summaries(),
            complete=error is None,
            lost=self.lost() if error is None or isinstance(error, TasksLostError) else (),
            verdict=self._verdict(),
            clock_offsets=self.clock_offsets,
        )
        if result.lost:
            logger.error("run %s lost tasks: %s", result.run_id, "; ".join(result.lost))
        self._tell("on_run_end", result, error)
        return result

    def _verdict(self) -> Verdict:
        try:
            if self._activity is None:
                return judge(self._ledger.evidence())
            return judge(self._activity.evidence(self._ledger.stage_evidence()))
        except Exception:  # what came of the run matters more
            logger.exception("what held the run up cannot be said")
            return Verdict("unclear", reason="what held the run up cannot be said: see the log")

    def _tell(self, method: str, *args: Any) -> None:
        for observer in self._observers:
            is_silenced = id(observer) in self._failed_observers
            if is_silenced and method != "on_run_end":
                continue
            try:
                getattr(observer, method)(*args)
            except Exception:
                self._failed_observers.add(id(observer))
                if not is_silenced:
                    logger.exception("observer %s failed in %s; the run goes on without it", observer, method)


class BaseExecutor(ABC):
    """Runs plans. A subclass says how batches move, in `run_plan`; everything else is the same for all.

    Attributes:
        in_process: Whether all stages run in the calling thread, one after the other.
    """

    in_process: bool = False

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
            observers: Who watches, beside those of `watch_all_runs`.
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
        plan = plan if isinstance(plan, Plan) else Plan.from_stages(plan, fed=initial_tasks is not None)
        sources = None if initial_tasks is None else _name_sources(initial_tasks)
        watching = (*_check_observers(observers), *ambient_observers(observers))
        run = Run(plan, type(self).__name__, watching, on_error, in_process=self.in_process)
        try:
            run.start(None if sources is None else len(sources))
            with marked_records():
                self.run_plan(run, sources)
            run.check_accounts()
        except BaseException as exc:
            _attach(exc, run.finish(exc))
            raise
        return run.finish(None)

    @abstractmethod
    def run_plan(self, run: Run, sources: list[Any] | None) -> None:
        """Run ``run.plan``.

        Moves every task through the stages' adapters, gives every report to ``run.report``, adds what comes out to
        ``run.outputs``, and sets ``run.fed``.

        Args:
            run: The run.
            sources: The named source tasks; None where the first stage is a source, to be given the task of
                `empty_source`.
        """


def empty_source() -> EmptyTask:
    """The task for a source stage. It has no id, so that what the source makes of it begins lineages."""
    return EmptyTask()


def _name_sources(tasks: Iterable[Any]) -> list[Any]:
    if isinstance(tasks, Task) or not isinstance(tasks, Iterable):
        raise ConfigurationError(
            "initial_tasks is no list of tasks",
            field="initial_tasks",
            given=tasks,
            expected="a list of tasks, or None where the first stage is a source",
            hint="write initial_tasks=[task]",
        )
    named, names = [], RootNames()
    for number, given in enumerate(tasks):
        if not isinstance(given, Task):
            raise ConfigurationError(
                "an initial task is no task",
                field=f"initial_tasks[{number}]",
                given=given,
                expected="an instance of Task",
                hint="wrap the data: Task(data=…)",
            )
        # The framework's state goes on a copy, with notes of its own: the caller's task stays as it is.
        task, (_, _, notes) = copy.copy(given), state_of(given)
        stamp(task, new_state(names.name(given), metadata=dict(notes) if notes else None))
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
    return [
        *{id(observer): observer for observer in observers}.values()
    ]  # each is told once, also where it stands twice


def _attach(exc: BaseException, result: RunResult) -> None:
    """Give an exception what was done until it was raised."""
    if isinstance(exc, RunError | KeyboardInterrupt):
        exc.result = result  # type: ignore[union-attr]  # documented for both
    if isinstance(exc, KeyboardInterrupt):
        exc.add_note(f"interrupted; what was done until then:\n{result.summary()}")
