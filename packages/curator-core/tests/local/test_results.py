# SPDX-License-Identifier: Apache-2.0
"""LocalExecutor on several processes has the same results as in this one, and reports which worker did what."""

from __future__ import annotations

import math
import os
import threading
import time
from collections import Counter
from typing import Any, NamedTuple

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tests.pipelines import pipelines

from curator_core import (
    EmptyTask,
    LocalExecutor,
    Pipeline,
    ProcessingStage,
    RunObserver,
    RunResult,
    StageError,
    Task,
    processing_stage,
)
from curator_core.testing import Journal, Recorder

from ..helpers import tasks  # noqa: TID252 - no import can write this directory's name
from .stages import TWO, living, meeting, numbers, stage  # noqa: TID252 - no import can write this directory's name

in_one_run = pytest.mark.xdist_group("one run on two processes")

# --- same results as with one worker ----------------------------------------------------------------------


def test_outputs_ids_and_counts_are_those_of_one_worker():
    stages = [
        numbers(50),
        stage(lambda task: [Task(data=(task.data, n)) for n in range(task.data % 4)], name="fan", fans_out=True),
        stage(lambda task: task if sum(task.data) % 3 else None, name="sieve", batch_size=4),
        stage(lambda task: Task(data=[task.data]), name="box", num_workers=1),
    ]
    recorder = Recorder()
    here = Pipeline("p", stages).run(LocalExecutor())
    there = Pipeline("p", stages).run(TWO, observers=[recorder])
    assert [(task.task_id, task.data) for task in there] == [(task.task_id, task.data) for task in here]
    assert [(s.tasks_in, s.tasks_out, s.tasks_filtered) for s in there.stages] == [
        (s.tasks_in, s.tasks_out, s.tasks_filtered) for s in here.stages
    ]
    assert {len(task.stage_perf) for task in there} == {4}
    assert {report.group for report in recorder.of("box")} == {3}
    assert {report.worker_id for report in recorder.batches} <= {"local", "local-0", "local-1"}
    assert {report.bundle_id.split("-")[0] for report in recorder.of("sieve")} == {"2"}


# An example takes a second, and is not worth shrinking.
@settings(max_examples=settings.default.max_examples // 5, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    pipelines(most=4, num_workers=st.sampled_from([None, 1]), fusible=st.sampled_from([None, False])),
    st.lists(st.integers(0, 20), min_size=1, max_size=30),
)
def test_random_pipelines_give_the_results_of_one_worker(stages, data):
    here, there = (
        Pipeline("p", stages).run(executor, tasks(*data), on_error="skip", max_failures=math.inf)
        for executor in (LocalExecutor(), TWO)
    )
    assert [(task.task_id, task.data) for task in there] == [(task.task_id, task.data) for task in here]
    counts = [[(s.tasks_in, s.tasks_out, s.tasks_filtered, s.tasks_failed) for s in r.stages] for r in (here, there)]
    assert counts[0] == counts[1]
    assert there.lost == ()


# --- workers ----------------------------------------------------------------------------------------------


class Watched(NamedTuple):
    """A run of two stages, the first in both processes and the second in one."""

    result: RunResult
    threads: set[int]  # that received reports


@pytest.fixture(scope="module")
def watched(tmp_path_factory) -> Watched:
    class Remember(ProcessingStage):
        def __init__(self):
            self.seen = []

        def num_workers(self):
            return 1

        def process(self, task):
            number, pid = task.data
            self.seen.append(number)
            return Task(data=(number, pid, list(self.seen), os.getpid()))

    class Watch(RunObserver):
        def on_batch(self, report):
            threads.add(threading.get_ident())

        def on_worker(self, report):
            threads.add(threading.get_ident())

    threads: set[int] = set()
    stages = [meeting(tmp_path_factory.mktemp("meeting")), Remember()]
    return Watched(Pipeline("p", stages).run(TWO, tasks(*range(20)), observers=[Watch()]), threads)


@in_one_run
def test_two_processes_work_at_once_and_keep_the_order(watched):
    assert [task.data[0] for task in watched.result] == list(range(20))
    pids = {task.data[1] for task in watched.result}
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert {task.stage_perf[0].worker_id for task in watched.result} == {"local-0", "local-1"}


@in_one_run
def test_a_stage_of_one_worker_sees_all_tasks_in_one_process_in_order(watched):
    assert watched.result[-1].data[2] == list(range(20))
    assert len({task.data[3] for task in watched.result}) == 1


@in_one_run
def test_reports_come_in_the_calling_thread(watched):
    assert watched.threads == {threading.get_ident()}


@pytest.mark.parametrize("setting", ["num_workers", "max_workers"])
def test_groups_with_few_workers_get_different_processes(setting):
    def where(name):
        return stage(lambda task: Task(data=[*task.data, os.getpid()]), name=name, fusible=False, **{setting: 1})

    (task,) = Pipeline("p", [where("a"), where("b")]).run(TWO, tasks([]))
    assert len(set(task.data)) == 2


def test_no_more_processes_are_started_than_needed(tmp_path):
    journal = Journal(tmp_path)
    recorder = Recorder()
    Pipeline("p", [living(journal, "a"), living(journal, "b")]).run(TWO, tasks(1), observers=[recorder])
    assert [(event.stage, event.event) for event in journal.read()] == [
        ("a", "setup"),
        ("b", "setup"),
        ("b", "teardown"),
        ("a", "teardown"),
    ]
    assert {report.worker_id for report in recorder.workers} == {"local-0"}


def test_batches_are_full_across_bundles_but_for_the_last():
    fan = stage(lambda task: [Task(data=n) for n in range(task.data % 5)], name="fan", fans_out=True)
    full = stage(lambda task: task, name="full", batch_size=8, full_batches=True)
    recorder = Recorder()
    result = Pipeline("p", [fan, full]).run(TWO, tasks(*range(101)), observers=[recorder])
    assert len(result) == 200
    assert Counter(len(report.inputs) for report in recorder.of("full")) == {8: 25}


def test_a_source_alone_needs_no_process():
    result = Pipeline("p", [stage(lambda task: [Task(data=os.getpid())])]).run(TWO)
    assert [task.data for task in result] == [os.getpid()]


def test_a_stage_can_run_a_pipeline_on_its_own_processes():
    def inner(task):
        add = processing_stage(name="add")(lambda t: Task(data=t.data + 1))
        (output,) = Pipeline("inner", [add]).run(LocalExecutor(workers=2), [Task(data=task.data)])
        return Task(data=output.data)

    assert [task.data for task in Pipeline("p", [stage(inner)]).run(TWO, tasks(1))] == [2]


# --- streams ----------------------------------------------------------------------------------------------


def test_a_source_runs_ahead_by_a_limited_number_of_tasks(monkeypatch):
    monkeypatch.setattr("curator_core._local.queues._MAX_WINDOW", 2)
    monkeypatch.setattr("curator_core._local.queues._MAX_BUNDLE", 8)
    made, ahead = 0, []

    class Watch(RunObserver):
        done = 0

        def on_batch(self, report):
            self.done += report.stage_name == "slow"

    watch = Watch()

    class Source(ProcessingStage[EmptyTask, Task[int]]):
        def __deepcopy__(self, memo):
            return self

        def __reduce__(self):
            return Source, ()

        def process(self, task):
            nonlocal made
            for made in range(2000):
                ahead.append(made - watch.done)
                yield Task(data=made)

    result = Pipeline("p", [Source(), stage(lambda task: task, name="slow")]).run(TWO, observers=[watch])
    assert len(result) == 2000
    # Waiting tasks (8 per process), and the window: two bundles of 8 per process.
    assert max(ahead) <= 2 * 8 + 2 * 2 * 8


def test_a_source_that_fails_halfway_ends_the_run_cleanly(tmp_path):
    journal = Journal(tmp_path)

    class Source(ProcessingStage):
        def process(self, task):
            try:
                yield Task(data=1)
                raise ValueError("the disk is gone")
            finally:
                journal.write("source", "closed", "")

        def teardown(self):
            journal.write("source", "teardown", "")

    stages = [Source(), living(journal, "after")]
    with pytest.raises(StageError, match="the disk is gone") as raised:
        Pipeline("p", stages).run(TWO)
    assert raised.value.stage == "Source"
    events = [(event.stage, event.event) for event in journal.read()]
    assert events[-1] == ("source", "teardown")
    assert ("source", "closed") in events
    result = Pipeline("p", stages).run(
        TWO, on_error="skip", max_failures=math.inf
    )  # with the executor of the failed run
    assert [task.data for task in result] == [1]
    assert (result.stages[0].tasks_failed, result.stages[0].tasks_out) == (1, 1)


class TakesLongToLoad:
    """Stands for a module that takes long to import: unpickling calls `time.sleep`."""

    def __reduce__(self) -> Any:
        return time.sleep, (0.5,)


def test_startup_includes_loading_the_stage_in_the_worker():
    heavy = stage(lambda task: task, name="heavy")
    heavy.model = TakesLongToLoad()
    seen = Recorder()
    Pipeline("p", [stage(lambda task: task), heavy]).run(TWO, tasks(4), [seen])
    took = {
        (report.worker_id, report.stage_name): report.duration_ns for report in seen.workers if report.event == "ready"
    }
    for worker in {worker for worker, _ in took}:
        assert took[worker, "heavy"] >= 500_000_000
        assert took[worker, "stage"] < 500_000_000


def test_startup_of_a_stage_whose_setup_fails_includes_loading_it():
    class Broken(ProcessingStage):
        def setup(self, worker_metadata):
            raise OSError("no model")

        def process(self, task):
            return task

    seen, broken = Recorder(), Broken()
    broken.model = TakesLongToLoad()
    with pytest.raises(StageError, match="no model"):
        Pipeline("p", [broken]).run(TWO, tasks(4), [seen])
    assert seen.workers[0].event == "setup_failed"
    assert seen.workers[0].duration_ns >= 500_000_000
