# SPDX-License-Identifier: Apache-2.0
"""Failures in a process: they are raised here, and every process is torn down."""

from __future__ import annotations

import sys
from collections import Counter

import pytest

from curator_core import DataError, Pipeline, ProcessingStage, StageError, Task
from curator_core.testing import Journal, Recorder

from ..helpers import tasks  # noqa: TID252 - no import can write this directory's name
from .stages import TWO, living, meeting, stage  # noqa: TID252 - no import can write this directory's name


def test_a_failure_keeps_finished_outputs_and_tears_down_every_process(tmp_path):
    journal = Journal(tmp_path)
    where = meeting(tmp_path)

    class PickyError(Exception):
        pass

    def users_function(task):
        if task.data[0] == 7:
            raise PickyError("seven")
        return task

    work = living(journal, "work", users_function)
    with pytest.raises(StageError, match="raised PickyError on task '7': seven") as raised:
        Pipeline("p", [where, work]).run(TWO, tasks(*range(8)))
    cause = raised.value.__cause__
    assert type(cause) is PickyError
    text = str(cause.__cause__)
    assert "in users_function" in text
    assert "curator_core/_adapter/attempt.py" not in text
    lives = Counter(event.event for event in journal.read())
    assert lives == {"setup": 2, "teardown": 2}
    result = raised.value.result
    assert [task.data[0] for task in result] == list(range(7))
    assert not result.complete


def test_failures_are_skipped_on_processes():
    work = stage(lambda task: Task(data=1 / task.data), batch_size=2)
    result = Pipeline("p", [work]).run(TWO, tasks(1, 0, 2, 0), on_error="skip")
    assert [(task.task_id, task.data) for task in result] == [("0", 1.0), ("2", 0.5)]
    assert result.stages[0].tasks_failed == 2
    assert result.lost == ()


@pytest.mark.parametrize("where", ["node", "setup"])
def test_a_failing_setup_tears_down_the_stages_that_were_set_up(tmp_path, where):
    journal = Journal(tmp_path)

    class Bad(ProcessingStage):
        def setup_on_node(self, node_info, worker_metadata):
            if where == "node":
                raise ValueError(f"no room on {node_info.node_id}")

        def setup(self, worker_metadata):
            raise ValueError("no room")

        def process(self, task):
            return task

    recorder = Recorder()
    with pytest.raises(StageError, match="raised ValueError in setup: no room") as raised:
        Pipeline("p", [living(journal, "good"), Bad()]).run(TWO, tasks(1), observers=[recorder])
    assert raised.value.stage == "Bad"
    assert "setup_failed" in [report.event for report in recorder.workers]
    lives = Counter(event.event for event in journal.read())
    assert lives == ({} if where == "node" else {"setup": 1, "teardown": 1})


def test_a_failing_teardown_is_logged_and_does_not_fail_the_run(tmp_path, caplog):
    journal = Journal(tmp_path)
    stages = [living(journal, "good"), living(journal, "bad", fails_in="teardown")]
    assert Pipeline("p", stages).run(TWO, tasks(1)).complete
    assert "stage 'bad' raised in teardown" in caplog.text
    assert [event.stage for event in journal.read() if event.event == "teardown"] == ["bad", "good"]


@pytest.mark.parametrize("isolated", [None, True])
def test_keyboard_interrupt_raised_by_a_stage_is_not_ctrl_c(isolated):
    def work(task):
        if task.data == 3:
            raise KeyboardInterrupt
        return task

    result = Pipeline("p", [stage(work, isolated=isolated)]).run(TWO, tasks(*range(4)), on_error="skip")
    assert [task.data for task in result] == [0, 1, 2]
    assert result.stages[0].first_error == "KeyboardInterrupt: "


class Explosive:
    """Ends the process that unpickles it, in a given way."""

    def __init__(self, way):
        self.way = way

    def __reduce__(self):
        return self.way, (5,)


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_task_whose_unpickling_raises_a_base_exception_ends_the_run(on_error):
    with pytest.raises(DataError, match="a task cannot be read by worker local-0: SystemExit: 5"):
        Pipeline("p", [stage(lambda task: task)]).run(TWO, tasks(Explosive(sys.exit)), on_error=on_error)
