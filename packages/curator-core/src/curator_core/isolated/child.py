# SPDX-License-Identifier: Apache-2.0
"""What runs in the process that holds a stage."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from curator_core.failure import error_info
from curator_core.isolated.channel import Answer, Call, receive, send
from curator_core.logs import StageWork, at_work, mark_records
from curator_core.pickling import use_cloudpickle
from curator_core.returned import read_out
from curator_core.task import state_of

if TYPE_CHECKING:
    from curator_core.stage import ProcessingStage

__all__ = ["main"]

_ENGINES_OWN = "ray.cloudpickle"
_ON_TASKS = ("process", "process_batch")


def main(fd: int) -> None:
    """Do what comes through a connection, until it is closed.

    Args:
        fd: The connection.
    """
    signal.signal(signal.SIGINT, _leave_to_worker)
    faulthandler.enable()  # where in a stage's code it crashed
    with suppress(OSError):  # not Linux; where memory runs out, the kernel takes this one and not the worker
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    mark_records()
    os.set_inheritable(fd, False)  # what the stage starts is not to hold it open
    connection = Connection(fd)
    calls: SimpleQueue[Call | Exception] = SimpleQueue()
    threading.Thread(target=_listen, args=(connection, calls), name="curator-calls", daemon=True).start()
    holder = _Holder()
    while True:  # this is the main thread, as a stage may well expect
        call = calls.get()
        answer = Answer(error=error_info(call)) if isinstance(call, Exception) else holder.answer(call)
        try:
            send(connection, answer)
        except OSError:
            return
        except Exception as exc:  # noqa: BLE001 - pickling runs code of users
            send(connection, answer._replace(value=None, error=error_info(exc, "what it returned cannot be sent")))


def _listen(connection: Connection, calls: SimpleQueue[Call | Exception]) -> None:
    """Take calls in a thread: that the worker is no more is to be heard while the stage is busy, or hangs."""
    while True:
        try:
            calls.put(receive(connection))
        except (EOFError, OSError):
            os._exit(0)
        except Exception as exc:  # noqa: BLE001 - a class that cannot be imported here
            calls.put(exc)
        if _ENGINES_OWN in sys.modules:  # unpickling has loaded it: classes have to go back the way they came
            use_cloudpickle(sys.modules[_ENGINES_OWN])


def _leave_to_worker(signum: int, frame: Any) -> None:
    """Not `SIG_IGN`, which programs that a stage starts would inherit."""


class _Holder:
    """Holds the stage."""

    def __init__(self) -> None:
        self._stage: ProcessingStage[Any, Any] | None = None
        self._work = StageWork()

    def current_work(self) -> StageWork:
        """What the stage is at, for log records."""
        return self._work

    def answer(self, call: Call) -> Answer:
        """Do what is asked."""
        if call.method == "hold":
            (self._stage,) = call.arguments
            return Answer()
        stage: Any = self._stage
        stage.metrics.go_on(call.metrics)
        self._work = call.work
        start = time.thread_time_ns()
        value, error = None, None
        try:
            with at_work(self):
                value = read_out(getattr(stage, call.method)(*call.arguments))
        except (Exception, SystemExit) as exc:  # noqa: BLE001 - raised in the worker
            error = error_info(exc)
        took = time.thread_time_ns() - start
        is_work = call.method in _ON_TASKS
        return Answer(value, error, _notes(call) if is_work else (), stage.metrics.take(), took if is_work else 0)


def _notes(call: Call) -> list[dict[str, Any] | None]:
    """The notes on the tasks that a call was about; empty where there are none, which is the usual case."""
    (given,) = call.arguments
    notes = [state_of(task)[2] for task in (given if isinstance(given, list) else [given])]
    return notes if any(notes) else []
