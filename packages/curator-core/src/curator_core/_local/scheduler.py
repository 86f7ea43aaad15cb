# SPDX-License-Identifier: Apache-2.0
"""A run on several processes of this machine, in the driver; `worker` is the code in the processes.

One loop, in the calling thread, reads the source, sends bundles to processes, and handles their replies: reports
immediately, outputs in the order of the source.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from curator_core._adapter.sent_stages import SentStages
from curator_core._guard.user_code import check_failure
from curator_core._local import worker
from curator_core._local.parcels import SharedFiles, UnsendableError
from curator_core._local.pool import WorkerPool
from curator_core._local.queues import GroupQueue
from curator_core._processes.process import DeadError
from curator_core._reports.batch import BatchReport
from curator_core._reports.failures import rebuild_error, unsendable
from curator_core._reports.wire import unpack_reports
from curator_core._transport.pickling import dumps
from curator_core.errors import DataError, WorkerDiedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from curator_core._local.parcels import Parcel
    from curator_core._local.pool import Event, WorkerProcess
    from curator_core._local.queues import InFlight
    from curator_core._plan.groups import StageGroup
    from curator_core._run.run import Run
    from curator_core.errors import StageError

__all__ = ["Scheduler"]

logger = logging.getLogger(__name__)

_READ_S = 0.02  # how long the source is read before the loop does something else
_QUIET_S = 1.0  # after a failure: how long processes may take to stop before a warning says what the run waits for
_WAITING = "waiting up to %.1f s for workers to finish their current work; Ctrl-C kills them now"


class LifecycleCall:
    """A job of a process that is not a bundle: the setup of the node, or teardown. See `InFlight` for bundles.

    Args:
        queue: The queue of the group to set up; None for teardown, which covers all groups.
    """

    seconds = math.inf

    def __init__(self, queue: GroupQueue | None = None) -> None:
        self.queue = queue

    def settle(self, reply: worker.Reply) -> None:
        """Record the reply."""
        if self.queue is not None and not reply.failed:
            self.queue.node = "ready"


class Scheduler:
    """Runs a plan on several processes.

    Args:
        run: The run.
        groups: Its groups of stages, without the source.
        workers: Maximum number of processes.
        tasks: The tasks for the first group, as they are made.
        total: Number of these tasks; None if unknown.
        bundle: Whether several batches are sent to a process at once.

    Attributes:
        has_worked: Whether all tasks are processed.
    """

    def __init__(
        self,
        run: Run,
        groups: Sequence[StageGroup],
        workers: int,
        tasks: Iterator[Any],
        total: int | None,
        *,
        bundle: bool,
    ) -> None:
        self.has_worked = False
        self._run = run
        self._tasks = tasks
        self._definitions = {group.index: _definition(run, group) for group in groups}
        self._last_parcel_size = sys.maxsize if run.context.collect else 0
        self._pool = WorkerPool(workers, first=run.context.epoch * workers)
        self._files = SharedFiles(self._pool.directory, "driver")
        shares = _shares(groups, self._pool.processes)
        pairs = zip(groups, shares, strict=True)
        self._queues = [GroupQueue(group, processes, self._files, bundle=bundle) for group, processes in pairs]
        self._queues[0].upcoming = total
        for queue, following in pairwise(self._queues):
            queue.following = following

    def run(self) -> None:
        """Process all tasks, or end at the first failure. All processes have ended afterward.

        Raises:
            StageError: A stage raised, and failures end the run.
            WorkerDiedError: A process died, and nothing else failed: the unfinished tasks can be processed again.
            CuratorError: A stage, a task, or an output cannot be sent between processes.
        """
        overdue: Sequence[WorkerProcess] = self._pool.processes  # until they have torn down
        try:
            try:
                self._process_all()
                self.has_worked = True
                self._tear_down()
                overdue = ()
            except BaseException as exc:
                if not isinstance(exc, Exception):  # a signal; after a failure, processes finish their current work
                    self._pool.stop()
                overdue, worse = self._shut_down()
                if worse is not None and isinstance(exc, WorkerDiedError):
                    raise worse from None  # it ends the run, while a dead process only restarts it
                raise
        finally:
            self._pool.end(overdue)

    # --- the loop -----------------------------------------------------------------------------------------

    def _process_all(self) -> None:
        while True:
            self._run.stop.check()  # the source may have swallowed the exception that the signal raised
            self._collect(wait=False)
            self._read_source()
            self._dispatch()
            if self._is_reading:
                continue
            if not self._pool.is_busy:
                return
            self._collect(wait=True)

    @property
    def _is_reading(self) -> bool:
        first = self._queues[0]
        return first.upcoming != 0 and not first.is_full

    def _read_source(self) -> None:
        """Read the source until the first queue is full, or for a while."""
        first = self._queues[0]
        deadline = time.perf_counter() + _READ_S
        while self._is_reading and time.perf_counter() < deadline:
            task = next(self._tasks, None)
            if task is None:
                first.upcoming = 0
                return
            first.backlog.add_task(task)
            if first.upcoming is not None:
                first.upcoming -= 1

    def _dispatch(self) -> None:
        """Send bundles to processes that have time: of later groups first, so that tasks leave before others enter."""
        for queue, following in pairwise(self._queues):
            if queue.is_done:
                following.upcoming = 0
        for only_idle in (False, True):
            for queue in reversed(self._queues):
                while queue.has_bundle(any_size=only_idle):
                    process = queue.next_process(idle=only_idle)
                    if process is None:
                        break
                    self._send(queue, process)

    def _send(self, queue: GroupQueue, process: WorkerProcess) -> None:
        """Send a bundle to a process, or have it prepare the node for the group if that has not been done."""
        group, following = queue.group.index, queue.following
        if queue.node == "untouched":
            queue.node = "in setup"
            process.submit(LifecycleCall(queue), "prepare_node", group, self._definitions[group])
            return
        in_flight, parcels = self._take_bundle(queue)
        assignment = worker.Assignment(
            group=group,
            definition=None if group in process.groups else self._definitions[group],
            bundle_id=f"{group}-{queue.num_sent}",
            parcels=parcels,
            parcel_size=self._last_parcel_size if following is None else following.parcel_size,
        )
        process.submit(in_flight, "work", assignment)
        process.groups.add(group)

    def _take_bundle(self, queue: GroupQueue) -> tuple[InFlight, list[Parcel]]:
        try:
            return queue.take()
        except UnsendableError as exc:
            source = self._run.plan.stages[0].name if self._run.runs_source else None
            raise unsendable(exc.task, exc.reason, worker.RECEIVER, source, worker.IN_PROCESS) from exc.reason
        except BaseException as exc:
            check_failure(exc)
            raise worker.unreadable("a task", "the driver", exc) from exc

    # --- replies ------------------------------------------------------------------------------------------

    def _collect(self, *, wait: bool) -> None:
        event = self._pool.next_event(None if wait else 0)
        while event is not None:
            error = self._handle(event)
            if error is not None:
                raise error
            if event.job.queue is not None:
                self._forward(event.job.queue)
            event = self._pool.next_event(0)

    def _handle(self, event: Event) -> BaseException | None:
        """Pass on the reports of a reply, and record its outputs. Return the error if one ends the run."""
        if isinstance(event.reply, DeadError):
            raise _died(event.process, event.reply.how)
        reply: worker.Reply = event.reply.open()
        if reply.error is not None:
            return reply.error
        event.job.settle(reply)
        reports = unpack_reports(reply.reports)
        self._run.report_all(reports)
        return _failure(reports) if reply.failed else None

    def _forward(self, queue: GroupQueue) -> None:
        """Move the outputs of a group to the next group, up to the first bundle that is still worked on."""
        for parcel in queue.pop_outputs():
            if queue.following is not None:
                queue.following.backlog.add(parcel)
            else:
                self._run.collect(_opened(parcel))

    # --- the end ------------------------------------------------------------------------------------------

    def _tear_down(self) -> None:
        for process in self._pool.processes:
            if process.is_started:
                process.submit(LifecycleCall(), "tear_down")
        while self._pool.is_busy:
            self._collect(wait=True)

    def _shut_down(self) -> tuple[list[WorkerProcess], BaseException | None]:
        """After a failure, tear down the processes that respond, and collect the outputs that are complete.

        Returns:
            The processes that do not respond, and the first error meanwhile other than the death of a process.
        """
        pending: dict[WorkerProcess, LifecycleCall] = {}
        for process in self._pool.processes:
            if process.is_started and not process.is_dead:
                pending[process] = LifecycleCall()
                process.submit(pending[process], "tear_down")
        errors: list[BaseException] = []
        try:
            left = self._run.stop.left_s
            quiet = min(_QUIET_S, left / 2)
            self._wait(pending, quiet, errors)
            if pending:
                left -= quiet
                logger.warning(_WAITING, left)
                self._wait(pending, left, errors)
        finally:
            for parcel in self._queues[-1].finished_outputs():
                try:
                    self._run.collect(_opened(parcel))
                except DataError as exc:
                    errors.append(exc)
        return [*pending], next(iter(errors), None)

    def _wait(self, pending: dict[WorkerProcess, LifecycleCall], seconds: float, errors: list[BaseException]) -> None:
        """Handle all replies until the pending calls have ended; remove those that have ended.

        It waits for these calls, and not until no process has jobs: Ctrl-C may have come between two lines that
        update the jobs.
        """
        deadline = time.monotonic() + seconds
        while pending and (left := deadline - time.monotonic()) > 0:
            event = self._pool.next_event(left)
            if event is None:
                continue
            if event.job in (None, pending.get(event.process)):
                pending.pop(event.process, None)
            try:
                error = self._handle(event)
            except WorkerDiedError:
                continue
            except Exception as exc:  # noqa: BLE001 - raised if only the death of a process has ended the run
                error = exc
            if error is not None:
                errors.append(error)


# --- before the run -------------------------------------------------------------------------------------


def _definition(run: Run, group: StageGroup) -> bytes:
    """Return what a process needs to know of a group, without the options of engines: they may contain secrets."""
    stages = [replace(compiled, runtime_env=None, engine_options={}) for compiled in group.stages]
    return dumps((run.context._replace(group=group.index), SentStages(stages)))


def _shares(groups: Sequence[StageGroup], processes: Sequence[WorkerProcess]) -> list[list[WorkerProcess]]:
    """Return the processes for each group: as many as it allows, and different ones for different groups."""
    shares, start = [], 0
    for group in groups:
        wanted = min(group.num_workers or group.max_workers or len(processes), len(processes))
        shares.append([processes[(start + number) % len(processes)] for number in range(wanted)])
        start += wanted % len(processes)
    return shares


# --- failures -------------------------------------------------------------------------------------------


def _opened(parcel: Parcel) -> list[Any]:
    try:
        return parcel.open()
    except BaseException as exc:
        check_failure(exc)
        raise worker.unreadable("an output", "the driver", exc) from exc


def _failure(reports: Sequence[Any]) -> StageError:
    """Return the error of a stage, from the last report that has one."""
    failed = [report for report in reports if _ends_run(report)]
    return rebuild_error(failed[-1].error, failed[-1].stage_name)


def _ends_run(report: Any) -> bool:
    """Whether a failure ends the run: of a batch that is not retried, or of a setup, but not of a teardown."""
    if report.error is None or not report.error.ends_run:
        return False
    return not report.is_retried if isinstance(report, BatchReport) else report.event == "setup_failed"


def _died(process: WorkerProcess, how: str) -> WorkerDiedError:
    queue = process.jobs[0].queue if process.jobs else None
    when = "while it had work" if queue else "in teardown" if process.jobs else "while it waited for work"
    return WorkerDiedError(
        f"worker {process.worker_id} {how} {when}",
        stage=queue.group.name if queue else None,
        expected="processes that live until their work is done",
        hint="check for a crash in native code (its traceback is on stderr) or the system's out-of-memory killer "
        "(dmesg); fewer workers need less memory",
    )
