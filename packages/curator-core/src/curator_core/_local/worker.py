# SPDX-License-Identifier: Apache-2.0
"""The code that runs in a process of `LocalExecutor`: the stages of each group, set up when its first tasks arrive."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from curator_core._adapter.adapter import BaseStageAdapter
from curator_core._adapter.chain import Chain
from curator_core._adapter.worker_state import WorkerClock
from curator_core._local.outgoing import Outgoing
from curator_core._local.parcels import SharedFiles, UnsendableError
from curator_core._processes.child import serve
from curator_core._reports.batch import BatchReport
from curator_core._reports.failures import fail_unsendable, unsendable
from curator_core._reports.wire import pack_reports
from curator_core._transport.exceptions import message_of
from curator_core._transport.packed import Packed
from curator_core._transport.pickling import loads
from curator_core.errors import DataError, StageError
from curator_core.stages import NodeInfo, WorkerMetadata

if TYPE_CHECKING:
    from collections.abc import Sequence

    from curator_core._local.parcels import Parcel
    from curator_core._reports.batch import WorkerReport

__all__ = ["IN_PROCESS", "RECEIVER", "Assignment", "Reply", "StopFlag", "Worker", "main", "unreadable"]

RECEIVER, IN_PROCESS = "another process", "pass workers=1"  # for errors about tasks that cannot be sent


class Assignment(NamedTuple):
    """A bundle, as it is sent to a process to work on.

    Attributes:
        group: Index of the group of stages.
        definition: The run's context and the stages of the group, pickled; None if the process already has them.
        bundle_id: Id of the bundle, for reports.
        parcels: The tasks.
        parcel_size: Number of outputs to pack together; 0 if nothing uses the outputs.
    """

    group: int
    definition: bytes | None
    bundle_id: str
    parcels: Sequence[Parcel]
    parcel_size: int


class Reply(NamedTuple):
    """The result of a call in a process.

    Attributes:
        reports: Reports of batches and workers, pickled.
        parcels: The outputs, in order; after a failure, those that were complete.
        seconds: How long the work took, without setup.
        failed: Whether the last report with an error ends the run.
        error: An exception that is not a failure of a stage, to raise in the driver.
    """

    reports: bytes
    parcels: Sequence[Parcel] = ()
    seconds: float = 0.0
    failed: bool = False
    error: Exception | None = None


def main(fd: int, lifeline: int, worker_id: str, directory: str) -> None:
    """Work for the driver until the connection is closed.

    Args:
        fd: See `serve`.
        lifeline: See `serve`.
        worker_id: The worker's id.
        directory: The directory for large parcels.
    """
    stop = StopFlag()
    serve(fd, lifeline, Worker(worker_id, SharedFiles(directory, worker_id), stop).answer, stop.set)


class StopWork(BaseException):
    """The driver wants this process to stop its current work. No stage raises it."""


class StopFlag:
    """Whether the driver has asked this process to stop. Read before each batch, and for each output of a generator.

    Attributes:
        signal: 1 if it has.
    """

    signal = 0

    def set(self) -> None:
        """Ask this process to stop."""
        self.signal = 1

    def check(self) -> None:
        """Raise `StopWork` if the driver has asked this process to stop."""
        if self.signal:
            raise StopWork


class Worker:
    """The stages of a run in one process.

    Args:
        worker_id: The worker's id.
        files: Packs outputs and replies.
        stop: Whether the driver has asked this process to stop.
    """

    def __init__(self, worker_id: str, files: SharedFiles, stop: StopFlag) -> None:
        self.files = files
        self._stop = stop
        self._metadata = WorkerMetadata(worker_id)
        self._clock = WorkerClock()  # shared by all groups: while it works for one, the worker is not idle
        self._chains: dict[int, Chain] = {}
        self._ready: dict[int, Chain] = {}  # those that are set up
        self._reports: list[BatchReport | WorkerReport] = []

    def answer(self, message: Packed) -> Packed:
        """Call the method that a message asks for, and return its packed `Reply`."""
        method, arguments = message.open()
        try:
            return Packed.of(getattr(self, method)(*arguments))
        except Exception as exc:  # noqa: BLE001 - raised in the driver
            return Packed.of(Reply(b"", error=exc))

    def prepare_node(self, group: int, definition: bytes) -> Reply:
        """Call ``setup_on_node`` of all stages of a group. See `Assignment` for the arguments."""
        try:
            for adapter in self._chain(group, definition).adapters:
                adapter.setup_on_node(NodeInfo(), self._metadata)
        except StageError:
            return Reply(self._take_reports(), failed=True)
        return Reply(self._take_reports())

    def work(self, assignment: Assignment) -> Reply:
        """Work on a bundle."""
        outputs = self._outgoing(assignment)
        failed = False
        start = time.perf_counter()
        try:
            self._stop.check()
            chain = self._set_up(assignment)
            start = time.perf_counter()
            chain.run(self._open(assignment), outputs)
        except StopWork:
            outputs = self._only_reported(outputs, assignment)
        except StageError:
            failed = True
        parcels, all_good = self._pack(outputs, assignment)
        return Reply(self._take_reports(), parcels, time.perf_counter() - start, failed or not all_good)

    def _only_reported(self, outputs: Outgoing, assignment: Assignment) -> Outgoing:
        """Return the outputs without those of an interrupted generator, whose input begins again in a later run."""
        chain = self._ready.get(assignment.group)
        last = chain.adapters[-1].compiled.index if chain else -1
        reports = [each for each in self._reports if isinstance(each, BatchReport) and each.stage_index == last]
        count = sum(report.num_out for report in reports)
        return self._outgoing(assignment, [*outputs][:count])

    def tear_down(self) -> Reply:
        """Tear down all stages that were set up in this process."""
        while self._ready:
            self._ready.pop(max(self._ready)).tear_down()
        return Reply(self._take_reports())

    def _take_reports(self) -> bytes:
        reports = pack_reports(self._reports)
        self._reports.clear()  # not a new list, because the adapters append to this one
        return reports

    # --- stages -------------------------------------------------------------------------------------------

    def _chain(self, group: int, definition: bytes) -> Chain:
        """Return the stages of a group, which may not be set up yet."""
        chain = self._chains.get(group)
        if chain is None:
            try:
                context, sent = loads(definition)
            except BaseException as exc:
                raise unreadable("a stage", f"worker {self._metadata.worker_id}", exc) from exc
            chain = self._chains[group] = Chain(sent.adapters(BaseStageAdapter), self._stop)
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

    def _outgoing(self, assignment: Assignment, tasks: Sequence[Any] = ()) -> Outgoing:
        outputs = Outgoing(self.files, assignment.parcel_size)
        outputs += tasks
        return outputs

    def _pack(self, outputs: Outgoing, assignment: Assignment) -> tuple[list[Parcel], bool]:
        """Return the outputs as parcels, and whether the run can continue.

        If an output does not pickle, its batch fails. The run then continues only if it skips failures.
        """
        try:
            return outputs.pack(), True
        except UnsendableError as exc:
            adapter = self._ready[assignment.group].adapters[-1]
            error = unsendable(exc.task, exc.reason, RECEIVER, adapter.compiled.name, IN_PROCESS)
            good = self._outgoing(assignment, fail_unsendable(self._reports, [*outputs], error))
            return good.pack(), adapter.state.context.on_error == "skip"


def unreadable(what: str, reader: str, exc: BaseException) -> DataError:
    """Return the error for a stage or task that was pickled, but cannot be unpickled in the process that gets it.

    Args:
        what: A stage, a task, or an output.
        reader: The process.
        exc: The exception from unpickling.
    """
    return DataError(
        f"{what} cannot be read by {reader}: {type(exc).__name__}: {message_of(exc)}",
        expected="classes that pickle and unpickle, from modules that every process can import",
        hint="move the class into a module on sys.path, or check its __reduce__ and __setstate__",
    )
