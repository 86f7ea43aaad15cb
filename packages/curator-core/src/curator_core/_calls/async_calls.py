# SPDX-License-Identifier: Apache-2.0
"""Concurrent calls of an asynchronous stage."""

from __future__ import annotations

import asyncio
import inspect
import time
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from curator_core._calls.event_loop import working_on
from curator_core._calls.returned import Failed, as_iterable, read_out
from curator_core._guard.user_code import check_failure, leave_fork, this_process
from curator_core._transport.exceptions import is_a
from curator_core.errors import StageTimeoutError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from curator_core._calls.event_loop import EventLoop
    from curator_core.logs import StageWork

__all__ = ["CANCELED", "AsyncOutputs", "CallSettings", "call_all", "call_one"]

CANCELED = Failed(asyncio.CancelledError("another call failed"))
"""The result of a call that was canceled because another one failed."""

_END = object()
_CANCEL_S = 1.0  # grace period for a canceled call; after that it is abandoned


class CallSettings(NamedTuple):
    """How calls are made.

    Attributes:
        concurrency: How many calls may be in flight at once.
        timeout_s: Time limit for each call, in seconds; None for no limit.
        stops_at: Which failures cancel the other calls: none, final ones, or all.
    """

    concurrency: int
    timeout_s: float | None
    stops_at: Literal["none", "final", "all"] = "none"


async def call_all(
    method: Callable[[Any], Any],
    arguments: Sequence[Any],
    work_of_calls: Sequence[StageWork],
    settings: CallSettings,
    retry_on: tuple[type[BaseException], ...] = (),
) -> tuple[list[Any], int]:
    """Call a method once for each argument.

    Args:
        method: A method of a stage.
        arguments: The argument of each call.
        work_of_calls: What each call works on, for log records and messages.
        settings: How the calls are made.
        retry_on: Exceptions that are not final, because the call is retried.

    Returns:
        The result of each call, a `Failed` if it failed; and the CPU time of the thread, in nanoseconds.
    """
    start = time.thread_time_ns()
    calls = _Calls(method, arguments, work_of_calls, settings, retry_on)
    await calls.run()
    return calls.results, time.thread_time_ns() - start


class _Calls:
    """The calls of a batch, made by a few asyncio tasks that each make one call after another."""

    def __init__(
        self,
        method: Callable[[Any], Any],
        arguments: Sequence[Any],
        work_of_calls: Sequence[StageWork],
        settings: CallSettings,
        retry_on: tuple[type[BaseException], ...],
    ) -> None:
        self.results: list[Any] = [CANCELED] * len(arguments)
        self._method = method
        self._arguments = arguments
        self._work_of_calls = work_of_calls
        self._settings = settings
        self._retry_on = retry_on
        self._next_numbers = iter(range(len(arguments)))
        self._is_over = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        count = min(self._settings.concurrency, len(self._arguments))
        self._tasks = {asyncio.ensure_future(self._work()) for _ in range(count)}
        try:
            await asyncio.wait(self._tasks)
        finally:  # also if waiting for the results was canceled
            self._stop()
            await asyncio.wait(self._tasks, timeout=_CANCEL_S)

    def _stop(self) -> None:
        self._is_over = True
        for task in self._tasks - {asyncio.current_task()}:
            task.cancel()

    async def _work(self) -> None:
        for number in self._next_numbers:
            result = await self._result_of(number)
            if self._is_over:
                return
            self.results[number] = result
            if isinstance(result, Failed) and self._stops_at(result.error):
                self._stop()
                return

    def _stops_at(self, error: BaseException) -> bool:
        if self._settings.stops_at == "final":
            return not is_a(error, self._retry_on)
        return self._settings.stops_at == "all"

    async def _result_of(self, number: int) -> Any:
        work, timeout_s = self._work_of_calls[number], self._settings.timeout_s
        working_on(work)
        call = _caught(self._method, self._arguments[number])
        if timeout_s is None:
            return await call
        # The call gets its own task, because code that swallows its cancellation must not be awaited.
        task = asyncio.ensure_future(call)
        try:
            ended, _ = await asyncio.wait({task}, timeout=timeout_s)
            if ended:
                return task.result()
        finally:
            task.cancel()
        await asyncio.wait({task}, timeout=_CANCEL_S)
        return Failed(_timed_out(work, timeout_s))


async def _caught(method: Callable[[Any], Any], argument: Any) -> Any:
    try:
        return await call_one(method, argument)
    except BaseException as exc:  # noqa: BLE001 - a failure of this call only
        return Failed(exc)


async def call_one(method: Callable[..., Any], *arguments: Any) -> Any:
    """Call a method and await its result if it is awaitable; read an asynchronous generator to its end."""
    pid = this_process.pid
    try:
        returned = method(*arguments)
        if hasattr(returned, "__aiter__"):
            return [output async for output in returned]
        if inspect.isawaitable(returned):
            returned = await returned
        return read_out(returned)
    except BaseException as exc:
        check_failure(exc, pid)
        raise
    finally:
        if pid != this_process.pid:
            leave_fork()


class AsyncOutputs:
    """A synchronous iterator over the outputs of an asynchronous source.

    A single asyncio task runs a generator from start to end, so that the generator can keep open between two outputs
    whatever is bound to a task: a time limit, a task group, a span.

    Args:
        returned: The value that the source returned.
        loop: The event loop that runs it.
        work: What it works on, for log records.
    """

    def __init__(self, returned: Any, loop: EventLoop, work: StageWork) -> None:
        self._returned = returned
        self._loop = loop
        self._work = work
        self._task: asyncio.Task[None] | None = None

    def __iter__(self) -> Iterator[Any]:
        if not hasattr(self._returned, "__aiter__"):
            return iter(as_iterable(self._loop.run(call_one(lambda: self._returned), self._work)))
        self._loop.run(self._begin(), self._work)
        return self

    def __next__(self) -> Any:
        output = self._loop.run(self._take())
        if output is _END:
            raise StopIteration
        if isinstance(output, Failed):
            raise output.error
        return output

    def close(self) -> None:
        """Stop the generator, so that it can clean up."""
        if self._task is not None:
            self._loop.run(self._end())

    async def _begin(self) -> None:
        self._wanted, self._made = asyncio.Semaphore(0), asyncio.Queue[Any]()
        self._task = asyncio.ensure_future(self._read(self._returned))

    async def _read(self, generator: AsyncIterator[Any]) -> None:
        """Pass on the outputs, each when it is requested."""
        end: Any = _END
        pid = this_process.pid
        try:
            await self._wanted.acquire()
            async for output in generator:
                if pid != this_process.pid:
                    leave_fork()
                self._made.put_nowait(output)
                await self._wanted.acquire()
        except BaseException as exc:  # noqa: BLE001 - raised where the output is requested
            check_failure(exc, pid)
            end = Failed(exc)
        finally:
            if pid != this_process.pid:
                leave_fork()
            self._made.put_nowait(end)
            if hasattr(generator, "aclose"):
                await generator.aclose()

    async def _take(self) -> Any:
        self._wanted.release()
        return await self._made.get()

    async def _end(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            if not self._task.cancelled() and (error := self._task.exception()) is not None:
                raise error


def _timed_out(work: StageWork, timeout_s: float) -> StageTimeoutError:
    return StageTimeoutError(
        f"timed out after {timeout_s:g} s",
        stage=work.stage,
        field="timeout_s",
        given=timeout_s,
        expected=f"a call that ends within {timeout_s:g} s",
        hint="raise timeout_s if the service is just slow, or pass on_error='skip' to skip such tasks",
    )
