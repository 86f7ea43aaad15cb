# SPDX-License-Identifier: Apache-2.0
"""The speeds of stages, read from a trace file."""

from __future__ import annotations

import json

import pytest

from curator_core import DataError, LocalExecutor, Pipeline, ProcessingStage, StageSpeed, Task
from curator_otel import read_speeds


class Twice(ProcessingStage):
    def process(self, task):
        return [Task(data=task.data), Task(data=-task.data)] if task.data else None


def run(observer, workers=1):
    tasks = [Task(data=number) for number in range(20)]
    pipeline = Pipeline("p", [Twice(), Twice().with_(name="again", batch_size=4)])
    return pipeline.run(LocalExecutor(workers), tasks, observers=[observer])


@pytest.mark.parametrize("workers", [1, 2])
def test_they_are_those_of_the_result(traced, workers):
    results = []
    path = traced(lambda observer: results.append(run(observer, workers=workers)))
    speeds = read_speeds(path)
    assert list(speeds) == ["Twice", "again"]
    assert speeds["Twice"].outputs == 38 / 20
    for name, speed in results[0].speeds.items():
        assert speeds[name] == pytest.approx(speed, rel=1e-6)


def test_the_last_run_counts_unless_another_one_is_named(traced, script):
    results = []

    def runs(observer):
        results.append(run(observer))
        script.play(observer, script.batch(0, 0, took=2), script.batch(1, 0, took=3, kinds=("filtered",)))

    path = traced(runs)
    assert read_speeds(path) == {"read": StageSpeed(2.0, 0.0, 1.0), "write": StageSpeed(3.0, 0.0, 0.0)}
    assert list(read_speeds(str(path), run_id=results[0].run_id)) == ["Twice", "again"]


def test_a_stage_without_inputs_has_no_speed(traced, script):
    path = traced(lambda observer: script.play(observer, script.batch(0, 0, took=2)))
    assert list(read_speeds(path)) == ["read"]


def test_a_run_that_is_not_there_is_an_error_that_names_the_others(traced, script):
    path = traced(lambda observer: script.play(observer, script.batch()))
    with pytest.raises(DataError, match="does not contain the run") as caught:
        read_speeds(path, run_id="f" * 32)
    assert script.info.run_id in str(caught.value)
    assert "f" * 32 in caught.value.given


@pytest.mark.parametrize("text", ["", "rubbish", json.dumps({"resourceSpans": []})])
def test_a_file_without_runs_is_an_error(tmp_path, text):
    path = tmp_path / "trace.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError):
        read_speeds(path)
