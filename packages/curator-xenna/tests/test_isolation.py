# SPDX-License-Identifier: Apache-2.0
"""Tasks that kill or hang their worker: only these are lost, and they cost few workers."""

from __future__ import annotations

import ctypes
import os
import signal
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from curator_core import (
    DeadLetter,
    Pipeline,
    ProcessDiedError,
    ProcessingStage,
    Resources,
    RunObserver,
    Task,
    deadletter,
)
from curator_xenna._session import session
from curator_xenna.compat import HAS_DESTROY

if TYPE_CHECKING:
    from curator_core import BatchReport
    from curator_xenna import XennaExecutor

COUNT = 8
POISON = 5


def is_poison(number: int) -> bool:
    return number % 5 == 3


class Pairs(ProcessingStage[Task[int], Task[int]]):
    """Fans each task out to two."""

    resources = Resources(cpus=0.3)

    def process(self, task: Task[int]) -> list[Task[int]]:
        return [Task(data=task.data), Task(data=-task.data - 1)]


class Poisoned(ProcessingStage[Task[int], Task[int]]):
    """Crashes on every fifth task, in batches."""

    resources = Resources(cpus=0.3)
    batch_size = 4

    def num_workers(self) -> int:
        return 1

    def process_batch(self, tasks: list[Task[int]]) -> list[Task[int]]:
        if any(is_poison(task.data) for task in tasks):
            ctypes.string_at(0)  # a true segfault
        return [Task(data=task.data) for task in tasks]


class Refuses(ProcessingStage[Task[int], Task[int]]):
    """Kills its worker on one of the tasks, each time: it refuses a process of its own."""

    resources = Resources(cpus=0.3)
    batch_size = 4
    isolated = False

    def num_workers(self) -> int:
        return 2

    def process_batch(self, tasks: list[Task[int]]) -> list[Task[int]]:
        if any(task.data == POISON for task in tasks):
            os.kill(os.getpid(), signal.SIGKILL)
        return [Task(data=task.data) for task in tasks]


class BatchSizes(RunObserver):
    """Records the sizes of the batches of each epoch."""

    def __init__(self) -> None:
        self.seen: dict[int, set[int]] = {}

    def on_batch(self, report: BatchReport) -> None:
        self.seen.setdefault(report.epoch, set()).add(len(report.inputs))


@pytest.fixture
def sessions(executor: XennaExecutor, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options of each session, with one restart."""
    told: list[dict[str, Any]] = []

    class Session(session.Session):
        def __init__(self, *args: Any, **options: Any) -> None:
            told.append(options)
            super().__init__(*args, **options)

    monkeypatch.setattr(session, "Session", Session)
    monkeypatch.setattr(executor, "config", replace(executor.config, max_restarts=1))
    return told


def test_tasks_that_kill_their_worker_are_set_aside_and_only_they(executor, tmp_path, sessions):
    tasks = [Task(data=number) for number in range(COUNT)]
    result = Pipeline("poisoned", [Pairs(), Poisoned()]).run(executor, tasks, on_error=DeadLetter(tmp_path))
    good = [number for number in range(-COUNT, COUNT) if not is_poison(number)]
    assert sorted(task.data for task in result) == good
    letters = [*deadletter.read(tmp_path)]
    assert len(letters) == 2 * COUNT - len(good)
    assert {letter.error_type for letter in letters} == {"curator_core.errors.ProcessDiedError"}
    assert sorted(letter.task_id for letter in letters) == sorted(result.accounting.failed["Poisoned"])
    assert result.complete
    assert (result.stages[1].tasks_in, result.stages[1].tasks_out) == (2 * COUNT, len(good))
    # After the last restart, tasks travel one by one.
    assert result.accounting.restarts == 1
    assert [told["config"].bundle for told in sessions] == [True, False]
    assert sessions[0]["stages"] == sessions[1]["stages"]  # an isolated stage keeps its batch size


@pytest.mark.skipif(not HAS_DESTROY, reason="before 0.4 the death of a worker ends Xenna's run")
def test_a_task_that_kills_its_worker_every_time_takes_no_other_task_along(executor, sessions):
    sizes = BatchSizes()
    tasks = [Task(data=number) for number in range(COUNT)]
    result = Pipeline("refuses", [Refuses()]).run(executor, tasks, observers=[sizes], on_error="skip")
    assert sorted(task.data for task in result) == [number for number in range(COUNT) if number != POISON]
    assert result.accounting.unfinished == (str(POISON),)
    assert len(result.lost) > 0
    assert result.accounting.restarts == 1
    assert [told["config"].bundle for told in sessions] == [True, False]
    assert [told["stages"][0].engine_options for told in sessions] == [{}, {"slots_per_actor": 1}]
    assert max(sizes.seen[0]) > 1
    assert sizes.seen[1] == {1}


@pytest.mark.everything
def test_a_crash_that_ends_the_run_names_its_task(executor):
    tasks = [Task(data=number) for number in range(8)]
    with pytest.raises(ProcessDiedError, match="was killed by SIGSEGV") as raised:
        Pipeline("poisoned", [Poisoned().with_(batch_size=1)]).run(executor, tasks)
    assert raised.value.stage == "Poisoned"
    assert "on task '3'" in str(raised.value)
