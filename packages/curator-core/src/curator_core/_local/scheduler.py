# SPDX-License-Identifier: Apache-2.0
"""A run on several processes of this machine, as the driver sees it; `worker` has the other side.

One loop, in the calling thread, reads the source, hands bundles to processes, and takes what comes back: reports at
once, outputs in the order of the source.
"""

from __future__ import annotations

import logging
import math
import re
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from curator_core._guard.user_code import check_failure
from curator_core._local import worker
from curator_core._local.parcels import SharedFiles, UnsendableError, fetch
from curator_core._local.pool import WorkerPool
from curator_core._local.queues import GroupQueue
from curator_core._reports.batch import BatchReport
from curator_core._reports.failures import rebuild_error
from curator_core._reports.wire import unpack_reports
from curator_core._transport.pickling import dumps, find_unpicklable
from curator_core.errors import ConfigurationError, DataError, WorkerDiedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from curator_core._local.parcels import Parcel
    from curator_core._local.pool import Event, WorkerProcess
    from curator_core._local.queues import InFlight
    from curator_core._plan.groups import StageGroup
    from curator_core._run.run import Run
    from curator_core.errors import CuratorError, StageError

__all__ = ["Scheduler"]

logger = logging.getLogger(__name__)

_READ_S = 0.02  # the source is read for so long before somebody looks what else there is to do
_TELL_S = 1.0  # after a failure: when processes take longer to end, say what is waited for


class Call:
    """What a process is called for besides bundles; see `InFlight`.

    Args:
        queue: The group that it is for; None where it is for all.
    """

    seconds = math.inf

    def __init__(self, queue: GroupQueue | None = None) -> None:
        self.queue = queue

    def settle(self, reply: worker.Reply) -> None:
        """It has been done."""
        if self.queue is not None and not reply.failed:
            self.queue.node = "ready"


class Scheduler:
    """A run on several processes.

    Args:
        run: The run.
        groups: Its groups of stages, without the source.
        workers: How many processes there may be.
        tasks: The tasks for the first group, as they are made.
        total: How many they are; None where that is not known.
        bundle: Whether several batches go to a process at once.

    Attributes:
        has_worked: Whether all of them have been worked on.
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
        self._last_part = sys.maxsize if run.context.collect else 0
        self._pool = WorkerPool(workers, first=run.context.epoch * workers)
        self._files = SharedFiles(self._pool.directory, "driver")
        shares = _shares(groups, self._pool.processes)
        pairs = zip(groups, shares, strict=True)
        self._queues = [GroupQueue(group, processes, self._files, bundle=bundle) for group, processes in pairs]
        self._queues[0].to_come = total
        for queue, following in pairwise(self._queues):
            queue.following = following

    def go(self) -> None:
        """Run to the end, or to the first failure; afterwards there are no processes.

        Raises:
            StageError: A stage raised, and the run is to end at that.
            WorkerDiedError: A process died, and nothing else went wrong: what is not finished can be worked on again.
            CuratorError: Something cannot travel between processes.
        """
        overdue: Sequence[WorkerProcess] = self._pool.processes  # until they have been torn down
        try:
            try:
                self._work()
                self.has_worked = True
                self._tear_down()
                overdue = ()
            except BaseException as exc:
                if not isinstance(exc, Exception):  # a signal; after a failure others finish what they have
                    self._pool.stop()
                overdue, worse = self._wind_up()
                if worse is not None and isinstance(exc, WorkerDiedError):
                    raise worse from None  # it ends the run, which a process that died does not
                raise
        finally:
            self._pool.dismiss(overdue)

    # --- the loop -----------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            self._run.stop.check()  # the source may have swallowed what the signal raised
            self._collect(wait=False)
            self._read()
            self._deal()
            if self._is_reading:
                continue
            if not self._pool.is_busy:
                return
            self._collect(wait=True)

    @property
    def _is_reading(self) -> bool:
        first = self._queues[0]
        return first.to_come != 0 and not first.is_full

    def _read(self) -> None:
        """Read the source until enough is there, or for a while."""
        first = self._queues[0]
        deadline = time.perf_counter() + _READ_S
        while self._is_reading and time.perf_counter() < deadline:
            task = next(self._tasks, None)
            if task is None:
                first.to_come = 0
                return
            first.backlog.add_task(task)
            if first.to_come is not None:
                first.to_come -= 1

    def _deal(self) -> None:
        """Give work to who has time: to later groups first, so that tasks leave before others come in."""
        for queue, following in pairwise(self._queues):
            if queue.is_done:
                following.to_come = 0
        for only_idle in (False, True):
            for queue in reversed(self._queues):
                while queue.has_bundle(any_size=only_idle):
                    process = queue.next_process(idle=only_idle)
                    if process is None:
                        break
                    self._send(queue, process)

    def _send(self, queue: GroupQueue, process: WorkerProcess) -> None:
        """Have a process work on a bundle, or prepare the node for the group first."""
        group, following = queue.group.index, queue.following
        try:
            if queue.node == "untouched":
                queue.node = "in setup"
                definition = self._files.post(self._definitions[group])
                self._pool.submit(process, Call(queue), worker.prepare_node, group, definition)
                return
            sent, parcels = self._take(queue)
            assignment = worker.Assignment(
                group=group,
                definition=None if group in process.groups else self._definitions[group],
                bundle_id=f"{group}-{queue.sent}",
                parcels=parcels,
                part_size=self._last_part if following is None else following.part_size,
            )
            self._pool.submit(process, sent, worker.work, self._files.post(assignment))
            process.groups.add(group)
        except BrokenProcessPool as exc:
            raise _died(process, queue, exc) from exc

    def _take(self, queue: GroupQueue) -> tuple[InFlight, list[Parcel]]:
        try:
            return queue.take()
        except UnsendableError as exc:
            raise self._unsendable(exc) from exc.__cause__
        except BaseException as exc:
            check_failure(exc)
            raise worker.unreadable("a task", "the driver", exc) from exc

    def _unsendable(self, exc: UnsendableError) -> CuratorError:
        first = self._queues[0].group.stages[0]
        if first.index > 0:
            return worker.unsendable(exc, self._run.plan.stages[0].name)
        where, culprit = find_unpicklable(exc.task, f"task '{exc.task.task_id}'")
        return ConfigurationError(
            f"an initial task cannot be sent to another process: {exc.__cause__}",
            field=where,
            given=culprit,
            expected="tasks that pickle",
            hint="keep locks, files and connections out of tasks, or run with workers=1",
        )

    # --- what comes back ----------------------------------------------------------------------------------

    def _collect(self, *, wait: bool) -> None:
        event = self._pool.next_event(None if wait else 0)
        while event is not None:
            error = self._enter(event)
            if error is not None:
                raise error
            if event.job.queue is not None:
                self._hand_on(event.job.queue)
            event = self._pool.next_event(0)

    def _enter(self, event: Event) -> BaseException | None:
        """Report what a process has reported, and keep what it has made; gives what ends the run, if that does."""
        try:
            reply: worker.Reply = fetch(event.future.result())
        except BrokenProcessPool as exc:
            raise _died(event.process, event.job.queue, exc) from exc
        event.job.settle(reply)
        reports = unpack_reports(reply.reports)
        for report in reports:
            self._run.report(report)
        return _failure(reports) if reply.failed else None

    def _hand_on(self, queue: GroupQueue) -> None:
        """Pass on what has come back, up to the first bundle that is still worked on."""
        for parcel in queue.leaving():
            if queue.following is not None:
                queue.following.backlog.add(parcel)
            else:
                self._run.collect(_opened(parcel))

    # --- the end ------------------------------------------------------------------------------------------

    def _tear_down(self) -> None:
        for process in self._pool.processes:
            if process.is_started:
                try:
                    self._pool.submit(process, Call(), worker.tear_down)
                except BrokenProcessPool as exc:
                    raise _died(process, None, exc) from exc
        while self._pool.is_busy:
            self._collect(wait=True)

    def _wind_up(self) -> tuple[list[WorkerProcess], BaseException | None]:
        """After a failure: tear down as far as processes answer, and keep what is complete.

        Returns:
            The processes that do not answer, and the first thing that went wrong meanwhile, deaths aside.
        """
        asked: dict[Any, WorkerProcess] = {}
        for process in self._pool.processes:
            if process.is_started:
                call = Call()
                with suppress(BrokenProcessPool):
                    self._pool.submit(process, call, worker.tear_down)
                    asked[call] = process
        wrong: list[BaseException] = []
        try:
            left = self._run.stop.left_s
            silent = min(_TELL_S, left / 2)
            self._wait(asked, silent, wrong)
            if asked:
                left -= silent
                logger.warning("waiting up to %.1f s for workers to end what they do; Ctrl-C kills them now", left)
                self._wait(asked, left, wrong)
        finally:
            for parcel in self._queues[-1].complete():
                try:
                    self._run.collect(_opened(parcel))
                except DataError as exc:
                    wrong.append(exc)
        return [*asked.values()], next(iter(wrong), None)

    def _wait(self, asked: dict[Any, WorkerProcess], seconds: float, wrong: list[BaseException]) -> None:
        """Take what comes back, whatever it is, until the calls asked for have ended; removes those that have.

        It is these that count and not what the processes hold: Ctrl-C may have come between two lines that keep count.
        """
        deadline = time.monotonic() + seconds
        while asked and (left := deadline - time.monotonic()) > 0:
            event = self._pool.next_event(left)
            if event is None:
                continue
            asked.pop(event.job, None)
            try:
                error = self._enter(event)
            except WorkerDiedError:
                continue
            except Exception as exc:  # noqa: BLE001 - raised where nothing worse has ended the run
                error = exc
            if error is not None:
                wrong.append(error)


# --- before the run -------------------------------------------------------------------------------------


def _definition(run: Run, group: StageGroup) -> bytes:
    """What a process needs to know of a group. Options of engines stay here: they may have secrets."""
    stages = [replace(compiled, runtime_env=None, engine_options={}) for compiled in group.stages]
    return dumps((run.context._replace(group=group.index), stages))


def _shares(groups: Sequence[StageGroup], processes: Sequence[WorkerProcess]) -> list[list[WorkerProcess]]:
    """The processes that may work for each group: as many as it asks for, different ones for different groups."""
    shares, start = [], 0
    for group in groups:
        wanted = min(group.num_workers or len(processes), len(processes))
        shares.append([processes[(start + number) % len(processes)] for number in range(wanted)])
        start += wanted % len(processes)
    return shares


# --- when it fails --------------------------------------------------------------------------------------


def _opened(parcel: Parcel) -> list[Any]:
    try:
        return parcel.open()
    except BaseException as exc:
        check_failure(exc)
        raise worker.unreadable("an output", "the driver", exc) from exc


def _failure(reports: Sequence[Any]) -> StageError:
    """The error of a stage, from the last report that has one."""
    failed = [report for report in reports if report.error is not None and _ends_run(report)]
    return rebuild_error(failed[-1].error, failed[-1].stage_name)


def _ends_run(report: Any) -> bool:
    """Whether a failure is for good: of a batch that is not tried again, or of a setup; not that of a teardown."""
    return not report.is_retried if isinstance(report, BatchReport) else report.event == "setup_failed"


def _died(process: WorkerProcess, queue: GroupQueue | None, exc: BaseException) -> WorkerDiedError:
    how = re.search(r"\{(\w+\(-?\d+\))\}", str(exc))  # loky says so: {SIGKILL(-9)}
    when = "while it had work" if queue else "in teardown"
    return WorkerDiedError(
        f"worker {process.worker_id} died {f'by {how[1]} ' if how else ''}{when}",
        stage=queue.group.name if queue else None,
        expected="processes that live until their work is done",
        hint="look for a crash in native code (its traceback is on stderr) or for the system's out-of-memory killer "
        "(dmesg); fewer workers need less memory",
    )
