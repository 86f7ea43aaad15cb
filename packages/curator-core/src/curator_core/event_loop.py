# SPDX-License-Identifier: Apache-2.0
"""The event loop of a worker, which its asynchronous stages share, in a thread of its own.

In a thread, because engines call a stage's set-up in another thread than its batches, and because a notebook has a loop
in the main thread that cannot run a second one.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from curator_core.logs import StageWork, this_thread

if TYPE_CHECKING:
    from collections.abc import Coroutine

__all__ = ["EventLoop", "working_on"]

T = TypeVar("T")

_CANCEL_S = 5.0  # for what is under way to end, when nobody waits for it any longer
_lock = threading.Lock()
_work: ContextVar[StageWork] = ContextVar("curator_work")

working_on = _work.set
"""Say what the coroutine at hand, and what it starts, works on, for log records."""


class _InContext:
    """The caller of stages in a loop's thread; see `curator_core.logs.Caller`."""

    def current_work(self) -> StageWork:
        return _work.get(StageWork())


class EventLoop:
    """An event loop in a thread of its own. Get it by `shared`, which gives each user in a process the same one."""

    _shared: EventLoop | None = None

    def __init__(self) -> None:
        self._users = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="curator-async", daemon=True)
        self._thread.start()

    @classmethod
    def shared(cls) -> EventLoop:
        """The process's loop, to be given back by `release`."""
        with _lock:
            if cls._shared is None:
                cls._shared = cls()
            cls._shared._users += 1
            return cls._shared

    def release(self) -> None:
        """Give the loop back; with its last user it ends, and so does all that stages have left running in it."""
        with _lock:
            self._users -= 1
            if self._users:
                return
            EventLoop._shared = None
        with suppress(Exception):  # of what a stage has left behind, which is canceled
            self.run(_end_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CANCEL_S)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the loop, and wait for it; where the wait is interrupted, it is canceled.

        Raises:
            BaseException: What the coroutine raised.
        """
        running = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return running.result()
        except BaseException:
            if running.cancel():
                self._wait_for_cleanup()
            raise

    def _wait_for_cleanup(self) -> None:
        """Let what was canceled end: its own cleaning up takes a few turns of the loop."""
        with suppress(BaseException):
            asyncio.run_coroutine_threadsafe(_others_ended(), self._loop).result(_CANCEL_S)

    def _serve(self) -> None:
        this_thread.post.caller = _InContext()
        asyncio.set_event_loop(self._loop)
        while True:
            try:
                self._loop.run_forever()
                break
            except BaseException:  # noqa: BLE001, S112 - of a task that a stage has started: asyncio lets exits out
                continue
        self._loop.close()


async def _others_ended() -> None:
    canceled = [task for task in asyncio.all_tasks() if task.cancelling()]
    if canceled:
        await asyncio.wait(canceled, timeout=_CANCEL_S)


async def _end_all() -> None:
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left, timeout=_CANCEL_S)
    loop = asyncio.get_running_loop()
    await loop.shutdown_asyncgens()
    await asyncio.wait_for(loop.shutdown_default_executor(), _CANCEL_S)
