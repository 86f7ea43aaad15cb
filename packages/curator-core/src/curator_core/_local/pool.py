# SPDX-License-Identifier: Apache-2.0
"""The worker processes of a run, and the directory that they share."""

from __future__ import annotations

import threading
import time
from collections import deque
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

from curator_core._guard.signals import signals_blocked
from curator_core._local.directory import SharedDirectory
from curator_core._processes.channel import STOP
from curator_core._processes.process import ChildProcess, DeadError
from curator_core._transport.packed import Packed
from curator_core.errors import ExecutorError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Event", "WorkerPool", "WorkerProcess"]

_EXIT_S = 20.0  # for processes to end, including those that have to be killed


class Event(NamedTuple):
    """The end of a call in a process, or the death of the process.

    Attributes:
        process: The process.
        job: The driver's object for the call; see `WorkerProcess.submit`. None if the process has died.
        reply: The result of the call, a `worker.Reply`; how the process died if it has.
    """

    process: WorkerProcess
    job: Any
    reply: Packed | DeadError


class WorkerProcess:
    """A process of a run. It starts at the first call.

    Two threads exchange messages with it, so that neither a Ctrl-C nor a busy worker interrupts a message.

    Args:
        number: Number of the process.
        directory: The directory for large parcels.
        events: Collects the events of the process.

    Attributes:
        worker_id: The worker's id.
        is_dead: Whether it has died, as far as its events were read.
        jobs: The calls that have not ended, in order; the process works on the first one.
        groups: The groups of stages that it was sent bundles of.
    """

    def __init__(self, number: int, directory: str, events: SimpleQueue[Event]) -> None:
        self.worker_id = f"local-{number}"
        self.is_dead = False
        self.jobs: deque[Any] = deque()
        self.groups: set[int] = set()
        self._directory = directory
        self._events = events
        self._child: ChildProcess | None = None
        self._outbox: SimpleQueue[tuple[Any, Packed] | None] = SimpleQueue()
        self._sent: SimpleQueue[Any] = SimpleQueue()  # the jobs, in the order of their replies
        self._threads: list[threading.Thread] = []

    @property
    def is_started(self) -> bool:
        """Whether the process was started."""
        return self._child is not None

    def submit(self, job: Any, method: str, *arguments: Any) -> None:
        """Call a method of the `Worker` in the process, after the calls that have not ended.

        An event follows when the call has ended, or the process has died.

        Args:
            job: The driver's object for the call. It is in the event.
            method: The method.
            *arguments: Its arguments.

        Raises:
            ExecutorError: The process cannot be started.
        """
        message = Packed.of((method, arguments))
        if self._child is None:
            with signals_blocked():  # such as a Ctrl-C between two lines; they go to the main thread, not to new ones
                self._start()
        self.jobs.append(job)  # first: Ctrl-C may come between two lines
        self._outbox.put((job, message))

    def stop(self) -> None:
        """Ask the process to stop its current work."""
        if self._child is not None:
            self._outbox.put((None, STOP))

    def end(self, *, kill: bool) -> None:
        """End the process, and wait until it has ended."""
        if self._child is not None:
            self._outbox.put(None)
            self._child.end(kill=kill)
            for thread in self._threads:
                thread.join()
            self._child.close()

    def _start(self) -> None:
        try:
            child = ChildProcess("curator_core._local.worker", self.worker_id, self._directory)
        except OSError as exc:
            raise ExecutorError(
                f"the process of worker {self.worker_id} cannot be started: {exc}",
                field="workers",
                expected="as many processes as the machine allows, with five open files each",
                hint="pass fewer workers, or raise the limits (ulimit -n, ulimit -u)",
            ) from exc
        self._child = child
        for target in (self._write, self._read):
            thread = threading.Thread(target=target, args=(child,), name="curator-messages", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _write(self, child: ChildProcess) -> None:
        while (sent := self._outbox.get()) is not None:
            job, message = sent
            if job is not None:
                self._sent.put(job)
            try:
                child.send(message)
            except DeadError:  # the other thread notices too
                return

    def _read(self, child: ChildProcess) -> None:
        try:
            while True:
                reply = child.receive()
                self._events.put(Event(self, self._sent.get(), reply))
        except DeadError as exc:
            self._events.put(Event(self, None, exc))


class WorkerPool:
    """All processes of a run.

    Args:
        count: Maximum number of processes.
        first: Number of the first one, so that no process shares its id with one of an earlier pool of the run.

    Attributes:
        processes: The processes.
        directory: The directory for large parcels.
    """

    def __init__(self, count: int, first: int = 0) -> None:
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._directory = SharedDirectory()
        self.directory = self._directory.path
        self.processes = [WorkerProcess(number, self.directory, self._events) for number in range(first, first + count)]

    @property
    def is_busy(self) -> bool:
        """Whether a process has jobs."""
        return any(process.jobs for process in self.processes)

    def next_event(self, timeout: float | None) -> Event | None:
        """Return the next event; None after a timeout.

        Args:
            timeout: How long to wait, in seconds; None to wait forever.
        """
        try:
            event = self._events.get(timeout != 0, timeout or None)
        except Empty:
            return None
        if event.job is None:
            event.process.is_dead = True
        else:
            event.process.jobs.remove(event.job)
        return event

    def stop(self) -> None:
        """Ask all processes to stop their current work, without waiting for it."""
        for process in self.processes:
            process.stop()

    def end(self, overdue: Sequence[WorkerProcess] = ()) -> None:
        """End all processes, and wait until they have ended.

        Args:
            overdue: Those to kill, with all processes that they have started.
        """
        threads = [
            threading.Thread(target=process.end, kwargs={"kill": process in overdue}, name="curator-end", daemon=True)
            for process in self.processes
            if process.is_started
        ]
        try:
            for thread in threads:
                thread.start()
            deadline = time.monotonic() + _EXIT_S
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
        finally:
            self._directory.remove()
