# SPDX-License-Identifier: Apache-2.0
"""The processes of a run, through loky; imported only where a run asks for some.

Each process is an executor of its own, with one worker. So the driver says who gets what, a process that dies takes no
other along, and each can be told to tear down.
"""

from __future__ import annotations

import errno
import multiprocessing.resource_tracker
import os
import shutil
import sys
import tempfile
import threading
import time
from collections import deque
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

from curator_core._guard.signals import signals_blocked
from curator_core._local import worker
from curator_core._local.stop import StopFlag
from curator_core.errors import ExecutorError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future
    from multiprocessing.connection import Connection

    from curator_core._local.parcels import Posted

__all__ = ["Event", "WorkerPool", "WorkerProcess"]

_IN_MEMORY = "/dev/shm"  # noqa: S108 - not a file of a known name: a directory is made in it
_OF_SHARED_MEMORY = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENOENT)  # of sem_open(), which names no file
_FOLDER = "folder"  # as loky calls what it is to remove
_EXIT_S = 10.0  # for processes to exit by themselves
_NO_RECYCLING = {"LOKY_MAX_MEMORY_LEAK_SIZE": "1e18"}
"""loky replaces a process that has grown by 300 MB, between two calls; a stage may well have loaded a model."""


class Event(NamedTuple):
    """A call that has ended.

    Attributes:
        process: Whose it was.
        job: What the driver calls it.
        future: Its result, a `worker.Reply`.
    """

    process: WorkerProcess
    job: Any
    future: Future[Posted]


class WorkerProcess:
    """A process of a run; started when it is first called.

    Args:
        number: Its number.
        lifeline: As for `curator_core._local.worker.begin`.
        directory: Likewise.

    Attributes:
        worker_id: Its name.
        held: What it was called for and has not ended, as the driver calls it; the first one is under way.
        groups: The groups of stages that it has had work of.
    """

    def __init__(self, number: int, lifeline: Connection, directory: str) -> None:
        self.worker_id = f"local-{number}"
        self.held: deque[Any] = deque()
        self.groups: set[int] = set()
        self._arguments = (self.worker_id, lifeline, directory)
        self._executor: Any = None

    @property
    def is_started(self) -> bool:
        """Whether there is a process."""
        return self._executor is not None

    def call(self, function: Callable[..., Posted], *arguments: Any) -> Future[Posted]:
        """Call a function in the process, after what it is at.

        Raises:
            BrokenProcessPool: The process has died.
            ExecutorError: It cannot be started.
        """
        if self._executor is None:
            return self._start(function, *arguments)
        future: Future[Posted] = self._executor.submit(function, *arguments)
        return future

    def _start(self, function: Callable[..., Posted], *arguments: Any) -> Future[Posted]:
        import loky  # noqa: PLC0415 - an extra: this module can be read without

        try:
            environment = _environment()
            with _signals_blocked(), _standard_streams():
                self._executor = loky.ProcessPoolExecutor(
                    1, initializer=worker.begin, initargs=self._arguments, env=environment
                )
                future: Future[Posted] = self._executor.submit(function, *arguments)
        except OSError as exc:
            raise _not_started(self.worker_id, exc) from exc
        return future

    def dismiss(self, *, kill: bool) -> None:
        """End the process, and wait until it has ended."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, kill_workers=kill)


class WorkerPool:
    """All processes of a run.

    Args:
        count: How many there may be.
        first: Number of the first one: none is called as one of an earlier crew of the run.

    Attributes:
        processes: The processes.
        directory: Where large parcels lie.
    """

    def __init__(self, count: int, first: int = 0) -> None:
        _check_working_directory()
        try:
            with _signals_blocked(), _standard_streams():
                self.directory = _shared_directory()
        except OSError as exc:
            raise ExecutorError(
                f"there is no place for what processes share: {exc}",
                field="workers",
                expected=f"room in {_IN_MEMORY}, or in the temporary directory",
                hint="make room there, set TMPDIR to another directory, or use workers=1",
            ) from exc
        # Nothing is ever sent. Processes end when the driver's end is closed, be it because the driver was killed.
        self._their_end, self._our_end = multiprocessing.Pipe(duplex=False)
        self._stop = StopFlag(self.directory)
        self.processes = [
            WorkerProcess(number, self._their_end, self.directory) for number in range(first, first + count)
        ]
        self._events: SimpleQueue[Event] = SimpleQueue()

    @property
    def is_busy(self) -> bool:
        """Whether anything has not ended."""
        return any(process.held for process in self.processes)

    def submit(self, process: WorkerProcess, job: Any, function: Callable[..., Posted], *arguments: Any) -> None:
        """Have a process call a function; an event says when it has ended.

        Args:
            process: The process.
            job: What to call it.
            function: One of `curator_core._local.worker`.
            *arguments: For the function.

        Raises:
            BrokenProcessPool: The process has died.
            ExecutorError: It cannot be started.
        """
        future = process.call(function, *arguments)
        process.held.append(job)
        future.add_done_callback(lambda done: self._events.put(Event(process, job, done)))

    def next_event(self, timeout: float | None) -> Event | None:
        """The next call that has ended; None where there is none in time.

        Args:
            timeout: How long to wait, in seconds; None waits for ever.
        """
        try:
            event = self._events.get(timeout != 0, timeout or None)
        except Empty:
            return None
        event.process.held.remove(event.job)
        return event

    def stop(self) -> None:
        """Ask all processes to end what they do, without waiting for it."""
        self._stop.set()

    def dismiss(self, overdue: Sequence[WorkerProcess] = ()) -> None:
        """End all processes, and wait until they have ended.

        Args:
            overdue: Those that are to be killed, with all that they have started.
        """
        threads = [
            threading.Thread(
                target=process.dismiss, kwargs={"kill": process in overdue}, name="curator-dismiss", daemon=True
            )
            for process in self.processes
            if process.is_started
        ]
        try:
            for thread in threads:
                thread.start()
            _join(threads, _EXIT_S)
        finally:
            self._our_end.close()  # whoever is still there, since a thread of a stage keeps it, ends now
            _join(threads, _EXIT_S)
            self._their_end.close()
            shutil.rmtree(self.directory, ignore_errors=True)
            _tracker().unregister(self.directory, _FOLDER)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """As `signals_blocked`, also where loky's and Python's trackers are not running yet.

    Loky would start these, and unblock Ctrl-C and SIGTERM when it has. They ignore both, and keep SIGUSR1 blocked.
    """
    with signals_blocked():
        _tracker().ensure_running()
        multiprocessing.resource_tracker.ensure_running()
        with signals_blocked():
            yield


def _check_working_directory() -> None:
    """Raise where processes could not be started in this directory."""
    try:
        Path.cwd()
    except FileNotFoundError as exc:
        raise ExecutorError(
            "the working directory has been removed",
            field="workers",
            expected="a directory to start processes in",
            hint="change to one that is there (os.chdir), or use workers=1",
        ) from exc


def _not_started(worker_id: str, exc: OSError) -> ExecutorError:
    """The error for a process that cannot be started, for want of shared memory or of something else."""
    problem = f"the process of worker {worker_id} cannot be started: "
    if exc.errno in _OF_SHARED_MEMORY and exc.filename is None:
        return ExecutorError(
            f"{problem}its semaphores cannot be made in {_IN_MEMORY}: {exc.strerror}",
            field="workers",
            expected=f"{_IN_MEMORY}, writable, with 32 KiB of room for each worker",
            hint="make room there (in a container: docker run --shm-size), use fewer workers, or use workers=1",
        )
    return ExecutorError(
        f"{problem}{exc}",
        field="workers",
        expected="a number of processes that the machine allows, and ten open files for each",
        hint="use fewer workers, or raise the limits (ulimit -n, ulimit -u)",
    )


def _environment() -> dict[str, str]:
    """Variables for a process."""
    # Loky has crashes written to stderr, unless this variable is there; a process without stderr would die of it.
    return {**_NO_RECYCLING, **({"PYTHONFAULTHANDLER": ""} if sys.stderr is None else {})}


@contextmanager
def _standard_streams() -> Iterator[None]:
    """Stand in for standard streams that are closed, as a daemon's are: a process cannot be started without them.

    Loky flushes what `sys` has, and gives the process the descriptors 0 to 2, whatever has come to be open there.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free: this one. It stays, for processes yet to start
    with ExitStack() as made:
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:
                setattr(sys, name, made.enter_context(open(os.devnull, "w", encoding="utf-8")))  # noqa: PTH123 - not a file
                made.callback(setattr, sys, name, None)
        yield


def _shared_directory() -> str:
    """A directory for large parcels, in memory where that can be."""
    name = f"curator-{os.getpid()}-{os.urandom(6).hex()}"
    try:
        return _made(f"{_IN_MEMORY}/{name}")
    except OSError:  # there is no such place, or it is not ours to write to
        return _made(f"{tempfile.gettempdir()}/{name}")


def _made(path: str) -> str:
    _tracker().register(path, _FOLDER)  # first: whenever this process is killed, loky's removes what is there
    try:
        Path(path).mkdir(mode=0o700)
        StopFlag.create(path)
    except OSError:
        shutil.rmtree(path, ignore_errors=True)
        _tracker().unregister(path, _FOLDER)
        raise
    return path


def _tracker() -> Any:
    """Loky's process that outlives this one, and removes what is registered with it."""
    from loky.backend import resource_tracker  # noqa: PLC0415 - as above

    return resource_tracker


def _join(threads: Sequence[threading.Thread], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for thread in threads:
        if thread.ident is not None:
            thread.join(max(0.0, deadline - time.monotonic()))
