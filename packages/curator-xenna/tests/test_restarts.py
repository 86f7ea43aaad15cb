# SPDX-License-Identifier: Apache-2.0
"""Runs whose workers die: all work is completed and counted once."""

from __future__ import annotations

import logging
import os
import re
import signal
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from curator_core import DeadLetter, Pipeline, ProcessingStage, Resources, Task, deadletter
from curator_core.testing import Recorder
from curator_xenna.compat import HAS_DESTROY

if TYPE_CHECKING:
    from curator_xenna import XennaExecutor

COUNT = 40
DIES_AT = (7, 23)
FAILS_AT = (3, 30)


class Light(ProcessingStage[Task[int], Task[int]]):
    resources = Resources(cpus=0.3)

    def num_workers(self) -> int:
        return 1


class Twins(Light):
    """Fans each task out to two, and drops every tenth."""

    def process(self, task: Task[int]) -> list[Task[int]] | None:
        return [Task(data=task.data), Task(data=-task.data)] if task.data % 10 else None


class Mortal(Light):
    """Kills its worker once on each of some tasks, and always raises on some others.

    Args:
        marks: Directory in which it records the tasks that have killed it.
    """

    def __init__(self, marks: Path) -> None:
        self.marks = marks

    def process(self, task: Task[int]) -> Task[int]:
        mark = self.marks / str(task.data)
        if task.data in DIES_AT and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if task.data in FAILS_AT:
            raise ValueError(f"cannot work on {task.data}")
        return Task(data=task.data)


@pytest.fixture(scope="module")
def dead(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dead")


@pytest.fixture(scope="module")
def seen() -> Recorder:
    return Recorder()


@pytest.fixture(scope="module")
def notices() -> list[str]:
    """The log messages about workers that died."""
    return []


@pytest.fixture(scope="module")
def survived(
    executor: XennaExecutor, dead: Path, seen: Recorder, notices: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """A run whose workers died twice."""
    marks = tmp_path_factory.mktemp("marks")
    tasks = [Task(data=number) for number in range(COUNT)]
    pipeline = Pipeline("mortal", [Twins(), Mortal(marks)])
    handler = logging.Handler()
    handler.emit = lambda record: notices.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("curator_xenna._session.deaths").addHandler(handler)
    return pipeline.run(executor, tasks, observers=[seen], on_error=DeadLetter(dead))


def expected() -> list[int]:
    data = [sign * number for number in range(COUNT) if number % 10 for sign in (1, -1)]
    return sorted(number for number in data if number not in FAILS_AT)


def test_every_task_comes_out_once(survived):
    assert sorted(task.data for task in survived) == expected()
    assert Counter(task.task_id for task in survived).most_common(1)[0][1] == 1


def test_the_counts_are_those_of_an_undisturbed_run(survived):
    made = 2 * (COUNT - COUNT // 10)
    fails = sum(number % 10 > 0 for number in FAILS_AT)
    first, second = survived.stages
    assert (first.tasks_in, first.tasks_filtered, first.tasks_out) == (COUNT, COUNT // 10, made)
    assert (second.tasks_in, second.tasks_failed, second.tasks_out) == (made, fails, made - fails)
    assert survived.complete
    assert list(survived.lost) == []
    assert survived.accounting.unfinished == ()


def test_a_dead_worker_is_one_line_in_the_log(survived, notices):
    how = "died: it was killed, possibly by the out-of-memory killer, or crashed in native code; its tasks are retried"
    assert 1 <= len(notices) <= len(DIES_AT)
    for notice in notices:
        assert re.fullmatch(rf"stage 'Mortal': worker .*Mortal.* \(process \d+\) {how}", notice)


def test_failed_tasks_are_stored_once(survived, dead):
    ids = [letter.task_id for letter in deadletter.read(dead)]
    assert ids == list(survived.accounting.failed["Mortal"])
    assert ids == ["3.0"]


def test_restarts_are_reported(survived, seen):
    restarts = survived.accounting.restarts
    # Before 0.4, Xenna does not replace dead workers; after the first death only the stage's own process dies.
    assert restarts == (0 if HAS_DESTROY else 1)
    epochs = {report.epoch for report in seen.batches}
    assert epochs <= set(range(restarts + 1))
    assert restarts in epochs


class Spread(Light):
    """Does nothing, in its own worker."""

    fusible = False

    def process(self, task: Task[int]) -> Task[int]:
        return Task(data=task.data)


class DiesAfterItsReport(Light):
    """Fans each task out to two; its worker dies once, after its report was received and before Xenna has its outputs.

    Args:
        mark: A file that records that it has died, with the process id of the worker.
    """

    fusible = False

    def __init__(self, mark: Path) -> None:
        self.mark = mark
        self.worked = False

    def setup(self, worker_metadata: Any) -> None:
        from curator_xenna._session.worker import WorkerLink

        send = WorkerLink.send

        def send_and_die(link: WorkerLink, outputs: list[Any] | None, *, is_primary: bool) -> float | None:
            pace = send(link, outputs, is_primary=is_primary)
            if self.worked and not self.mark.exists():
                self.mark.write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)
            return pace

        WorkerLink.send = send_and_die  # type: ignore[method-assign]  # only in this worker

    def process(self, task: Task[int]) -> list[Task[int]]:
        self.worked = True
        return [Task(data=task.data), Task(data=-task.data - 1)]


@pytest.mark.everything
def test_a_worker_that_dies_between_report_and_outputs_loses_nothing(executor: XennaExecutor, tmp_path: Path) -> None:
    mark, seen = tmp_path / "died", Recorder()
    stages = [Spread().with_(name="First"), DiesAfterItsReport(mark), Spread().with_(name="Last")]
    tasks = [Task(data=number) for number in range(COUNT)]
    result = Pipeline("reported", stages).run(executor, tasks, observers=[seen])
    assert sorted(task.data for task in result) == list(range(-COUNT, COUNT))
    assert [(stage.tasks_in, stage.tasks_out) for stage in result.stages] == [
        (COUNT, COUNT),
        (COUNT, 2 * COUNT),
        (2 * COUNT, 2 * COUNT),
    ]
    assert result.complete
    assert list(result.lost) == []
    assert result.accounting.unfinished == ()
    assert result.accounting.restarts == (0 if HAS_DESTROY else 1)
    # The reports of the dead worker were received, and its work was repeated.
    dead, middle = int(mark.read_text()), seen.of("DiesAfterItsReport")
    reported = {each.task_id for report in middle if report.pid == dead for each in report.inputs}
    again = {each.task_id for report in middle if report.pid != dead for each in report.inputs}
    assert reported
    assert reported <= again
