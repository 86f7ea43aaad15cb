# SPDX-License-Identifier: Apache-2.0
"""Random pipelines against a simple recursive model."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tests.pipelines import DROP, FAIL, KEEP, RENEW, Scripted, kept, pipelines

from curator_core import Pipeline, ProcessingStage, Task
from curator_core.testing import Recorder

a_pipeline = pipelines(max_attempts=st.integers(1, 2), retry_delay_s=st.just(0.0))
numbers = st.lists(st.integers(0, 20), max_size=12)


def model(stages: list[Scripted], inputs: list[tuple[str, int]]) -> tuple[list[tuple[str, int]], list[dict[str, int]]]:
    """Return the ids and data of the outputs, and the counts of each stage."""
    accounts = []
    for stage in stages:
        outputs: list[tuple[str, int]] = []
        counts = dict.fromkeys(("in", "passed", "filtered", "failed", "out"), 0)
        for task_id, data in inputs:
            what = stage.action(data)
            counts["in"] += 1
            if what == FAIL:
                counts["failed"] += 1
                continue
            if what in (KEEP, RENEW):
                made = [(task_id, data + (what == RENEW))]
            else:
                made = [(f"{task_id}.{n}", data + n) for n in range(0 if what == DROP else what)]
            counts["passed" if made else "filtered"] += 1
            counts["out"] += len(made)
            outputs += made
        accounts.append(counts)
        inputs = outputs
    return inputs, accounts


def run(stages: list[Scripted], data: list[int]) -> tuple[Any, Recorder, list[Task]]:
    recorder = Recorder()
    tasks = [Task(data=one) for one in data]
    for number, task in enumerate(tasks):
        task.metadata["origin"] = number
    result = Pipeline("p", stages).run(
        initial_tasks=tasks, observers=[recorder], on_error="skip", max_failures=math.inf
    )
    return result, recorder, tasks


@given(a_pipeline, numbers)
def test_ids_data_and_counts_are_those_of_the_model(stages, data):
    outputs, accounts = model(stages, [(str(n), one) for n, one in enumerate(data)])
    result, recorder, tasks = run(stages, data)

    assert [(task.task_id, task.data) for task in result] == outputs
    assert [
        {
            "in": stage.tasks_in,
            "passed": stage.tasks_passed,
            "filtered": stage.tasks_filtered,
            "failed": stage.tasks_failed,
            "out": stage.tasks_out,
        }
        for stage in result.stages
    ] == accounts
    assert result.lost == ()
    assert len({task.task_id for task in result}) == len(result)

    for task in result:
        assert task.metadata["origin"] == int(task.task_id.split(".")[0])
        assert [stats.stage_name for stats in task.stage_perf] == [stage.name for stage in stages]
    assert [(task.data, task.task_id) for task in tasks] == [(one, "") for one in data]

    for report in recorder.batches:
        assert len(report.inputs) <= stages[report.stage_index].batch_size
        assert (report.error is None) == all(o.kind in ("out", "filtered") for o in report.inputs)
    final = [report.batch_id for report in kept(recorder.batches) if not report.is_retried]
    assert len(final) == len(set(final))


@given(a_pipeline, numbers, st.lists(st.integers(1, 7), min_size=5, max_size=5))
def test_batch_sizes_affect_only_the_batches(stages, data, sizes):
    resized = [stage.with_(batch_size=size) for stage, size in zip(stages, sizes, strict=False)]
    first, _, _ = run(stages, data)
    second, _, _ = run(resized, data)
    assert [(task.task_id, task.data) for task in first] == [(task.task_id, task.data) for task in second]


@given(a_pipeline, numbers)
def test_two_runs_have_the_same_batches(stages, data):
    ids = []
    for _ in range(2):
        _, recorder, _ = run(stages, data)
        ids.append([(report.batch_id, report.attempt, report.inputs) for report in recorder.batches])
    assert ids[0] == ids[1]


@given(a_pipeline, st.integers(0, 12))
def test_a_source_gives_the_same_results_as_initial_tasks(stages, count):
    class Source(ProcessingStage):
        def process(self, task):
            for number in range(count):
                new = Task(data=number)
                new.metadata["origin"] = number
                yield new

    fed, _, _ = run(stages, list(range(count)))
    sourced = Pipeline("p", [Source(), *stages]).run(on_error="skip", max_failures=math.inf)
    assert [(t.task_id, t.data, t.metadata) for t in sourced] == [(t.task_id, t.data, t.metadata) for t in fed]
    assert sourced.lost == ()
