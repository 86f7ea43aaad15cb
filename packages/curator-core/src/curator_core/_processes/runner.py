# SPDX-License-Identifier: Apache-2.0
"""The code that runs in the process of an isolated stage: it calls the stage as the worker asks."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curator_core._calls.returned import Failed, read_out
from curator_core._guard.user_code import check_failure, leave_fork, this_process
from curator_core._processes.channel import Answer, Call, CallValues, FailedCall
from curator_core._processes.child import serve
from curator_core._reports.failures import error_info
from curator_core._transport.exceptions import is_a
from curator_core._transport.packed import Packed
from curator_core._transport.pickling import pickles, use_cloudpickle
from curator_core.logs import LOG_FORMAT, RecordBuffer, StageLogFilter, StageWork, at_work
from curator_core.tasks import state_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from curator_core._calls.async_calls import CallSettings
    from curator_core._calls.event_loop import EventLoop
    from curator_core.stages import ProcessingStage

__all__ = ["main"]

_ON_TASKS = ("process", "process_batch", "call_all")
_warnings = RecordBuffer()


def main(fd: int, lifeline: int, engines_cloudpickle: str | None, log_level: int) -> None:
    """Serve a stage until the connection is closed.

    Args:
        fd: See `serve`.
        lifeline: See `serve`.
        engines_cloudpickle: Name of the engine's own copy of cloudpickle that the worker pickles with; None if it uses
            the plain one.
        log_level: Log level of the worker.
    """
    with suppress(OSError):  # not Linux; if memory runs out, the kernel kills this process, not the worker
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    handler = logging.StreamHandler()
    handler.addFilter(StageLogFilter())
    logging.basicConfig(level=log_level, format=LOG_FORMAT, handlers=[handler, _warnings])
    serve(fd, lifeline, _StageRunner(engines_cloudpickle).serve)


class _StageRunner:
    """Calls the stage as the worker asks."""

    def __init__(self, engines_cloudpickle: str | None) -> None:
        self._engines_cloudpickle = engines_cloudpickle
        self._stage: ProcessingStage[Any, Any] | None = None
        self._retry_on: tuple[type[BaseException], ...] = ()
        self._work = StageWork()
        self._loop: EventLoop | None = None
        self._loop_ns = 0  # CPU time of the event loop's thread in the current call

    def current_work(self) -> StageWork:
        """Return what the stage is working on, for log records."""
        return self._work

    def serve(self, message: Packed) -> Packed:
        """Make the call that a message asks for, and return the `Answer`."""
        answer = self._answer(message)
        if warnings := _warnings.take():
            answer = answer._replace(logs=warnings)
        if self._engines_cloudpickle in sys.modules:  # classes that it pickled must be sent back by the same copy
            use_cloudpickle(sys.modules[self._engines_cloudpickle])
            self._engines_cloudpickle = None
        try:
            return Packed.of(answer)
        except BaseException as exc:  # noqa: BLE001 - pickling runs user code
            return Packed.of(_without_unsendable(answer, exc))

    def _answer(self, message: Packed) -> Answer:
        try:
            call: Call = message.open()
        except BaseException as exc:  # noqa: BLE001 - the worker raises it, as it does an exception of the stage
            return Answer(error=error_info(exc))
        if call.method == "load":
            self._stage, self._retry_on = call.arguments
            return Answer()
        stage: Any = self._stage
        stage.metrics.go_on(call.metrics)
        self._work = call.work
        start, pid = time.thread_time_ns(), this_process.pid
        value, error, is_of_retry_on = None, None, False
        self._loop_ns = 0
        try:
            with at_work(self):
                value = self._call_all(stage, *call.arguments) if call.method == "call_all" else self._call(stage, call)
        except BaseException as exc:  # noqa: BLE001 - see above
            check_failure(exc, pid)
            error, is_of_retry_on = error_info(exc), is_a(exc, self._retry_on)
        if pid != this_process.pid:
            leave_fork()
        took = time.thread_time_ns() - start + self._loop_ns
        is_work = call.method in _ON_TASKS
        if call.method == "teardown" and self._loop is not None:
            self._loop.release()
            self._loop = None
        notes = _notes(call.arguments[1 if call.method == "call_all" else 0]) if is_work else []
        return Answer(value, error, is_of_retry_on, notes, stage.metrics.take(), took if is_work else 0)

    def _call(self, stage: Any, call: Call) -> Any:
        made = getattr(stage, call.method)(*call.arguments)
        if hasattr(made, "__await__") or hasattr(made, "__aiter__"):
            from curator_core._calls.async_calls import call_one  # noqa: PLC0415 - asyncio, which few stages need

            return self._event_loop().run(call_one(lambda: made), self._work)
        return read_out(made)

    def _call_all(
        self,
        stage: Any,
        method: str,
        arguments: Sequence[Any],
        work_of_calls: Sequence[StageWork],
        settings: CallSettings,
    ) -> CallValues:
        from curator_core._calls.async_calls import CANCELED, call_all  # noqa: PLC0415 - see `_call`

        calls = call_all(getattr(stage, method), arguments, work_of_calls, settings, self._retry_on)
        results, self._loop_ns = self._event_loop().run(calls)
        return CallValues(
            self._failed_call(each.error, is_canceled=each is CANCELED) if isinstance(each, Failed) else each
            for each in results
        )

    def _failed_call(self, error: BaseException, *, is_canceled: bool) -> FailedCall:
        return FailedCall(error_info(error), is_a(error, self._retry_on), is_canceled)

    def _event_loop(self) -> EventLoop:
        if self._loop is None:
            from curator_core._calls.event_loop import EventLoop  # noqa: PLC0415 - see `_call`

            self._loop = EventLoop()
        return self._loop


def _without_unsendable(answer: Answer, exc: BaseException) -> Answer:
    """Return an answer with an error in place of its value, or of those values of several calls that do not pickle."""
    error = error_info(exc, "while its return value was pickled")
    if not isinstance(answer.value, CallValues):
        return Answer(error=error, metrics=answer.metrics, cpu_ns=answer.cpu_ns)
    values = CallValues(value if pickles(value) else FailedCall(error, is_of_retry_on=False) for value in answer.value)
    return answer._replace(value=values)


def _notes(given: Any) -> list[dict[str, Any] | None]:
    """Return the ``metadata`` of each task that a call was given; an empty list, the usual case, if none has any."""
    tasks = given if isinstance(given, list) else [given]
    if tasks and isinstance(tasks[0], list):  # of several calls of process_batch()
        tasks = [task for call in tasks for task in call]
    notes = [state_of(task)[2] for task in tasks]
    return notes if any(each is not None for each in notes) else []
