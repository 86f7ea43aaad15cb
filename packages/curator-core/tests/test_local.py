# SPDX-License-Identifier: Apache-2.0
"""Guarantees of LocalExecutor beyond the conformance kit."""

from __future__ import annotations

import gc
import signal
import sys
import time
import traceback
import weakref
from typing import Any, ClassVar

import pytest
from tests.waiting import DEADLINE_S

from curator_core import EmptyTask, LocalExecutor, Pipeline, ProcessingStage, StageError, Task
from curator_core.testing import Recorder
from curator_core.testing.probe import Calling, CallingBatches

from .helpers import tasks  # noqa: TID252 - no import can write this directory's name


class Payload:
    """An object whose live instances can be counted."""

    alive: ClassVar[weakref.WeakSet[Payload]] = weakref.WeakSet()

    def __init__(self) -> None:
        self.alive.add(self)


class Many(ProcessingStage[EmptyTask, Task[Payload]]):
    """Emits many tasks and tracks how many of them are alive."""

    most_alive = 0

    def __init__(self, count: int) -> None:
        self.count = count

    def process(self, task):
        for number in range(self.count):
            yield Task(data=Payload())
            if number % 64 == 0:
                gc.collect()
            Many.most_alive = max(Many.most_alive, len(Payload.alive))


class Living(Calling):
    """Records its lifecycle."""

    def __init__(self, log: list[str], name: str, function: Any = lambda task: task, fails_in: str = "") -> None:
        super().__init__(function, name=name)
        self.log, self.fails_in = Log(log), fails_in

    def note(self, event: str) -> None:
        self.log.lines.append(f"{event} {self.name}")
        if event == self.fails_in:
            raise ValueError(f"failed in {event}")

    def setup_on_node(self, node_info, worker_metadata):
        self.note("node")

    def setup(self, worker_metadata):
        self.note("setup")

    def teardown(self):
        self.note("teardown")


class Log:
    """A list that copies of a stage share."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines

    def __deepcopy__(self, memo: Any) -> Log:
        return self


@pytest.fixture
def _quick_collections():
    gc.collect()
    gc.freeze()  # older objects are no longer scanned
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("_quick_collections")
def test_memory_is_bounded_for_any_number_of_source_tasks():
    Many.most_alive = 0
    drop = Calling(lambda task: None, name="drop")
    hold = CallingBatches(lambda batch: [Task(data=task.data) for task in batch], name="hold")
    result = Pipeline("p", [Many(3000), hold.with_(batch_size=16), drop]).run()
    assert result.stages[0].tasks_out == result.stages[2].tasks_filtered == 3000
    # One batch of the stage with 16 tasks, tasks in flight, and tasks that wait for the collector.
    assert Many.most_alive <= 64 + 2 * 16 + 8


def test_one_source_task_is_processed_at_a_time():
    log: list[str] = []

    def noting(name: str) -> Calling:
        return Living(log, name, lambda task: log.append(f"{name} {task.data}") or task)

    Pipeline("p", [noting("a"), noting("b")]).run(initial_tasks=tasks(1, 2))
    assert [line for line in log if line[0] in "ab"] == ["a 1", "b 1", "a 2", "b 2"]


def test_each_stage_has_its_own_batch_size():
    batches: dict[str, list[str]] = {"a": [], "b": [], "c": []}

    def noting(name: str, size: int) -> CallingBatches:
        def note(batch: list[Task]) -> list[Task]:
            batches[name].append("".join(str(task.data) for task in batch))
            return list(batch)

        return CallingBatches(note, name=name).with_(batch_size=size)

    Pipeline("p", [noting("a", 2), noting("b", 3), noting("c", 1)]).run(initial_tasks=tasks(*range(7)))
    assert batches == {"a": ["01", "23", "45", "6"], "b": ["012", "345", "6"], "c": [*"0123456"]}


def test_stages_are_set_up_in_order_and_torn_down_in_reverse():
    log: list[str] = []
    Pipeline("p", [Living(log, "a"), Living(log, "b")]).run(initial_tasks=tasks(1))
    assert log == ["node a", "setup a", "node b", "setup b", "teardown b", "teardown a"]


def test_the_cause_has_the_traceback_of_the_user():
    def users_function(task: Task) -> Task:
        return task.data["missing"]

    with pytest.raises(StageError) as raised:
        Pipeline("p", [Calling(users_function)]).run(initial_tasks=tasks({}))
    assert isinstance(raised.value.__cause__, KeyError)
    frames = traceback.extract_tb(raised.value.__cause__.__traceback__)
    assert frames[-1].name == "users_function"
    assert not [frame for frame in frames if frame.filename.endswith(("attempt.py", "adapter.py"))]


@pytest.mark.parametrize("where", ["node", "setup"])
def test_a_stage_whose_setup_fails_is_named_and_others_torn_down(where):
    log: list[str] = []
    recorder = Recorder()
    stages = [Living(log, "a"), Living(log, "b", fails_in=where)]
    with pytest.raises(StageError, match=f"stage 'b': raised ValueError in setup: failed in {where}") as raised:
        Pipeline("p", stages).run(initial_tasks=tasks(1), observers=[recorder])
    assert log[-1] == "teardown a"
    assert not raised.value.result.complete
    assert [report.event for report in recorder.workers] == ["ready", "setup_failed", "ended"]
    assert [summary.workers for summary in raised.value.result.stages] == [1, 0]


def test_a_failing_teardown_is_logged_and_does_not_fail_the_run(caplog):
    log: list[str] = []
    result = Pipeline("p", [Living(log, "a"), Living(log, "b", fails_in="teardown")]).run(initial_tasks=tasks(1))
    assert result.complete
    assert log[-1] == "teardown a"
    assert "stage 'b' raised in teardown" in caplog.text
    assert "ValueError: failed in teardown" in caplog.text


@pytest.mark.parametrize("where", ["source", "stage"])
def test_ctrl_c_prints_the_summary_and_tears_down(where):
    log: list[str] = []
    recorder = Recorder()

    def emit(task: Task) -> Any:
        yield Task(data=1)
        if where == "source":
            raise KeyboardInterrupt
        yield Task(data=2)

    def work(task: Task) -> Task:
        if task.data == 2:
            raise KeyboardInterrupt
        return task

    pipeline = Pipeline("p", [Living(log, "a", emit), Living(log, "b", work)])
    with pytest.raises(KeyboardInterrupt) as raised:
        pipeline.run(observers=[recorder])
    assert [task.data for task in raised.value.result] == [1]
    assert not raised.value.result.complete
    assert "interrupted; work done so far" in raised.value.__notes__[0]
    assert "ended early" in raised.value.__notes__[0]
    assert log[-2:] == ["teardown b", "teardown a"]
    assert len(recorder.ends) == 1


class Finalised:
    """An object that raises SIGINT while it is finalized, like a Ctrl-C at that moment."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.fixture
def _ctrl_c_is_heard():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background processes of a shell ignore it
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_ctrl_c_is_heard")
def test_ctrl_c_in_a_finalizer_ends_the_run():
    def work(task: Task) -> Task:
        Finalised()
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:  # an interrupt is handled between two of its steps
            pass
        return task

    hook = sys.unraisablehook
    with pytest.raises(KeyboardInterrupt):
        Pipeline("p", [Living([], "a", work)]).run(initial_tasks=[Task(data=1)])
    assert sys.unraisablehook is hook


@pytest.mark.usefixtures("_ctrl_c_is_heard")
def test_ctrl_c_in_the_last_finalizer_of_a_run_ends_it():
    def work(task: Task) -> Task:
        Finalised()
        return task

    with pytest.raises(KeyboardInterrupt) as raised:
        Pipeline("p", [Living([], "a", work)]).run(initial_tasks=[Task(data=1)])
    assert len(raised.value.result) == 1


def test_other_exceptions_of_a_finalizer_reach_the_unraisable_hook(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)

    class Faulty:
        def __del__(self) -> None:
            raise ValueError("in a finalizer")

    def work(task: Task) -> Task:
        Faulty()
        return task

    assert len(Pipeline("p", [Living([], "a", work)]).run(initial_tasks=[Task(data=1)])) == 1
    assert [str(unraisable.exc_value) for unraisable in told] == ["in a finalizer"]


def test_a_source_is_closed_before_stages_are_torn_down():
    log: list[str] = []

    def emit(task: Task) -> Any:
        try:
            yield Task(data=1)
            yield Task(data=2)
        finally:
            log.append("closed")

    with pytest.raises(StageError):
        Pipeline("p", [Living(log, "a", emit), Living(log, "b", lambda task: 1 / 0)]).run()
    assert log.index("closed") < log.index("teardown b")


def test_a_skipped_source_that_fails_halfway_is_counted():
    def emit(task: Task) -> Any:
        yield Task(data=1)
        raise ValueError("the disk is gone")

    result = Pipeline("p", [Calling(emit, name="source"), Calling(lambda task: task)]).run(on_error="skip")
    assert [task.data for task in result] == [1]
    source, second = result.stages
    assert (source.tasks_in, source.tasks_failed, source.tasks_out, second.tasks_in) == (1, 1, 1, 1)
    assert result.lost == ()
    assert "'source' failed on 1 task; first error: ValueError: the disk is gone" in result.summary()


def test_a_source_can_implement_process_batch():
    result = Pipeline("p", [CallingBatches(lambda batch: [[Task(data=n) for n in range(3)]])]).run()
    assert [task.task_id for task in result] == ["0", "1", "2"]


def test_a_first_stage_that_is_not_a_source_gets_an_empty_task():
    result = Pipeline("p", [Calling(lambda task: Task(data=task.num_items))]).run()
    assert [task.data for task in result] == [0]


def test_an_executor_runs_stages_without_a_pipeline():
    result = LocalExecutor().execute([Calling(lambda task: task)], tasks(1))
    assert (result.pipeline_name, len(result)) == ("pipeline", 1)


def test_results_can_be_run_again():
    first = Pipeline("p", [Calling(lambda task: [task, Task(data=2)])]).run(initial_tasks=tasks(1))
    again = Pipeline("q", [Calling(lambda task: task)]).run(initial_tasks=first)
    assert [task.task_id for task in first] == ["0.0", "0.1"]
    assert [task.task_id for task in again] == ["0", "1"]
    assert [len(task.stage_perf) for task in again] == [1, 1]


def test_metadata_of_initial_tasks_is_not_modified():
    def note(task: Task) -> Task:
        task.metadata["new"] = 1
        return task

    (task,) = given = tasks(1)
    task.metadata["old"] = 1
    result = Pipeline("p", [Calling(note)]).run(initial_tasks=given)
    assert task.metadata == {"old": 1}
    assert result[0].metadata == {"old": 1, "new": 1}


def test_a_stage_can_run_a_pipeline():
    def inner(task: Task) -> Task:
        (output,) = Pipeline("inner", [Calling(lambda t: Task(data=t.data + 1))]).run(initial_tasks=[task])
        return Task(data=output.data)

    result = Pipeline("outer", [Calling(inner, name="outer_stage")]).run(initial_tasks=tasks(1))
    assert [(task.task_id, task.data) for task in result] == [("0", 2)]


def test_a_pipeline_that_fails_inside_a_stage_names_both():
    def inner(task: Task) -> Any:
        return Pipeline("inner", [Calling(lambda t: 1 / 0, name="deep")]).run(initial_tasks=[task])

    with pytest.raises(StageError) as raised:
        Pipeline("outer", [Calling(inner, name="high")]).run(initial_tasks=tasks(1))
    assert raised.value.stage == "high"
    assert raised.value.__cause__.stage == "deep"
