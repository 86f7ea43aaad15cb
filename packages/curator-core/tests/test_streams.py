# SPDX-License-Identifier: Apache-2.0
"""Generators of stages within a pipeline: their outputs go on as they are made."""

from __future__ import annotations

import pytest

from curator_core import Pipeline, ProcessingStage, StageError, Task
from curator_core.testing import Recorder

from .helpers import tasks  # noqa: TID252 - no import can write this directory's name


class Count(ProcessingStage):
    """Makes numbers, and writes down that it has."""

    def __init__(self, seen, fails_at=None):
        self.seen = seen
        self.fails_at = fails_at

    def __deepcopy__(self, memo):
        return self  # so that the list is the test's

    def process(self, task):
        try:
            for number in range(task.data):
                if number == self.fails_at:
                    raise ValueError("no more")
                self.seen.append(f"make {number}")
                self.metrics.add("made", 1)
                yield Task(data=number)
        finally:
            self.seen.append("closed")


class Take(ProcessingStage):
    def __init__(self, seen, fails_at=None):
        self.seen = seen
        self.fails_at = fails_at

    def __deepcopy__(self, memo):
        return self

    def process(self, task):
        self.seen.append(f"take {task.data}")
        if task.data == self.fails_at:
            raise ValueError("too much")
        return task


def run(*stages, data=(3,), **settings):
    recorder = Recorder()
    return Pipeline("p", stages).run(initial_tasks=tasks(*data), observers=[recorder], **settings), recorder


def test_outputs_go_on_as_they_are_made():
    seen = []
    result, recorder = run(Count(seen), Take(seen), data=(2, 0))
    assert seen == ["make 0", "take 0", "make 1", "take 1", "closed", "closed"]
    assert [task.task_id for task in result] == ["0.0", "0.1"]
    first, second = recorder.of("Count")
    assert [tuple(outcome) for outcome in (*first.inputs, *second.inputs)] == [("0", "out", 2), ("1", "filtered", 0)]
    assert first.metrics == {"made": 2}
    assert result[1].stage_perf[0].custom_metrics == {"made": 2}
    assert result.lost == ()


@pytest.mark.parametrize("settings", [{"on_error": "skip"}, {"checkpoint": "done"}])
def test_where_a_failure_takes_all_outputs_along_it_is_read_to_its_end_first(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []
    stages = [Take(seen), Count(seen)] if "checkpoint" in settings else [Count(seen, fails_at=2), Take(seen)]
    result, _ = run(*stages, **settings)
    if "checkpoint" in settings:
        assert seen == ["take 3", "make 0", "make 1", "make 2", "closed"]
    else:
        assert seen == ["make 0", "make 1", "closed"]
        assert (result.stages[0].tasks_failed, result.stages[1].tasks_in) == (1, 0)


def test_a_generator_that_fails_half_way_ends_the_run_and_what_it_made_counts():
    seen = []
    with pytest.raises(StageError, match="raised ValueError on task '0': no more") as raised:
        run(Count(seen, fails_at=2), Take(seen))
    assert seen == ["make 0", "take 0", "make 1", "take 1", "closed"]
    first, second = raised.value.result.stages
    assert (first.tasks_failed, first.tasks_out, second.tasks_in) == (1, 2, 2)
    assert [task.data for task in raised.value.result] == [0, 1]


def test_it_is_closed_when_a_later_stage_fails():
    seen = []
    with pytest.raises(StageError, match="too much"):
        run(Count(seen), Take(seen, fails_at=1))
    assert seen == ["make 0", "take 0", "make 1", "take 1", "closed"]


def test_time_that_is_spent_on_its_outputs_is_not_its_own():
    class Slow(ProcessingStage):
        def process(self, task):
            until = task.data + sum(range(200_000))
            return Task(data=until)

    _, recorder = run(Count([]), Slow(), data=(20,))
    (counted,) = recorder.of("Count")
    assert counted.duration_ns < sum(report.duration_ns for report in recorder.of("Slow"))
    assert all(report.idle_ns < report.duration_ns for report in recorder.of("Slow")[1:])
