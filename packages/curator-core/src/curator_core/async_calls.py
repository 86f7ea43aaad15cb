# SPDX-License-Identifier: Apache-2.0
"""Calls of an asynchronous stage, several of them under way at once."""

from __future__ import annotations

import asyncio
import inspect
import time
from typing import TYPE_CHECKING, Any

from curator_core.errors import StageTimeoutError
from curator_core.event_loop import working_on
from curator_core.guard import check_failure, leave_fork, this_process
from curator_core.returned import Failed, as_iterable, read_out

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

    from curator_core.event_loop import EventLoop
    from curator_core.logs import StageWork

__all__ = ["AsyncOutputs", "call_all", "call_one"]

_END = object()


async def call_all(
    method: Callable[[Any], Any],
    arguments: Sequence[Any],
    works: Sequence[StageWork],
    concurrency: int,
    timeout_s: float | None,
    *,
    stops_at_failure: bool,
) -> tuple[list[Any], int]:
    """Call a method once for each argument.

    Args:
        method: Of a stage.
        arguments: What to call it with.
        works: What each call is about, for log records and messages.
        concurrency: How many calls may be under way at once.
        timeout_s: Seconds that each may take; None for as long as it takes.
        stops_at_failure: Whether the first failure cancels all the others.

    Returns:
        What each call gave, or a `Failed`; an ellipsis for those that were canceled. And the thread's CPU time, in ns.
    """
    start = time.thread_time_ns()
    results: list[Any] = [...] * len(arguments)  # which no stage may return: what stays is no success
    following = iter(range(len(arguments)))

    is_stopped = False

    async def work() -> None:
        for number in following:
            working_on(works[number])
            try:
                async with asyncio.timeout(timeout_s) as limit:
                    results[number] = await call_one(method, arguments[number])
            except BaseException as exc:  # noqa: BLE001 - the failure of this call, and of no other
                if is_stopped:
                    return
                late = isinstance(exc, TimeoutError) and limit.expired()
                results[number] = Failed(_timed_out(works[number], timeout_s) if late else exc)
                if stops_at_failure:
                    stop()
                    return

    def stop() -> None:
        nonlocal is_stopped
        is_stopped = True
        for task in tasks - {asyncio.current_task()}:
            task.cancel()

    tasks = {asyncio.ensure_future(work()) for _ in range(min(concurrency, len(arguments)))}
    try:
        await asyncio.wait(tasks)
    finally:  # also where nobody waits for the results any longer
        stop()
        await asyncio.wait(tasks)
    return results, time.thread_time_ns() - start


class AsyncOutputs:
    """What an asynchronous source makes, read one by one by who is not asynchronous.

    Args:
        made: What calling the source gave.
        loop: Runs it.
    """

    def __init__(self, made: Any, loop: EventLoop) -> None:
        self._made = made
        self._loop = loop

    def __iter__(self) -> Iterator[Any]:
        if not hasattr(self._made, "__aiter__"):
            return iter(as_iterable(self._loop.run(_awaited(self._made))))
        return self

    def __next__(self) -> Any:
        output = self._loop.run(_next_of(self._made))
        if output is _END:
            raise StopIteration
        return output

    def close(self) -> None:
        """Let an asynchronous generator clean up."""
        if hasattr(self._made, "aclose"):
            self._loop.run(self._made.aclose())


async def _awaited(made: Awaitable[Any]) -> Any:
    return await made


async def _next_of(made: AsyncIterator[Any]) -> Any:
    return await anext(made, _END)


async def call_one(method: Callable[..., Any], *arguments: Any) -> Any:
    """Call a method and await what it gives, if that is to be awaited; an asynchronous generator is read to its end."""
    pid = this_process.pid
    try:
        made = method(*arguments)
        if hasattr(made, "__aiter__"):
            return [output async for output in made]
        if inspect.isawaitable(made):
            made = await made
        return read_out(made)
    except BaseException as exc:
        check_failure(exc, pid)
        raise
    finally:
        if pid != this_process.pid:
            leave_fork()


def _timed_out(work: StageWork, timeout_s: float | None) -> StageTimeoutError:
    return StageTimeoutError(
        f"timed out after {timeout_s:g} s" if timeout_s is not None else "timed out",
        stage=work.stage,
        field="timeout_s",
        given=timeout_s,
        expected="each call to end within that many seconds",
        hint="raise timeout_s if the service is only slow; on_error='skip' leaves such tasks out",
    )
