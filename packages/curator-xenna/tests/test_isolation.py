# SPDX-License-Identifier: Apache-2.0
"""Tasks that kill their worker: only these are lost, and they cost few workers."""

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
    WorkerDiedError,
    deadletter,
)

if TYPE_CHECKING:
    from curator_core import BatchReport
    from curator_xenna import XennaExecutor

POISON = 1

# The processes of isolated stages import this module as well. Ray and Xenna take seconds to load, so the tests import
# them.


def tasks(count: int) -> list[Task[int]]:
    return [Task(data=number) for number in range(count)]


class Pairs(ProcessingStage[Task[int], Task[int]]):
    """Fans each task out to two."""

    resources = Resources(cpus=0.3)

    def num_workers(self) -> int:
        return 1

    def process(self, task: Task[int]) -> list[Task[int]]:
        return [Task(data=task.data), Task(data=-task.data - 1)]


class Poisoned(ProcessingStage[Task[int], Task[int]]):
    """Crashes on one of the tasks, in batches."""

    resources = Resources(cpus=0.3)
    batch_size = 2

    def num_workers(self) -> int:
        return 1

    def process_batch(self, tasks: list[Task[int]]) -> list[Task[int]]:
        if any(task.data == POISON for task in tasks):
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
    """The options of each session, with one restart, and the error that ended it."""
    from curator_xenna._session import session

    told: list[dict[str, Any]] = []

    class Session(session.Session):
        def __init__(self, *args: Any, **options: Any) -> None:
            told.append(options)
            super().__init__(*args, **options)

        def run(self) -> None:
            try:
                super().run()
            except WorkerDiedError as error:
                told[-1]["error"] = error
                raise

    monkeypatch.setattr(session, "Session", Session)
    monkeypatch.setattr(executor, "config", replace(executor.config, max_restarts=1))
    return told


@pytest.fixture
def nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions end without any report and without Ray, as if every worker died immediately."""
    from curator_xenna._session import session

    monkeypatch.setattr(session.Session, "run", lambda self: None)


@pytest.mark.usefixtures("nothing_is_done")
def test_the_last_session_gives_stages_that_kill_their_worker_one_task_at_a_time(executor, sessions):
    result = Pipeline("lost", [Pairs(), Refuses(), Poisoned()]).run(executor, tasks(4), on_error="skip")
    assert result.accounting.restarts == 1
    assert len(result.lost) > 0
    assert [told["config"].bundle for told in sessions] == [True, False]
    alone = [(compiled.batch_size, dict(compiled.engine_options)) for compiled in sessions[1]["stages"]]
    # An isolated stage, as stages are after a death, keeps its batch size.
    assert alone == [(1, {}), (1, {"slots_per_actor": 1}), (2, {})]


def test_only_the_task_that_kills_its_worker_is_set_aside(executor, tmp_path, sessions):
    result = Pipeline("poisoned", [Pairs(), Poisoned()]).run(executor, tasks(4), on_error=DeadLetter(tmp_path))
    assert sorted(task.data for task in result) == [number for number in range(-4, 4) if number != POISON]
    (letter,) = deadletter.read(tmp_path)
    assert letter.error_type == "curator_core.errors.ProcessDiedError"
    assert [letter.task_id] == [*result.accounting.failed["Poisoned"]] == ["1.0"]
    assert result.complete
    assert (result.stages[1].tasks_in, result.stages[1].tasks_out) == (8, 7)
    # After the last restart, tasks travel one by one.
    assert result.accounting.restarts == 1
    assert [told["config"].bundle for told in sessions] == [True, False]
    assert sessions[0]["stages"] == sessions[1]["stages"]  # an isolated stage keeps its batch size
    assert sessions[0]["error"].stage == "Poisoned"  # the run would end with it if there were no restarts left


@pytest.mark.everything
def test_a_task_that_always_kills_its_worker_fails_alone(executor, sessions):
    from curator_xenna.compat import HAS_DESTROY

    if not HAS_DESTROY:
        pytest.skip("before 0.4 the death of a worker ends Xenna's run")
    sizes = BatchSizes()
    result = Pipeline("refuses", [Refuses()]).run(executor, tasks(8), observers=[sizes], on_error="skip")
    assert sorted(task.data for task in result) == [number for number in range(8) if number != POISON]
    assert result.accounting.unfinished == (str(POISON),)
    assert len(result.lost) > 0
    assert result.accounting.restarts == 1
    assert [told["config"].bundle for told in sessions] == [True, False]
    assert [told["stages"][0].engine_options for told in sessions] == [{}, {"slots_per_actor": 1}]
    assert max(sizes.seen[0]) > 1
    assert sizes.seen[1] == {1}


@pytest.mark.everything
def test_a_crash_that_ends_the_run_names_its_task(executor):
    with pytest.raises(ProcessDiedError, match="was killed by SIGSEGV") as raised:
        Pipeline("poisoned", [Poisoned().with_(batch_size=1)]).run(executor, tasks(8))
    assert raised.value.stage == "Poisoned"
    assert f"on task '{POISON}'" in str(raised.value)
