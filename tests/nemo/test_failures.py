# SPDX-License-Identifier: Apache-2.0
"""Failures in NeMo Curator's stages: skipped, kept, retried, isolated, and given up on with a FailedTask."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from nemo_curator.backends.failed_task_markers import failed_task_manifest_exists
from nemo_curator.pipeline import Pipeline
from nemo_curator.stages.base import ProcessingStage
from nemo_curator.tasks.sentinels import FailedTask
from tests.nemo.library import (
    Add,
    BatchRaises,
    GivesUp,
    Numbers,
    Pack,
    Raises,
    Source,
    data_of,
    ids_of,
    numbers,
    reference,
)

import curator_core
from curator_core import ContractError, DeadLetter, LocalExecutor, StageError, deadletter
from curator_core.testing import Recorder


def test_failure_ends_a_run(executor):
    with pytest.raises(StageError, match=r"raised ValueError on task '.*': no 4") as caught:
        Pipeline("it", stages=[Source(6), Raises()]).run(executor)
    assert caught.value.stage == "raises"
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("stage", [Raises, BatchRaises])
def test_failures_are_skipped(executor, stage):
    result = Pipeline("it", stages=[Source(20), stage(), Add()]).run(executor.with_(on_error="skip"))
    assert data_of(result) == sorted(([n + 1] for n in range(20) if n % 5 != 4), key=repr)
    assert (result.stages[1].tasks_failed, result.stages[1].tasks_passed) == (4, 16)


def test_stage_that_ignores_failures_does_not_end_the_run(executor):
    ignoring = Raises().with_(xenna_stage_spec={"ignore_failures": True})
    result = Pipeline("it", stages=[Source(10), ignoring, Add()]).run(executor)
    assert data_of(result) == sorted(([n + 1] for n in range(10) if n % 5 != 4), key=repr)
    assert result.stages[1].tasks_failed == 2
    with pytest.raises(StageError, match="stage 'after'"):
        Pipeline("it", stages=[Source(10), ignoring, Breaks().with_(name="after")]).run(executor)


class Breaks(ProcessingStage[Numbers, Numbers]):
    name = "breaks"

    def process(self, task: Numbers) -> Numbers:
        raise RuntimeError("broken")


class Flaky(ProcessingStage[Numbers, Numbers]):
    """Raises at its first attempt at each task."""

    name = "flaky"

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def process(self, task: Numbers) -> Numbers:
        (n,) = task.data
        task.data.append(-1)
        if n not in self.seen:
            self.seen.add(n)
            raise ConnectionError("again")
        return task


def test_retries_get_the_task_as_it_first_came(executor):
    retrying = Flaky().with_(xenna_stage_spec={"num_run_attempts_python": 2})
    result = Pipeline("it", stages=[Source(4), retrying]).run(executor)
    assert data_of(result) == [[n, -1] for n in range(4)]
    assert result.stages[1].attempts_retried == 4


def test_dead_letters_are_loaded_and_run_from_their_stage(tmp_path):
    stages = [Source(10), Add(0), Raises(), Add(100).with_(name="end")]
    result = Pipeline("it", stages=stages).run(LocalExecutor().with_(on_error=DeadLetter(tmp_path)))
    assert result.stages[2].tasks_failed == 2
    letters = deadletter.load(tmp_path, stage="raises", trust=True)
    mended = [Source(10), Add(0), Add(0).with_(name="raises"), stages[3]]
    before = data_of(task.data for task in letters)
    again = curator_core.Pipeline("it", mended).run(initial_tasks=letters, start_at="raises")
    assert data_of(task.data for task in letters) == before
    assert data_of(again) == [[104], [109]]
    whole = reference([Source(10), Add(0), Add(0).with_(name="raises"), stages[3]])
    assert set(ids_of(again)) < set(ids_of(whole))
    assert ids_of([*result, *again]) == ids_of(whole)


class Killer(ProcessingStage[Numbers, Numbers]):
    """Kills its process on one of the tasks."""

    name = "killer"

    def process(self, task: Numbers) -> Numbers:
        if task.data == [3]:
            os.kill(os.getpid(), signal.SIGKILL)
        return task


def test_task_that_kills_its_process_is_isolated():
    result = Pipeline("it", stages=[Source(6), Killer(), Add()]).run(LocalExecutor(workers=2).with_(on_error="skip"))
    assert data_of(result) == [[n + 1] for n in range(6) if n != 3]
    assert result.accounting.failed.keys() == {"killer"}


# --- FailedTask ---------------------------------------------------------------------------------------------


def test_failed_task_is_counted_and_recorded_and_the_run_goes_on(executor, tmp_path, monkeypatch):
    monkeypatch.setenv("NEMO_CURATOR_FAILED_TASKS_DIR", str(tmp_path))
    seen = Recorder()
    result = Pipeline("it", stages=[Source(12), GivesUp(), Add()]).run(executor.with_(observers=[seen]))
    assert data_of(result) == sorted(([n + 1] for n in range(12) if n % 4 != 3), key=repr)
    assert (result.complete, result.stages[1].tasks_failed) == (True, 3)
    assert failed_task_manifest_exists()
    failed = [report.error for report in seen.batches if report.error is not None]
    assert len(failed) == 3
    assert "returned a FailedTask" in failed[0].message


class HalfFails(ProcessingStage[Numbers, Numbers]):
    """Makes one task of each, and gives up on another."""

    name = "half_fails"

    def process(self, task: Numbers) -> list[Any]:
        return [numbers(*task.data), FailedTask()]


def test_failed_task_beside_others_fails_its_input_and_keeps_the_others(executor):
    result = Pipeline("it", stages=[Source(3), HalfFails(), Add()]).run(executor)
    assert data_of(result) == [[1], [2], [3]]
    assert ids_of(result) == ids_of(reference([Source(3), HalfFails(), Add()]))
    assert (result.stages[1].tasks_failed, result.stages[1].tasks_out) == (3, 3)
    assert list(result.lost) == []


class PackFails(Pack):
    """Gives up on a part of each batch."""

    name = "pack_fails"

    def process_batch(self, tasks: list[Numbers]) -> list[Any]:
        return [*super().process_batch(tasks)[:1], FailedTask(), FailedTask()]


def test_failed_task_in_a_joint_batch_fails_all_of_it(tmp_path):
    """It is not known which of the inputs the stage gave up on."""
    result = Pipeline("it", stages=[Source(10), PackFails(), Add()]).run(LocalExecutor())
    stage = result.stages[1]
    assert (stage.tasks_failed, stage.tasks_merged, stage.tasks_out) == (10, 0, 2)
    assert list(result.lost) == []
    executor = LocalExecutor().with_(on_error=DeadLetter(tmp_path))
    Pipeline("it", stages=[Source(10), PackFails()]).run(executor)
    assert len(deadletter.load(tmp_path, stage="pack_fails", trust=True)) == 10


class MarksAtTheEnd(Pack):
    """Returns some inputs, and a marker for each other one, out of place."""

    name = "marks_at_the_end"

    def process_batch(self, tasks: list[Numbers]) -> list[Any]:
        good = [task for task in tasks if task.data[0] % 5]
        return [*good, *[FailedTask() for _ in range(len(tasks) - len(good))]]


def test_failed_task_out_of_place_fails_the_input_that_is_missing():
    result = Pipeline("it", stages=[Source(10), MarksAtTheEnd()]).run(LocalExecutor())
    stage = result.stages[1]
    assert (stage.tasks_passed, stage.tasks_filtered, stage.tasks_failed) == (8, 0, 2)


def test_stage_may_give_up_on_its_first_hundred_tasks():
    class Always(GivesUp):
        name = "always"

        def process(self, task: Numbers) -> Any:
            return FailedTask() if task.data[0] < 100 else task

    result = Pipeline("it", stages=[Source(102), Always()]).run(LocalExecutor())
    assert (len(result), result.stages[1].tasks_failed) == (2, 100)


def test_failed_task_of_a_source_is_an_error():
    class Bad(Source):
        name = "bad"

        def process(self, _: Any) -> list[Any]:
            return [numbers(1), FailedTask()]

    with pytest.raises(ContractError, match="the source returned a FailedTask"):
        Pipeline("it", stages=[Bad(), Add()]).run(LocalExecutor())
