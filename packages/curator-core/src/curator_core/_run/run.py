# SPDX-License-Identifier: Apache-2.0
"""One run as its executor sees it: where reports go in and outputs are collected."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from itertools import chain
from typing import TYPE_CHECKING, Any

from curator_core._adapter.adapter import BaseStageAdapter
from curator_core._adapter.worker_state import RunContext, WorkerClock
from curator_core._bottleneck.activity import Activity
from curator_core._bottleneck.rules import judge
from curator_core._guard.interrupts import StopSignal
from curator_core._guard.signals import handlers_deferred
from curator_core._guard.user_code import check_failure
from curator_core._reports.batch import BatchReport, RunInfo, StageInfo
from curator_core._reports.columns import ReportColumns
from curator_core._run.attempts import RunAttempt
from curator_core._run.commits import Commits
from curator_core._run.failure_log import FailureLog
from curator_core._run.run_totals import RunTotals
from curator_core._run.shutdown import Shutdown
from curator_core._run.source_progress import SourceProgress
from curator_core.errors import FailureLimitError, PipelineError, RunStopped, TasksLostError
from curator_core.results import Accounting, RunResult, RunState, Verdict
from curator_core.stages import NodeInfo, WorkerMetadata
from curator_core.tasks import EmptyTask, FileGroupTask, SourceIds, new_state, stamp, state_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from curator_core._checkpoint.settings import Checkpoint
    from curator_core._checkpoint.store import OpenCheckpoint
    from curator_core._plan.compiled import CompiledStage
    from curator_core._plan.plan import Plan
    from curator_core._reports.batch import WorkerReport
    from curator_core._reports.observers import RunObserver
    from curator_core._reports.wire import AnyReport
    from curator_core._run.settings import RunSettings
    from curator_core._run.source_progress import Finished
    from curator_core._shard import Shard

__all__ = ["Run"]

logger = logging.getLogger(__name__)

_RESTARTING = "%s: restarting with the %d unfinished source tasks; restarts left: %d"
_SHOWN = 10  # source tasks that an error names


class Run:
    """One run as its executor sees it: where reports go in and outputs are collected.

    Not for stages or workers: it lives in the driver. Calls must come from one thread at a time.

    Attributes:
        plan: The plan that is run.
        context: The context that adapters are bound to.
        outputs: The output tasks so far.
        initial_tasks: The tasks that the run was given, named and admitted; None if it has a source.
        runs_source: Whether the driver runs the source; otherwise its one task goes to a worker.
        fed: Tasks handed to the first stage so far.
        clock_offsets: As in `RunResult`, from an executor whose workers are on several nodes.
        stop: Whether the run has to end.
    """

    def __init__(
        self,
        plan: Plan,
        executor_name: str,
        observers: Sequence[RunObserver],
        settings: RunSettings,
        *,
        in_process: bool = False,
        runs_source: bool = True,
        engine: str = "",
    ) -> None:
        letters, last = settings.letters, len(plan.stages) - 1
        self.context = RunContext(
            run_id=os.urandom(16).hex(),  # not from `random`: a user's seeded sequence is not disturbed
            on_error="raise" if settings.on_error == "raise" else "skip",
            letter_bytes=None if letters is None else letters.max_bytes,
            written_files_of=-1 if settings.checkpoint is None else last,
            collect=settings.collect,
        )
        self.plan = plan
        self.outputs: list[Any] = [] if settings.collect else _Uncollected()
        self.initial_tasks: list[Any] | None = None
        self.runs_source = plan.has_source and runs_source
        self.fed = 0
        self.clock_offsets: dict[str, float] = {}
        self._checkpoint = settings.checkpoint
        self._shard = settings.shard
        self._elsewhere = 0  # source tasks of other shards
        self._store: OpenCheckpoint | None = None
        self._commits: Commits | None = None
        self._totals = RunTotals(plan)
        self._sources = SourceProgress(last, first=1 if plan.has_source else 0)
        self._failures = FailureLog(settings, self._totals, plan.name, self._trace_id)
        self._resumed: list[str] = []
        self._held: dict[str, Any] = {}
        self._clock = WorkerClock()
        self._source: BaseStageAdapter | None = None
        # In one process the totals are sufficient, and a report should cost next to nothing.
        self._activity = None if in_process else Activity(len(plan.stages))
        self._observers = tuple(observers)
        self._failed_observers = set[int]()
        self._executor_name = executor_name
        self.stop = Shutdown(settings.shutdown_grace_s, engine, Run.report.__code__)
        self._start = time.perf_counter()

    @contextmanager
    def open(self) -> Iterator[None]:
        """Open the files that the run writes on its own: its checkpoint and its dead letters.

        Raises:
            ConfigurationError: The checkpoint belongs to another pipeline, or another run is using it; or the last
                stage puts several tasks in a file, and its directory contains files of another run.
            DataError: The files cannot be read or written.
        """
        with ExitStack() as held:
            if self._checkpoint is not None:
                self._store = held.enter_context(_opened(self._checkpoint, self.plan, self.context.run_id, self._shard))
            if self.plan.stages[-1].is_committed:
                self._commits = self._open_commits()
                held.callback(self._commits.close)
            self._failures.prepare()
            try:
                yield
            except BaseException as exc:
                self.close_anyway(exc)
                raise

    def _open_commits(self) -> Commits:
        commits, self.plan = Commits.open(self.plan, self.context.run_id, self._shard, self._store)
        self.context = self.context._replace(written_files_of=len(self.plan.stages) - 1, written=commits.written)
        return commits

    def close_anyway(self, ended_by: BaseException) -> None:
        """Close what is open after a failure; errors of closing must not hide that failure from the caller."""
        self._close_noting(self._failures.close, ended_by, "a dead letter could not be written")
        if self._store is not None:
            self._close_noting(self._store.close, ended_by, "the checkpoint could not be closed")

    @staticmethod
    def _close_noting(close: Callable[[], None], ended_by: BaseException, what: str) -> None:
        try:
            close()
        except Exception as exc:  # noqa: BLE001 - added as a note
            if str(exc) != str(ended_by):
                ended_by.add_note(f"and {what}: {exc}")

    # --- for executors ------------------------------------------------------------------------------------

    @property
    def stages(self) -> tuple[CompiledStage, ...]:
        """The stages that process the tasks from `source`."""
        return self.plan.stages[self.runs_source :]

    @contextmanager
    def source(self, worker_id: str = "driver") -> Iterator[Generator[Any, None, None]]:
        """Yield the tasks for `stages`, named and admitted: initial tasks, or those that the source makes meanwhile.

        The source is torn down at the end of the block.

        Args:
            worker_id: The name of the worker that is the driver, in reports.

        Raises:
            StageError: The source raised, and failures end the run; also raised while tasks are read.
            PipelineError: See `admit`.
        """
        if self.initial_tasks is not None:
            self.fed = len(self.initial_tasks)
            yield (task for task in self.initial_tasks)
            return
        self.fed = 1
        if not self.runs_source:
            yield self.admit([EmptyTask()])
            return
        self._source = adapter = self.adapter(self.plan.stages[0])
        adapter.setup_on_node(NodeInfo(worker_id), WorkerMetadata(worker_id))
        adapter.setup(WorkerMetadata(worker_id))
        try:
            with closing(self.admit(adapter.process_source(EmptyTask()))) as made:
                yield made
        finally:
            adapter.teardown()

    def adapter(self, compiled: CompiledStage) -> BaseStageAdapter:
        """Return an adapter for a stage that runs in this thread, bound to the run, with its own copy of the stage."""
        adapter = BaseStageAdapter(compiled.fresh_stage(), compiled)
        adapter.bind(self.context, self.report, self.announce)
        adapter.state.source_ids = self.new_source_ids()
        adapter.state.clock = self._clock  # a stage is not idle while this thread runs another one
        return adapter

    def collect(self, tasks: Iterable[Any]) -> None:
        """Add outputs of the last stage to the result."""
        self.outputs += tasks

    def attempts(self, tasks: Iterable[Any], max_restarts: int, *, after_losses: bool = False) -> Iterator[RunAttempt]:
        """Yield attempts at the source tasks: at all of them, then at the unfinished ones after a worker died.

            for attempt in run.attempts(tasks, max_restarts=3):
                with attempt:
                    process(attempt.tasks)

        Args:
            tasks: The tasks from `source`.
            max_restarts: How many attempts may follow the first one. The driver keeps unfinished tasks for them.
            after_losses: Whether another attempt also follows one that ended well and left tasks unfinished.
        """
        known = self.initial_tasks if isinstance(tasks, Iterator) else [*tasks]
        # Initial tasks were admitted before; a source's tasks are admitted, and kept, as they are made.
        pending, to_make = (tasks, tasks) if known is None else (known, ())
        if max_restarts:
            self._keep_sources(known or ())
        for restarts_left in range(max_restarts, -1, -1):
            attempt = RunAttempt(iter(pending), None if known is None else len(known), restarts_left)
            yield attempt
            if not restarts_left or not self._needs_another(attempt, after_losses=after_losses):
                return
            unfinished = self._restart()
            reason = "tasks were lost" if attempt.died is None else attempt.died.message
            logger.warning(_RESTARTING, reason, len(unfinished), restarts_left - 1)
            known = None if known is None else unfinished
            pending = chain(unfinished, to_make)

    def _needs_another(self, attempt: RunAttempt, *, after_losses: bool) -> bool:
        if attempt.died is None:
            return after_losses and self.has_unfinished
        return self.has_unfinished or attempt.count is None  # a source may have more tasks to make

    def new_source_ids(self) -> SourceIds:
        """Return the names for source tasks: by content if other runs have to recognize the tasks."""
        if self._checkpoint is None and self._shard is None:
            return SourceIds()
        from curator_core._checkpoint.content import content_id  # noqa: PLC0415 - for runs with a checkpoint

        return SourceIds(content_id)

    def admit(self, tasks: Iterable[Any]) -> Generator[Any, None, None]:
        """Yield the source tasks to process: those of this shard that no earlier run with this checkpoint finished.

        Args:
            tasks: The source tasks, with their ids. A generator is closed with this one.

        Raises:
            PipelineError: With a checkpoint or a shard, a source stage's own task, because its outputs are made on a
                worker and never seen here.
        """
        with closing(tasks) if isinstance(tasks, Generator) else nullcontext():
            for task in tasks:
                source_id = state_of(task)[0]
                if not source_id and (self._store is not None or self._shard is not None):
                    raise _unseen_source(self.plan, "checkpoint" if self._shard is None else "shard")
                if self._shard is not None and not self._shard.has(source_id):
                    self._elsewhere += 1
                    continue
                if self._store is not None and self._store.is_finished(source_id):
                    self._resumed.append(source_id)
                    continue
                self._sources.admit(source_id)
                if self._sources.can_restart:
                    self._held[source_id] = task
                yield task

    def start(self, num_source_tasks: int | None) -> None:
        """Tell the observers that the run begins."""
        stages = tuple(StageInfo(compiled.index, compiled.name, compiled.class_name) for compiled in self.plan.stages)
        info = RunInfo(
            run_id=self.context.run_id,
            pipeline_name=self.plan.name,
            executor_name=self._executor_name,
            stages=stages,
            start_unix_ns=time.time_ns(),
            num_source_tasks=num_source_tasks,
        )
        self._tell("on_run_start", info)

    def report(self, report: AnyReport) -> None:
        """Count a report, or the reports of several batches as `ReportColumns`, and show it to the observers."""
        if isinstance(report, BatchReport):
            if report.epoch != self.context.epoch:  # from an abandoned engine: its tasks are processed again
                report = report.all_as("retried")
            self._totals.on_batch(report)
            if report.error is not None:
                if self.plan.dialect is not None and not report.error.ends_run:
                    self.plan.dialect.gave_up(report.error.type)
                report = self._failures.enter(report)
            if self._commits is not None and report.written_files:
                self._commits.enter(report, self._sources.source_of)
            finished = self._sources.on_batch(report)
            if finished:
                self._keep(finished)
            if self._activity is not None:
                self._activity.on_batch(report)
            if self._observers:
                self._tell("on_batch", report)
            if report.error is not None:
                self._failures.check_limit(report)
        elif isinstance(report, ReportColumns):
            self._report_columns(report)
        else:
            self._report_worker(report)

    def report_all(self, reports: Iterable[AnyReport]) -> None:
        """Count all reports of a message from a worker, also if one of them, or Ctrl-C, ends the run.

        The outputs that come with the message are made by all of its batches.

        Raises:
            FailureLimitError: More tasks failed than allowed.
        """
        over_limit: FailureLimitError | None = None
        with handlers_deferred():
            for report in reports:
                try:
                    self.report(report)
                except FailureLimitError as exc:
                    over_limit = over_limit or exc
        if over_limit is not None:
            raise over_limit

    def _report_columns(self, reports: ReportColumns) -> None:
        if reports.epoch != self.context.epoch:
            for report in reports:
                self.report(report)
            return
        self._totals.on_columns(reports)
        finished = self._sources.on_columns(reports)
        if finished:
            self._keep(finished)
        if self._activity is not None:
            self._activity.on_columns(reports)
        if self._observers:
            for report in reports:
                self._tell("on_batch", report)

    def _report_worker(self, report: WorkerReport) -> None:
        self._totals.on_worker(report)
        if self._activity is not None:
            self._activity.on_worker(report)
        if report.event == "ended" and report.error is not None:
            # Nothing raises it, because the work is done; a stage that writes at the end may have lost some of it.
            logger.error("stage '%s' raised in teardown:\n%s", report.stage_name, report.error.traceback)
        self._tell("on_worker", report)

    def announce(self, task_id: str, *, can_withdraw: bool) -> Callable[[], None]:
        """Record that the outputs of an input are passed on, and are reported before the input is.

        Args:
            task_id: The id of the input.
            can_withdraw: Whether the outcomes of the outputs may be subtracted again.

        Returns:
            A function that subtracts them, for an executor that processes nothing else meanwhile. Observers have
            seen them.
        """
        withdraw_sources = self._sources.announce(task_id)
        if not can_withdraw:
            return withdraw_sources
        marks = (withdraw_sources, self._totals.mark(), self._failures.mark())

        def withdraw() -> None:
            for each in marks:
                each()

        return withdraw

    def _keep_sources(self, tasks: Iterable[Any] = ()) -> None:
        """Keep source tasks until they are finished, so that `_restart` can return them.

        Call it before any of them is processed.

        Args:
            tasks: Those that have been admitted already; any that are admitted from now on are kept too.
        """
        self._held = {state_of(task)[0]: task for task in tasks}
        self._sources.can_restart = True

    def _restart(self) -> list[Any]:
        """Restart unfinished source tasks after the engine has lost some of the work: their counts are subtracted.

        From now on stages run in their own processes, because a task may have killed the worker: one that does it
        again costs only a process of its stage.

        Returns:
            The unfinished source tasks; from now on, reports must have the next epoch.
        """
        self.context = self.context._replace(epoch=self.context.epoch + 1, isolates=True)
        if self._commits is not None:
            self._commits.restart(self._sources.written_files)
            self.context = self.context._replace(written=self._commits.written)
        if self._source is not None:
            self._source.bind(self.context, self.report)  # its reports belong to the next epoch
        self._failures.withdraw(self._is_open)
        self.outputs[:] = [task for task in self.outputs if not self._is_open(state_of(task)[0])]
        for stage, tally in self._sources.restart().items():
            self._totals.withdraw(stage, tally)
        return [self._held[source_id] for source_id in self._sources.unfinished]

    @property
    def has_unfinished(self) -> bool:
        """Whether some source tasks are not finished."""
        return bool(self._sources.unfinished)

    def _is_open(self, task_id: str) -> bool:
        return self._sources.source_of(task_id) is not None

    def _keep(self, finished: Sequence[Finished]) -> None:
        """Record that source tasks are finished, except those with failures that a later run must retry."""
        if self._held:
            for each in finished:
                for source_id in (each.source_id, *each.joined):
                    self._held.pop(source_id, None)
        if self._store is None:
            return
        skips = self.context.on_error == "skip"
        if skips and any(each.failed for each in finished):
            self._failures.wait()  # a task must be kept before it is recorded as failed and kept
        # A scheduler signals all processes of a job: tasks that failed since then may have failed because of that.
        skips = skips and not self.stop.signal
        for each in finished:
            if skips or not each.failed:
                outputs = [[made.task_id, made.paths, made.dataset_name] for made in each.written_files if made.paths]
                failed = each.failed > 0
                self._store.finish(each.source_id, failed=failed, outputs=outputs or None, joined=each.joined)
        self._store.write()

    def lost(self) -> list[str]:
        """Describe where tasks are missing from the counts; empty if everything adds up."""
        return self._totals.lost(self.fed, len(self._resumed) + self._elsewhere)

    def settle(self) -> None:
        """Ensure after the work is done that everything is written and closed, and no task is missing.

        Raises:
            TasksLostError: The counts do not add up, and failures end the run.
            DataError: The checkpoint or a dead letter cannot be written.
        """
        self._failures.close()
        if self._store is not None:
            self._store.close()
        lost = self.lost()
        if lost and self.context.on_error == "raise":
            raise TasksLostError(
                f"the run lost tasks: {'; '.join(lost)}",
                given=f"unfinished source tasks: {self._sources.unfinished[:_SHOWN]}",
                expected="in = passed + filtered + failed in each stage, and each output goes into the next stage",
                hint="run it again; the completed outputs are in this error's `result`",
            )

    def finish(self, error: BaseException | None) -> RunResult:
        """Make the result, and tell the observers that the run is over."""
        outputs = [*self.outputs, *self._earlier_outputs()]
        result = RunResult(
            outputs if self.plan.dialect is None else self.plan.dialect.unbox(outputs),
            run_id=self.context.run_id,
            pipeline_name=self.plan.name,
            wall_time_s=time.perf_counter() - self._start,
            stages=self._totals.summaries(),
            complete=error is None,
            state=_state_after(error),
            lost=self.lost() if error is None or isinstance(error, TasksLostError) else (),
            verdict=self._verdict(),
            clock_offsets=self.clock_offsets,
            accounting=Accounting(
                admitted=self._sources.admitted,
                restarts=self.context.epoch,
                resumed=tuple(self._resumed),
                failed={stage: tuple(ids) for stage, ids in self._failures.task_ids.items() if ids},
                unfinished=tuple(self._sources.unfinished),
                shard=None if self._shard is None else (self._shard.index, self._shard.count),
                elsewhere=self._elsewhere,
            ),
        )
        self.stop.result = result
        if result.lost:
            logger.error("run %s lost tasks: %s", result.run_id, "; ".join(result.lost))
        self._tell("on_run_end", result, error)
        return result

    def _earlier_outputs(self) -> list[Any]:
        """Return what earlier runs wrote for the source tasks that this run skipped."""
        if self._store is None or not self.context.collect:
            return []
        made, resumed = [], set(self._resumed)
        for source_id, outputs in self._store.outputs():
            for task_id, paths, dataset_name in outputs if source_id in resumed else ():
                task = FileGroupTask(paths, dataset_name)
                stamp(task, new_state(task_id))
                made.append(task)
        return made

    def _trace_id(self) -> str:
        """Return the id of the trace that an observer writes, if one does."""
        for observer in self._observers:
            with suppress(Exception):  # as in `_tell`: an observer must not fail the run
                if trace_id := observer.trace_of(self.context.run_id):
                    return trace_id
        return ""

    def _verdict(self) -> Verdict:
        try:
            if self._activity is None:
                return judge(self._totals.evidence())
            return judge(self._activity.evidence(self._totals.stage_evidence()))
        except Exception:  # the result of the run matters more
            logger.exception("could not determine the bottleneck of the run")
            return Verdict("unclear", reason="could not determine the bottleneck: see the log")

    def _tell(self, method: str, *args: Any) -> None:
        for observer in self._observers:
            is_silenced = id(observer) in self._failed_observers
            if is_silenced and method != "on_run_end":
                continue
            try:
                getattr(observer, method)(*args)
            except BaseException as exc:
                check_failure(exc)
                self._failed_observers.add(id(observer))
                if not is_silenced:
                    logger.exception("observer %s failed in %s; the run continues without it", observer, method)


class _Uncollected(list[Any]):
    """A list that discards the outputs added to it."""

    def __iadd__(self, tasks: Iterable[Any]) -> _Uncollected:  # type: ignore[misc]  # narrower than that of list
        return self

    def append(self, task: Any) -> None:
        """Discard the task."""

    def extend(self, tasks: Iterable[Any]) -> None:
        """Discard the tasks."""


def _state_after(error: BaseException | None) -> RunState:
    """Return the state of a run that ended with an error, or without one."""
    if isinstance(error, StopSignal):  # of an outer run that this one is part of
        error = RunStopped(error.number)
    if isinstance(error, RunStopped):
        return error.state
    if error is None:
        return "complete"
    return "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"


def _opened(checkpoint: Checkpoint, plan: Plan, run_id: str, shard: Shard | None) -> OpenCheckpoint:
    from curator_core._checkpoint.store import OpenCheckpoint  # noqa: PLC0415 - only for runs with a checkpoint

    return OpenCheckpoint.open(checkpoint, plan.stages, run_id, shard)


def _unseen_source(plan: Plan, field: str) -> PipelineError:
    what = "tasks that an earlier run finished" if field == "checkpoint" else "tasks of other shards"
    return PipelineError(
        f"the source runs on a worker, where {what} cannot be skipped",
        stage=plan.stages[0].name,
        field=field,
        expected="a source without resources, runtime environment, or number of workers, so that it runs in the driver",
        hint="remove those settings from the source, and move the work that needs them to a later stage",
    )
