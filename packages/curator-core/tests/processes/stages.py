# SPDX-License-Identifier: Apache-2.0
"""Stages that run in their own processes, and their data.

Each of these processes imports this module, so it must be light.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from curator_core import Pipeline, ProcessingStage, Task


def run(*stages: Any, data: Any, **settings: Any) -> Any:
    return Pipeline("p", list(stages)).run(initial_tasks=[Task(data=each) for each in data], **settings)


class Elsewhere(ProcessingStage[Task[Any], Task[Any]]):
    """Returns the process that it runs in."""

    isolated = True

    def process(self, task: Task[Any]) -> Task[Any]:
        return Task(data=os.getpid())


class Deadly(ProcessingStage[Task[Any], Task[Any]]):
    """Ends its process in the way that a task names."""

    isolated = True

    def process(self, task: Task[Any]) -> Task[Any]:
        deadly(task.data)
        return Task(data=task.data)


class DeadlyBatches(ProcessingStage[Task[Any], Task[Any]]):
    """Does the same for several tasks at once."""

    isolated = True
    batch_size = 8

    def process_batch(self, tasks: list[Task[Any]]) -> list[Task[Any]]:
        for task in tasks:
            deadly(task.data)
        return [Task(data=task.data) for task in tasks]


def deadly(data: Any) -> None:
    if data == "exits":
        os._exit(3)
    if data == "segfaults":
        ctypes.string_at(0)
    if data == "is killed by a signal without a name":
        os.kill(os.getpid(), signal.SIGRTMIN + 1)
    if data == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if data == "hangs":
        threading.Event().wait()
    if data == "spins":
        while True:
            pass
    if data == "raises":
        raise ValueError("that is no good")


class Recording(ProcessingStage[Task[Any], Task[Any]]):
    """Records everything that a stage can record."""

    batch_size = 2

    def process(self, task: Task[Any]) -> Task[Any]:
        self.metrics.add("calls")
        self.metrics.set("last", str(task.data))
        task.metadata["seen"] = task.data
        if task.data == "forgets":
            task.metadata.clear()
        if task.data == "raises":
            raise ValueError("no")
        if task.data == "itself":
            return task
        if task.data == "many":
            return (Task(data=number) for number in range(3))  # type: ignore[return-value]
        return None if task.data == "drop" else Task(data=task.data)  # type: ignore[return-value]


class UnfitError(Exception):
    """Can be pickled, but not unpickled."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


class Unlucky(ProcessingStage[Task[Any], Task[Any]]):
    """Succeeds on the third call.

    Args:
        calls: File that counts the calls.
        fail: Called in earlier calls.
    """

    retry_delay_s = 0.0

    def __init__(self, calls: Path, fail: Any) -> None:
        self.calls, self.fail = calls, fail

    def process(self, task: Task[Any]) -> Task[Any]:
        with self.calls.open("a") as calls:
            calls.write("x")
        if len(self.calls.read_text()) < 3:
            self.fail()
        return Task(data=task.data)


def unfit() -> None:
    raise UnfitError(3, "not fit to travel")


class Exiting:
    """Exits any process that unpickles it, except this one."""

    def __reduce__(self):
        return exit_elsewhere, (os.getpid(),)


def exit_elsewhere(here: int) -> None:
    if os.getpid() != here:
        sys.exit("no")
