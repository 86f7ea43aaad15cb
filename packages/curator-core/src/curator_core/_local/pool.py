# SPDX-License-Identifier: Apache-2.0
"""The processes of a run, started by loky; imported only by runs that need them.

Each process is a loky executor with one worker. So the driver chooses the process for each bundle, a process that dies
does not end the others, and each can be asked to tear down.
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

    from curator_core._local.parcels import PipeMessage

__all__ = ["Event", "WorkerPool", "WorkerProcess"]

_IN_MEMORY = "/dev/shm"  # noqa: S108 - not a file with a predictable name: a directory is created in it
_OF_SHARED_MEMORY = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENOENT)  # of sem_open(), which names no file
_FOLDER = "folder"  # loky's name for this type of resource to remove
_EXIT_S = 10.0  # for processes to exit on their own
_NO_RECYCLING = {"LOKY_MAX_MEMORY_LEAK_SIZE": "1e18"}
"""Between two calls, loky replaces a process that has grown by 300 MB; a stage that loads a model does that."""


class Event(NamedTuple):
    """The end of a call in a process.

    Attributes:
        process: The process.
        job: The driver's object for the call; see `WorkerPool.submit`.
        future: The result of the call, a `worker.Reply`.
    """

    process: WorkerProcess
    job: Any
    future: Future[PipeMessage]


class WorkerProcess:
    """A process of a run. It starts at the first call.

    Args:
        number: Number of the process.
        lifeline: See `curator_core._local.worker.begin`.
        directory: See `curator_core._local.worker.begin`.

    Attributes:
        worker_id: The worker's id.
        jobs: The calls that have not ended, in order; the process works on the first one.
        groups: The groups of stages that it was sent bundles of.
    """

    def __init__(self, number: int, lifeline: Connection, directory: str) -> None:
        self.worker_id = f"local-{number}"
        self.jobs: deque[Any] = deque()
        self.groups: set[int] = set()
        self._arguments = (self.worker_id, lifeline, directory)
        self._executor: Any = None

    @property
    def is_started(self) -> bool:
        """Whether the process was started."""
        return self._executor is not None

    def call(self, function: Callable[..., PipeMessage], *arguments: Any) -> Future[PipeMessage]:
        """Call a function in the process, after the calls that have not ended.

        Raises:
            BrokenProcessPool: The process has died.
            ExecutorError: The process cannot be started.
        """
        if self._executor is None:
            return self._start(function, *arguments)
        future: Future[PipeMessage] = self._executor.submit(function, *arguments)
        return future

    def _start(self, function: Callable[..., PipeMessage], *arguments: Any) -> Future[PipeMessage]:
        import loky  # noqa: PLC0415 - an extra: this module can be imported without it

        try:
            environment = _environment()
            with _signals_blocked(), _standard_streams():
                self._executor = loky.ProcessPoolExecutor(
                    1, initializer=worker.begin, initargs=self._arguments, env=environment
                )
                future: Future[PipeMessage] = self._executor.submit(function, *arguments)
        except OSError as exc:
            raise _not_started(self.worker_id, exc) from exc
        return future

    def end(self, *, kill: bool) -> None:
        """End the process, and wait until it has ended."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, kill_workers=kill)


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
        _check_working_directory()
        try:
            with _signals_blocked(), _standard_streams():
                self.directory = _shared_directory()
        except OSError as exc:
            raise ExecutorError(
                f"no space for the files that processes share: {exc}",
                field="workers",
                expected=f"free space in {_IN_MEMORY} or in the temporary directory",
                hint="free up space there, set TMPDIR to another directory, or pass workers=1",
            ) from exc
        # Nothing is ever sent. Processes end when the driver's end is closed, even if the driver was killed.
        self._their_end, self._our_end = multiprocessing.Pipe(duplex=False)
        self._stop = StopFlag(self.directory)
        self.processes = [
            WorkerProcess(number, self._their_end, self.directory) for number in range(first, first + count)
        ]
        self._events: SimpleQueue[Event] = SimpleQueue()

    @property
    def is_busy(self) -> bool:
        """Whether a process has jobs."""
        return any(process.jobs for process in self.processes)

    def submit(self, process: WorkerProcess, job: Any, function: Callable[..., PipeMessage], *arguments: Any) -> None:
        """Call a function in a process; an event follows when the call has ended.

        Args:
            process: The process.
            job: The driver's object for the call. It is in the event.
            function: One of `curator_core._local.worker`.
            *arguments: The arguments of the function.

        Raises:
            BrokenProcessPool: The process has died.
            ExecutorError: The process cannot be started.
        """
        future = process.call(function, *arguments)
        process.jobs.append(job)
        future.add_done_callback(lambda done: self._events.put(Event(process, job, done)))

    def next_event(self, timeout: float | None) -> Event | None:
        """Return the next call that has ended; None after a timeout.

        Args:
            timeout: How long to wait, in seconds; None to wait forever.
        """
        try:
            event = self._events.get(timeout != 0, timeout or None)
        except Empty:
            return None
        event.process.jobs.remove(event.job)
        return event

    def stop(self) -> None:
        """Ask all processes to stop their current work, without waiting for it."""
        self._stop.set()

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
            _join(threads, _EXIT_S)
        finally:
            self._our_end.close()  # ends processes that a thread of a stage has kept alive
            _join(threads, _EXIT_S)
            self._their_end.close()
            shutil.rmtree(self.directory, ignore_errors=True)
            _tracker().unregister(self.directory, _FOLDER)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Do what `signals_blocked` does, even if the resource trackers of loky and Python are not running yet.

    Loky would start them, and then unblock Ctrl-C and SIGTERM. They ignore both, and keep SIGUSR1 blocked.
    """
    with signals_blocked():
        _tracker().ensure_running()
        multiprocessing.resource_tracker.ensure_running()
        with signals_blocked():
            yield


def _check_working_directory() -> None:
    """Raise an error if processes cannot be started in the working directory."""
    try:
        Path.cwd()
    except FileNotFoundError as exc:
        raise ExecutorError(
            "the working directory has been removed",
            field="workers",
            expected="an existing directory to start processes in",
            hint="change to an existing directory with os.chdir, or pass workers=1",
        ) from exc


def _not_started(worker_id: str, exc: OSError) -> ExecutorError:
    """Return the error for a process that cannot be started, for lack of shared memory or for another reason."""
    problem = f"the process of worker {worker_id} cannot be started: "
    if exc.errno in _OF_SHARED_MEMORY and exc.filename is None:
        return ExecutorError(
            f"{problem}its semaphores cannot be created in {_IN_MEMORY}: {exc.strerror}",
            field="workers",
            expected=f"a writable {_IN_MEMORY} with 32 KiB of free space for each worker",
            hint="free up space there (in a container: docker run --shm-size), pass fewer workers, or pass workers=1",
        )
    return ExecutorError(
        f"{problem}{exc}",
        field="workers",
        expected="as many processes as the machine allows, with ten open files each",
        hint="pass fewer workers, or raise the limits (ulimit -n, ulimit -u)",
    )


def _environment() -> dict[str, str]:
    """Return environment variables for a process."""
    # Loky enables writing crashes to stderr unless this variable is set. A process without stderr would die of that.
    return {**_NO_RECYCLING, **({"PYTHONFAULTHANDLER": ""} if sys.stderr is None else {})}


@contextmanager
def _standard_streams() -> Iterator[None]:
    """Replace closed standard streams, such as those of a daemon: a process cannot be started without them.

    Loky flushes the streams in `sys`, and passes the descriptors 0 to 2 to the process, whatever they have been
    reused for.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number: this one. Stays open for later processes
    with ExitStack() as made:
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:
                setattr(sys, name, made.enter_context(open(os.devnull, "w", encoding="utf-8")))  # noqa: PTH123 - not a file
                made.callback(setattr, sys, name, None)
        yield


def _shared_directory() -> str:
    """Create a directory for large parcels, in memory if possible, and return its path."""
    name = f"curator-{os.getpid()}-{os.urandom(6).hex()}"
    try:
        return _create(f"{_IN_MEMORY}/{name}")
    except OSError:  # it does not exist, or is not writable
        return _create(f"{tempfile.gettempdir()}/{name}")


def _create(path: str) -> str:
    _tracker().register(path, _FOLDER)  # first, so that loky's tracker removes it whenever this process is killed
    try:
        Path(path).mkdir(mode=0o700)
        StopFlag.create(path)
    except OSError:
        shutil.rmtree(path, ignore_errors=True)
        _tracker().unregister(path, _FOLDER)
        raise
    return path


def _tracker() -> Any:
    """Return loky's resource tracker. Its process outlives this one, and removes the resources registered with it."""
    from loky.backend import resource_tracker  # noqa: PLC0415 - an extra, like loky above

    return resource_tracker


def _join(threads: Sequence[threading.Thread], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for thread in threads:
        if thread.ident is not None:
            thread.join(max(0.0, deadline - time.monotonic()))
