# SPDX-License-Identifier: Apache-2.0
"""What a run stores about its tasks, besides the accounts of its stages."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from curator_core import (
    Checkpoint,
    ConfigurationError,
    DataError,
    DeadLetter,
    DocumentBatch,
    EmptyTask,
    FileGroupTask,
    LocalExecutor,
    Pipeline,
    PipelineError,
    ProcessingStage,
    StageError,
    Task,
    deadletter,
    processing_stage,
)
from curator_core.io import JsonlWriter
from curator_core.testing import Recorder
from curator_core.testing.probe import Calling, fail_at

from ..helpers import tasks  # noqa: TID252 - no import can write this directory's name


@processing_stage()
def twice(task: Task[int]) -> list[Task[int]]:
    return [Task(data=task.data), Task(data=-task.data)]


def failing_at(*bad: Any) -> ProcessingStage[Any, Any]:
    return Calling(fail_at(*bad), name="Failing")


def journal(directory: Path) -> list[Any]:
    return [json.loads(line.split(" ", 1)[1]) for line in (directory / "finished.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("fed", [None, True])
def test_a_failed_task_is_not_recorded_for_either_value_of_fed(tmp_path, fed):
    plan = Pipeline("p", [twice, failing_at(-1)]).compile(fed=fed)
    with pytest.raises(StageError):
        LocalExecutor().execute(plan, tasks(1), checkpoint=tmp_path)
    assert journal(tmp_path) == []


def test_a_letter_is_written_before_the_failure_is_recorded(tmp_path):
    (tmp_path / "dead" / "Failing").mkdir(parents=True)
    (tmp_path / "dead" / "Failing").rmdir()
    (tmp_path / "dead" / "Failing").write_text("in the way")
    with pytest.raises(DataError):
        Pipeline("p", [failing_at(2)]).run(
            initial_tasks=tasks(1, 2, 3), on_error=DeadLetter(tmp_path / "dead"), checkpoint=tmp_path / "done"
        )
    assert not [record for record in journal(tmp_path / "done") if record.get("failed")]


def test_a_letter_names_the_same_worker_as_the_report(tmp_path):
    recorder = Recorder()
    result = Pipeline("p", [failing_at(2)]).run(
        initial_tasks=tasks(1, 2, 3), on_error=DeadLetter(tmp_path), observers=[recorder]
    )
    (letter,) = deadletter.read(tmp_path)
    (report,) = [each for each in recorder.batches if each.error is not None]
    assert (letter.worker_id, letter.node_id, letter.pid) == (report.worker_id, report.node_id, report.pid)
    assert letter.worker_id
    assert letter.node_id
    assert letter.pid == os.getpid()
    assert letter.run_id == report.run_id == result.run_id
    assert letter.pipeline == "p"
    assert letter.failed_at == report.end_unix_ns / 1e9
    assert letter.trace_id == result.trace_id == ""  # no trace was written


def test_finished_tasks_are_on_disk_during_the_run(tmp_path):
    seen: list[int] = []

    def look(task: Task[int]) -> Task[int]:
        seen.append(len(journal(tmp_path)))
        return task

    Pipeline("p", [Calling(look)]).run(initial_tasks=tasks(1, 2, 3), checkpoint=tmp_path)
    assert seen == [0, 1, 2]


def test_later_errors_do_not_hide_the_reason_for_the_end(tmp_path):
    def interrupt(task: Task[int]) -> Task[int]:
        if task.data == 2:
            raise KeyboardInterrupt
        raise ValueError("no")

    (tmp_path / "dead").mkdir()
    (tmp_path / "dead" / "Calling").write_text("in the way")
    with pytest.raises(KeyboardInterrupt) as caught:
        Pipeline("p", [Calling(interrupt)]).run(initial_tasks=tasks(1, 2), on_error=DeadLetter(tmp_path / "dead"))
    assert "and a dead letter could not be written: " in caught.value.__notes__[-1]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("full", ["checkpoint", "dead letters", "files of several tasks"])
def test_a_full_disk_for_checkpoint_or_letters_ends_the_run_with_its_result(tmp_path, room_for, workers, full):
    @processing_stage()
    def odd(task: DocumentBatch) -> DocumentBatch:
        if task.data[0]["n"] % 2:
            raise ValueError("odd" * 1000)
        return task

    options: dict[str, Any] = {
        "checkpoint": {"checkpoint": tmp_path / "full", "on_error": "skip"},
        "dead letters": {"on_error": DeadLetter(tmp_path / "full")},
        "files of several tasks": {"checkpoint": tmp_path / "full", "on_error": "skip"},
    }[full]
    stages = [odd, JsonlWriter(tmp_path / "out", target_size=1)] if "several" in full else [odd]
    recorder = Recorder()
    with room_for(2500), pytest.raises(DataError, match="EFBIG") as caught:
        Pipeline("p", stages).run(
            executor=LocalExecutor(workers=workers),
            initial_tasks=[DocumentBatch([{"n": number}]) for number in range(200)],
            observers=[recorder],
            **options,
        )
    result = caught.value.result
    assert result is not None
    assert (result.state, result.complete) == ("failed", False)
    assert result.stages[0].tasks_in > 0
    assert caught.value.field is not None
    assert caught.value.field.startswith(str(tmp_path / "full"))
    assert recorder.ends == [(caught.value.result, caught.value)]


def test_a_checkpoint_that_cannot_be_closed_ends_the_run_as_other_failures_do(tmp_path):
    def spoil(task: Task[int]) -> Task[int]:
        (tmp_path / "lock").unlink()
        (tmp_path / "lock").mkdir()
        return task

    recorder = Recorder()
    with pytest.raises(DataError, match="not a regular file") as caught:
        Pipeline("p", [Calling(spoil)]).run(initial_tasks=tasks(1), checkpoint=tmp_path, observers=[recorder])
    assert caught.value.result is not None
    assert [task.data for task in caught.value.result] == [1]
    assert recorder.ends == [(caught.value.result, caught.value)]
    assert len(journal(tmp_path)) == 1


def test_initial_tasks_with_the_same_id_are_rejected(tmp_path):
    Pipeline("p", [failing_at(1)]).run(initial_tasks=tasks(1), on_error=DeadLetter(tmp_path))
    (task,) = deadletter.load(tmp_path)
    with pytest.raises(ConfigurationError, match="the same id") as caught:
        Pipeline("p", [failing_at()]).run(initial_tasks=[task, task], start_at="Failing")
    assert caught.value.given == "'0'"


def test_a_pipeline_that_is_only_a_source_leaves_nothing_unfinished():
    class Numbers(ProcessingStage[EmptyTask, Task[int]]):
        def process(self, task: EmptyTask) -> list[Task[int]]:
            return tasks(1, 2, 3)

    result = Pipeline("p", [Numbers()]).run()
    assert len(result) == 3
    assert result.accounting.unfinished == ()


def test_a_file_group_can_contain_path_objects(tmp_path):
    def write(task: Task[str]) -> FileGroupTask:
        return FileGroupTask([tmp_path / task.data])  # type: ignore[list-item]  # as users do

    for _ in range(2):
        result = Pipeline("p", [Calling(write)]).run(initial_tasks=tasks("a"), checkpoint=tmp_path / "done")
    assert [task.data for task in result] == [[str(tmp_path / "a")]]


def test_start_at_needs_an_existing_stage_and_initial_tasks():
    with pytest.raises(PipelineError, match="unknown stage 'Faling'") as caught:
        Pipeline("p", [failing_at()]).run(initial_tasks=tasks(1), start_at="Faling")
    assert "Failing" in caught.value.hint
    with pytest.raises(PipelineError, match="start_at requires initial tasks"):
        Pipeline("p", [failing_at()]).run(start_at="Failing")


def test_start_at_runs_only_later_stages():
    result = Pipeline("p", [twice, failing_at()]).run(initial_tasks=tasks(1), start_at="Failing")
    assert [stage.name for stage in result.stages] == ["Failing"]


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"on_error": "ignore"}, "on_error"),
        ({"on_error": "skip", "max_failures": -1}, "max_failures"),
        ({"on_error": "skip", "max_failures": 1.0}, "max_failures"),
        ({"on_error": "skip", "max_failures": True}, "max_failures"),
        ({"max_failures": 3}, "max_failures"),
        ({"collect": "yes"}, "collect"),
        ({"checkpoint": "s3://bucket/done"}, "path"),
        ({"checkpoint": 3}, "path"),
    ],
)
def test_invalid_settings_are_rejected(settings, field):
    with pytest.raises(ConfigurationError) as caught:
        Pipeline("p", [failing_at()]).run(initial_tasks=tasks(1), **settings)
    assert caught.value.field == field
    assert caught.value.expected
    assert caught.value.hint


def test_a_share_of_failures_ends_a_run_after_enough_tasks():
    from curator_core import FailureLimitError

    data = tasks(*range(300))
    bad = failing_at(*range(0, 300, 10))
    assert len(Pipeline("p", [bad]).run(initial_tasks=data, on_error="skip", max_failures=0.2)) == 270
    with pytest.raises(FailureLimitError) as caught:
        Pipeline("p", [bad]).run(initial_tasks=data, on_error="skip", max_failures=0.05)
    assert caught.value.result.stages[0].tasks_in == 101


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stage_that_fails_on_all_of_its_first_tasks_ends_the_run(workers):
    from curator_core import FailureLimitError, LocalExecutor

    data, executor = tasks(*range(120)), LocalExecutor(workers=workers)
    with pytest.raises(FailureLimitError, match="too many failures; the last one: ValueError") as caught:
        Pipeline("p", [failing_at(*range(120))]).run(executor, data, on_error="skip")
    assert not caught.value.result.complete
    assert caught.value.result.stages[0].tasks_in >= 100
    most = [number for number in range(120) if number % 10]
    assert Pipeline("p", [failing_at(*most)]).run(executor, data, on_error="skip").complete
    every = Pipeline("p", [failing_at(*range(120))]).run(executor, data, on_error="skip", max_failures=math.inf)
    assert every.complete
    assert Pipeline("p", [failing_at(*range(99))]).run(executor, data[:99], on_error="skip").complete


def test_failures_of_the_last_stage_are_run_again_on_request(tmp_path):
    for _ in range(2):
        Pipeline("p", [failing_at(2)]).run(initial_tasks=tasks(1, 2), on_error="skip", checkpoint=tmp_path)
    assert [record["id"] for record in journal(tmp_path) if record.get("failed")] == [journal(tmp_path)[1]["id"]]
    changed = Checkpoint(tmp_path, retry_failed=True, accept_changes=True)
    result = Pipeline("p", [failing_at()]).run(initial_tasks=tasks(1, 2), checkpoint=changed)
    assert (len(result.accounting.resumed), result.stages[0].tasks_in) == (1, 1)
    assert "skipped: 1 source task that earlier runs finished" in result.summary()
