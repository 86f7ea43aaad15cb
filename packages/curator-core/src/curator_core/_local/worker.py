# SPDX-License-Identifier: Apache-2.0
"""What runs in a process of `LocalExecutor`: the stages of each group, set up when its first tasks come."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from curator_core._adapter.adapter import BaseStageAdapter
from curator_core._adapter.chain import Chain
from curator_core._adapter.worker_state import WorkerClock
from curator_core._guard.interrupts import become_worker
from curator_core._guard.signals import leave_signals_to_driver
from curator_core._local.outgoing import Outgoing
from curator_core._local.parcels import SharedFiles, UnsendableError, fetch
from curator_core._local.stop import StopFlag, StopWork
from curator_core._reports.failures import fail_batches
from curator_core._reports.wire import pack_reports
from curator_core._transport.exceptions import message_of
from curator_core._transport.pickling import find_unpicklable, loads, pickles
from curator_core.errors import ContractError, DataError, StageError, WorkerDiedError
from curator_core.logs import mark_records
from curator_core.stages import NodeInfo, WorkerMetadata

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.connection import Connection

    from curator_core._local.parcels import Parcel, Posted
    from curator_core._reports.batch import BatchReport, WorkerReport

__all__ = ["Assignment", "Reply", "begin", "prepare_node", "tear_down", "unreadable", "unsendable", "work"]


class Assignment(NamedTuple):
    """A bundle to work on, as it is sent to a process.

    Attributes:
        group: The group of stages.
        definition: The run's context and the stages, pickled, where the process has had none of this group yet.
        bundle_id: Its name, for reports.
        parcels: The tasks.
        part_size: How many outputs are to be packed together; 0 where nobody wants them.
    """

    group: int
    definition: bytes | None
    bundle_id: str
    parcels: Sequence[Parcel]
    part_size: int


class Reply(NamedTuple):
    """What a process has done.

    Attributes:
        reports: Reports of batches and workers, pickled.
        parcels: The outputs, in order; those that were complete where it failed.
        seconds: How long it took, without setup.
        failed: Whether the run ends at the last of the reports with an error.
    """

    reports: bytes
    parcels: Sequence[Parcel] = ()
    seconds: float = 0.0
    failed: bool = False


# --- what the driver calls ------------------------------------------------------------------------------

_workers: list[Worker] = []  # one: a process is a worker of one run


def begin(worker_id: str, lifeline: Connection, directory: str) -> None:
    """Make this process a worker; called once, when it starts.

    Args:
        worker_id: Its name.
        lifeline: Ends when the driver does.
        directory: Where large parcels lie.
    """
    become_worker()
    leave_signals_to_driver()
    threading.Thread(target=_end_with_driver, args=(lifeline,), name="curator-lifeline", daemon=True).start()
    mark_records()
    _workers[:] = [Worker(worker_id, SharedFiles(directory, worker_id), StopFlag(directory))]


def prepare_node(group: int, definition: Posted) -> Posted:
    """Call ``setup_on_node`` of all stages of a group; for what it is given see `Assignment`. Posts a `Reply`."""
    worker = _workers[0]
    return worker.files.post(worker.prepare_node(group, fetch(definition)))


def work(assignment: Posted) -> Posted:
    """Work on a bundle, given as an `Assignment`. Posts a `Reply`."""
    worker = _workers[0]
    return worker.files.post(worker.work(fetch(assignment)))


def tear_down() -> Posted:
    """Tear down all stages that were set up here. Posts a `Reply`."""
    worker = _workers[0]
    return worker.files.post(worker.tear_down())


def _end_with_driver(lifeline: Connection) -> None:
    """End this process when the driver is no more: nobody would ever give it work, or end it."""
    with suppress(EOFError, OSError):
        lifeline.recv_bytes()
    os._exit(1)


# --- the worker -----------------------------------------------------------------------------------------


class Worker:
    """The stages of a run in one process.

    Args:
        worker_id: Its name.
        files: Packs outputs, and posts replies.
        stop: Whether the driver still wants what is worked on.
    """

    def __init__(self, worker_id: str, files: SharedFiles, stop: StopFlag) -> None:
        self.files = files
        self._stop = stop
        self._metadata = WorkerMetadata(worker_id)
        self._clock = WorkerClock()  # of all groups: the worker is not idle while it works for another one
        self._made: dict[int, Chain] = {}
        self._ready: dict[int, Chain] = {}
        self._reports: list[BatchReport | WorkerReport] = []

    def prepare_node(self, group: int, definition: bytes) -> Reply:
        """See `prepare_node`."""
        try:
            for adapter in self._chain(group, definition).adapters:
                adapter.setup_on_node(NodeInfo(), self._metadata)
        except StageError:
            return Reply(self._take_reports(), failed=True)
        return Reply(self._take_reports())

    def work(self, assignment: Assignment) -> Reply:
        """See `work`."""
        outputs = Outgoing(self.files, assignment.part_size)
        failed = False
        start = time.perf_counter()
        try:
            self._stop.check()
            chain = self._set_up(assignment)
            start = time.perf_counter()
            chain.run(self._open(assignment), outputs)
        except StopWork:  # reports and outputs of what was finished before count
            pass
        except StageError:
            failed = True
        parcels, all_good = self._pack(outputs, assignment)
        return Reply(self._take_reports(), parcels, time.perf_counter() - start, failed or not all_good)

    def tear_down(self) -> Reply:
        """See `tear_down`."""
        while self._ready:
            self._ready.pop(max(self._ready)).tear_down()
        return Reply(self._take_reports())

    def _take_reports(self) -> bytes:
        reports = pack_reports(self._reports)
        self._reports.clear()  # the list stays: the adapters have it
        return reports

    # --- stages -------------------------------------------------------------------------------------------

    def _chain(self, group: int, definition: bytes) -> Chain:
        """The stages of a group, which may not be set up yet."""
        chain = self._made.get(group)
        if chain is None:
            try:
                context, stages = loads(definition)
            except BaseException as exc:
                raise unreadable("a stage", f"worker {self._metadata.worker_id}", exc) from exc
            chain = self._made[group] = Chain(
                [BaseStageAdapter(compiled.stage, compiled) for compiled in stages], self._stop
            )
            for adapter in chain.adapters:
                adapter.bind(context, self._reports.append)
                adapter.state.clock = self._clock
        return chain

    def _set_up(self, assignment: Assignment) -> Chain:
        group = assignment.group
        if assignment.definition is not None:
            chain = self._chain(group, assignment.definition)
            chain.set_up(None, self._metadata)
            self._ready[group] = chain
        elif group not in self._ready:
            raise WorkerDiedError(
                f"worker {self._metadata.worker_id} has a new process, and what its stages had in memory is gone",
                expected="a process that lives as long as the run",
                hint="run with fewer workers, or with workers=1",
            )
        chain = self._ready[group]
        for adapter in chain.adapters:
            adapter.state.bundle_id = assignment.bundle_id
        return chain

    # --- tasks --------------------------------------------------------------------------------------------

    def _open(self, assignment: Assignment) -> list[Any]:
        try:
            return [task for parcel in assignment.parcels for task in parcel.open()]
        except BaseException as exc:
            raise unreadable("a task", f"worker {self._metadata.worker_id}", exc) from exc

    def _pack(self, outputs: Outgoing, assignment: Assignment) -> tuple[list[Parcel], bool]:
        """The outputs as parcels, and whether all of them could be packed, or the run goes on without."""
        try:
            return outputs.pack(), True
        except UnsendableError as exc:
            adapter = self._ready[assignment.group].adapters[-1]
            error = unsendable(exc, adapter.compiled.name)
            tasks = [*outputs]
            culprits = {_batch_of(task) for task in tasks if not pickles(task)}
            spoilt = fail_batches(self._reports, culprits, error)
            good = Outgoing(self.files, assignment.part_size)
            good += [task for task in tasks if _batch_of(task) not in spoilt]
            return good.pack(), adapter.state.context.on_error == "skip"


def _batch_of(task: Any) -> str:
    """The batch that made a task."""
    batch_id: str = task.stage_perf[-1].batch_id
    return batch_id


def unsendable(exc: UnsendableError, stage: str) -> ContractError:
    """The error for a task that does not pickle.

    Args:
        exc: What packing it raised.
        stage: The stage that made it.
    """
    where, culprit = find_unpicklable(exc.task, f"task '{exc.task.task_id}'")
    return ContractError(
        f"an output cannot be sent to another process: {exc.__cause__}",
        stage=stage,
        field=where,
        given=culprit,
        expected="tasks that pickle",
        hint="keep locks, files and connections in the stage, out of tasks; or run with workers=1",
    )


def unreadable(what: str, reader: str, exc: BaseException) -> DataError:
    """The error for something that pickles, and does not unpickle on the other side.

    Args:
        what: A stage, or a task.
        reader: Who cannot read it.
        exc: What unpickling raised.
    """
    return DataError(
        f"{what} cannot be read by {reader}: {type(exc).__name__}: {message_of(exc)}",
        expected="classes that pickle and unpickle, from modules that every process can import",
        hint="move the class into a module on sys.path, or look at its __reduce__ and __setstate__",
    )
