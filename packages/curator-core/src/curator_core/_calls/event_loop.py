# SPDX-License-Identifier: Apache-2.0
"""The event loop that the asynchronous stages of a worker share, in a thread of its own.

It has its own thread because engines call a stage's setup in another thread than its batches, and because the main
thread of a notebook already runs a loop and cannot run a second one.
"""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import TimeoutError as WaitTimeoutError
from contextlib import suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet

from curator_core._guard.user_code import leave_fork, this_process
from curator_core.logs import StageWork, this_thread

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable

__all__ = ["EventLoop", "working_on"]

T = TypeVar("T")

_CANCEL_S = 2.0  # grace period for canceled tasks
_work: ContextVar[StageWork] = ContextVar("curator_work")
_owner: ContextVar[EventLoop] = ContextVar("curator_owner")

working_on = _work.set
"""Set what the current coroutine, and the tasks that it starts, work on, for log records."""


class EventLoop:
    """A worker's handle on the event loop. All handles in a process share one loop until the last one is released."""

    def __init__(self) -> None:
        self._tasks = WeakSet[asyncio.Task[Any]]()  # tasks started through this handle
        self._thread = _LoopThread.acquire()

    def run(self, coroutine: Coroutine[Any, Any, T], work: StageWork | None = None) -> T:
        """Run a coroutine in the loop and wait for it. If the wait is interrupted, the coroutine is canceled.

        Args:
            coroutine: The coroutine.
            work: What it works on, for log records.

        Raises:
            BaseException: The exception that the coroutine raised.
            RuntimeError: A call that does not return blocks the loop.
        """
        return self._thread.run(self._owned(coroutine, work))

    def release(self) -> None:
        """Release the loop, and cancel the tasks started through this handle that still run."""
        self._thread.try_to_run(_ended(self._tasks))
        self._thread.release()

    def note(self, task: asyncio.Task[Any]) -> None:
        """Remember a task that was started through this handle."""
        self._tasks.add(task)

    async def _owned(self, coroutine: Coroutine[Any, Any, T], work: StageWork | None) -> T:
        _owner.set(self)
        if work is not None:
            working_on(work)
        pid = this_process.pid
        try:
            return await coroutine
        except BaseException as exc:
            if pid != this_process.pid:
                leave_fork(exc)
            raise
        finally:
            if pid != this_process.pid:
                leave_fork()


class _LoopThread:
    """The loop, and the thread that runs it."""

    def __init__(self) -> None:
        self._users = 0
        self._is_over = self._is_blocked = False
        self._loop = asyncio.new_event_loop()
        self._loop.set_task_factory(_make_task)
        self._thread = threading.Thread(target=self._serve, name="curator-async", daemon=True)
        self._thread.start()

    @staticmethod
    def acquire() -> _LoopThread:
        """Return the process's thread; a new one if that is blocked, or is the caller, which would wait for itself."""
        with _shared.lock:
            thread = _shared.thread
            if thread is None:
                thread = _shared.thread = _LoopThread()
            elif threading.current_thread() is thread._thread or thread._is_blocked:
                thread = _LoopThread()
            thread._users += 1
            return thread

    def release(self) -> None:
        """Remove one user. When the last one is gone, the thread ends unless something blocks it."""
        with _shared.lock:
            self._users -= 1
            if self._users:
                return
            if _shared.thread is self:
                _shared.thread = None
        self.try_to_run(_all_ended())
        self._is_over = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(0 if self._is_blocked else _CANCEL_S)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """See `EventLoop.run`."""
        if self._is_blocked:
            coroutine.close()
            raise RuntimeError("the event loop is blocked by a call that does not return")
        running = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return running.result()
        except BaseException:
            if running.cancel():
                self.try_to_run(_canceled_ended())  # its cleanup takes a few iterations of the loop
            raise

    def try_to_run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a cleanup coroutine, ignoring its errors. If it does not end in time, mark the loop as blocked."""
        if self._is_blocked:
            coroutine.close()
            return
        running = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            running.result(_CANCEL_S + 1)
        except WaitTimeoutError:
            self._is_blocked = True
        except Exception:  # noqa: BLE001, S110 - raised by tasks that a stage left behind
            pass

    def _serve(self) -> None:
        this_thread.post.caller = _InContext()
        asyncio.set_event_loop(self._loop)
        while not self._is_over:  # a stage may stop the loop, or a task may raise SystemExit out of it
            with suppress(BaseException):
                self._loop.run_forever()
        self._loop.close()


class _Shared:
    """The loop thread of this process. A forked process starts with none, because it does not inherit threads."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.thread: _LoopThread | None = None


_shared = _Shared()
os.register_at_fork(after_in_child=_shared.__init__)  # type: ignore[misc]  # called on this one object, on purpose


class _InContext:
    """The caller of stages in the loop's thread; see `curator_core.logs.Caller`."""

    def current_work(self) -> StageWork:
        return _work.get(StageWork())


def _make_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
    task = asyncio.Task(coroutine, loop=loop, **options)
    owner = _owner.get(None)
    if owner is not None:
        owner.note(task)
    return task


async def _ended(tasks: Iterable[asyncio.Task[Any]]) -> None:
    left = {task for task in tasks if not task.done()}
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left, timeout=_CANCEL_S)


async def _canceled_ended() -> None:
    canceled = {task for task in asyncio.all_tasks() if task.cancelling()}
    if canceled:
        await asyncio.wait(canceled, timeout=_CANCEL_S)


async def _all_ended() -> None:
    await _ended(asyncio.all_tasks() - {asyncio.current_task()})
    loop = asyncio.get_running_loop()
    await loop.shutdown_asyncgens()
    await asyncio.wait_for(loop.shutdown_default_executor(), _CANCEL_S)
