# SPDX-License-Identifier: Apache-2.0
"""Executors on several processes, and stages for them.

Stages are created inside functions, so that they are pickled by value: a process that imports a test module would
import pytest and hypothesis first.
"""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.waiting import DEADLINE_S

from curator_core import LocalExecutor, ProcessingStage, Task, processing_stage

if TYPE_CHECKING:
    from collections.abc import Callable

    from curator_core.testing import Journal

TWO = LocalExecutor(workers=2)
TWO_ONCE = LocalExecutor(workers=2, max_restarts=0)


def stage(function: Any, **settings: Any) -> ProcessingStage:
    return processing_stage(**{"name": "stage", **settings})(function)


def numbers(count: int) -> ProcessingStage:
    def emit(task):
        return (Task(data=number) for number in range(count))

    return stage(emit, name="numbers")


def living(journal: Journal, name: str, work: Any = lambda task: task, fails_in: str = "") -> ProcessingStage:
    """Return a stage that records its lifecycle."""

    class Living(ProcessingStage):
        def note(self, event):
            journal.write(self.name, event, "")
            if event == fails_in:
                raise ValueError(f"failed in {event}")

        def setup(self, worker_metadata):
            self.note("setup")

        def process(self, task):
            return work(task)

        def teardown(self):
            self.note("teardown")

    return Living().with_(name=name)


def meeting(directory: Path) -> ProcessingStage:
    """Return a stage whose tasks 0 and 1 wait for each other: they continue only in two concurrent processes."""
    os.mkfifo(directory / "meeting")
    where = str(directory / "meeting")

    def meet(task):
        if task.data in (0, 1):
            signal.alarm(DEADLINE_S)  # kills the process
            Path(where).open("rb" if task.data else "wb").close()
            signal.alarm(0)
        return Task(data=(task.data, os.getpid()))

    return stage(meet, name="meet")


def deadly(how: str) -> Callable[[], object]:
    """Return a function that ends the process that calls it."""
    return {
        "exit": lambda: os._exit(3),
        "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "crash": lambda: ctypes.string_at(0),
    }[how]


def dies_once(mark: Path) -> Any:
    """Return a function for a stage that exits its process at the first task 7."""

    def work(task):
        if task.data == 7 and not mark.exists():
            mark.touch()
            os._exit(1)
        return Task(data=(task.data, os.getppid()))

    return work
