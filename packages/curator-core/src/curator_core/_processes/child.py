# SPDX-License-Identifier: Apache-2.0
"""The code that runs in the process of an isolated stage."""

from __future__ import annotations

import faulthandler
import fcntl
import logging
import os
import sys
import threading
import time
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from curator_core._calls.returned import Failed, read_out
from curator_core._guard.interrupts import become_worker
from curator_core._guard.signals import leave_signals_to_driver
from curator_core._guard.user_code import check_failure, leave_fork, this_process
from curator_core._processes.channel import Answer, Call, CallValues, FailedCall, receive, send
from curator_core._reports.failures import error_info
from curator_core._transport.exceptions import is_a
from curator_core._transport.pickling import pickles, use_cloudpickle
from curator_core.logs import LOG_FORMAT, RecordBuffer, StageLogFilter, StageWork, at_work, mark_records
from curator_core.tasks import state_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from curator_core._calls.async_calls import CallSettings
    from curator_core._calls.event_loop import EventLoop
    from curator_core._transport.packed import Packed
    from curator_core.stages import ProcessingStage

__all__ = ["main"]

_ON_TASKS = ("process", "process_batch", "call_all")
_warnings = RecordBuffer()
_EXIT_S = 10.0  # for the stage's threads to end after the connection is closed


def main(fd: int, lifeline: int, engines_cloudpickle: str | None, log_level: int) -> None:
    """Answer the calls from a connection until it is closed.

    Args:
        fd: File descriptor of the connection.
        lifeline: File descriptor of a pipe that nothing is sent through. Its other end closes when the worker ends.
        engines_cloudpickle: Name of the engine's own copy of cloudpickle that the worker pickles with; None if it uses
            the plain one.
        log_level: Log level of the worker.
    """
    become_worker()
    leave_signals_to_driver()
    faulthandler.enable()  # prints where in a stage's code the process crashed
    for each in (fd, lifeline):
        os.set_inheritable(each, False)  # processes that the stage starts must not keep them open
    _die_with_worker(lifeline)
    with suppress(OSError):  # not Linux; if memory runs out, the kernel kills this process, not the worker
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    _log_to_stderr(log_level)
    mark_records()
    try:
        _serve(Connection(fd), engines_cloudpickle)
    except BaseException:  # noqa: BLE001 - the stage's threads would keep a process alive that answers no calls
        traceback.print_exc()
        _flush()
        os._exit(1)
    threading.Thread(target=_exit_late, name="curator-exit", daemon=True).start()


def _serve(connection: Connection, engines_cloudpickle: str | None) -> None:
    messages: SimpleQueue[Packed | None] = SimpleQueue()
    threading.Thread(target=_listen, args=(connection, messages), name="curator-calls", daemon=True).start()
    runner = _StageRunner()
    while (message := messages.get()) is not None:  # in the main thread, which some stages require
        answer = runner.answer(message)
        if warnings := _warnings.take():
            answer = answer._replace(logs=warnings)
        if engines_cloudpickle in sys.modules:  # classes that it pickled must be sent back by the same copy
            use_cloudpickle(sys.modules[engines_cloudpickle])
            engines_cloudpickle = None
        try:
            send(connection, answer)
        except OSError:
            return
        except BaseException as exc:  # noqa: BLE001 - pickling runs user code
            send(connection, _without_unsendable(answer, exc))


def _without_unsendable(answer: Answer, exc: BaseException) -> Answer:
    """Return an answer with an error in place of its value, or of those values of several calls that do not pickle."""
    error = error_info(exc, "while its return value was pickled")
    if not isinstance(answer.value, CallValues):
        return Answer(error=error, metrics=answer.metrics, cpu_ns=answer.cpu_ns)
    values = CallValues(value if pickles(value) else FailedCall(error, is_of_retry_on=False) for value in answer.value)
    return answer._replace(value=values)


def _listen(connection: Connection, messages: SimpleQueue[Packed | None]) -> None:
    """Receive messages in a thread, which notices a closed connection even while the stage is busy."""
    with suppress(EOFError, OSError):
        while True:
            messages.put(receive(connection))
    messages.put(None)


def _die_with_worker(lifeline: int) -> None:
    """Make the kernel end this process when the worker ends, even while C code blocks the interpreter."""
    with suppress(OSError, AttributeError):  # if not supported, this process ends when its stage returns
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)


def _log_to_stderr(level: int) -> None:
    handler = logging.StreamHandler()
    handler.addFilter(StageLogFilter())
    logging.basicConfig(level=level, format=LOG_FORMAT, handlers=[handler, _warnings])


def _exit_late() -> None:
    time.sleep(_EXIT_S)
    os._exit(1)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()


class _StageRunner:
    """Calls the stage as the worker asks."""

    def __init__(self) -> None:
        self._stage: ProcessingStage[Any, Any] | None = None
        self._retry_on: tuple[type[BaseException], ...] = ()
        self._work = StageWork()
        self._loop: EventLoop | None = None
        self._loop_ns = 0  # CPU time of the event loop's thread in the current call

    def current_work(self) -> StageWork:
        """Return what the stage is working on, for log records."""
        return self._work

    def answer(self, message: Packed) -> Answer:
        """Make the call that a message asks for."""
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


def _notes(given: Any) -> list[dict[str, Any] | None]:
    """Return the ``metadata`` of each task that a call was given; an empty list, the usual case, if none has any."""
    tasks = given if isinstance(given, list) else [given]
    if tasks and isinstance(tasks[0], list):  # of several calls of process_batch()
        tasks = [task for call in tasks for task in call]
    notes = [state_of(task)[2] for task in tasks]
    return notes if any(each is not None for each in notes) else []
