# SPDX-License-Identifier: Apache-2.0
"""Asynchronous stages: many concurrent calls on one loop, each with its own outcome."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import contextvars
import functools
import logging
import os
import signal
import threading

import pytest
from tests.waiting import DEADLINE_S

from curator_core import (
    ContractError,
    EmptyTask,
    LocalExecutor,
    Pipeline,
    ProcessingStage,
    Resources,
    StageDefinitionError,
    StageError,
    StageTimeoutError,
    Task,
    processing_stage,
)
from curator_core.testing import Recorder

from ..helpers import tasks  # noqa: TID252 - no import can write this directory's name

EXECUTORS = pytest.mark.parametrize("executor", [LocalExecutor(), LocalExecutor(workers=2)], ids=["here", "workers"])
ISOLATED = pytest.mark.parametrize("isolated", [None, True], ids=["", "isolated"])


@pytest.fixture(autouse=True)
def no_loop_is_left():
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("curator-")] == []


class Meeting(ProcessingStage):
    """No call returns before the maximum number of calls is in flight."""

    concurrency = 4

    def __init__(self):
        self.under_way = 0

    def num_workers(self):
        return 1

    async def setup(self, worker_metadata):
        self.loop, self.all_there = asyncio.get_running_loop(), asyncio.Event()

    async def process(self, task):
        self.under_way += 1
        if self.under_way == self.concurrency:
            self.all_there.set()
        async with asyncio.timeout(DEADLINE_S):
            await self.all_there.wait()
        at_once, self.under_way = self.under_way, self.under_way - 1
        if not self.under_way:
            self.all_there.clear()
        self.metrics.add("calls", 1)
        return [Task(data=at_once)] if task.data else None

    async def teardown(self):
        assert asyncio.get_running_loop() is self.loop
        logging.getLogger("meeting").warning("closed")


class MeetingOfMany(Meeting):
    batch_size = 2

    async def process_batch(self, tasks):
        assert len(tasks) == 2
        entry = await Meeting.process(self, tasks[0])
        return [entry, None]


@EXECUTORS
@ISOLATED
def test_concurrency_limits_the_calls_in_flight(executor, isolated):
    recorder = Recorder()
    stage = Meeting().with_(isolated=isolated)
    result = Pipeline("p", [stage]).run(executor, tasks(0, *range(1, 8)), observers=[recorder])
    assert [task.task_id for task in result] == [f"{number}.0" for number in range(1, 8)]
    assert max(task.data for task in result) == 4
    assert [report.metrics["calls"] for report in recorder.final()] == [4, 4]
    assert "ended" in [report.event for report in recorder.workers]
    assert all(report.error is None for report in recorder.workers)


@EXECUTORS
@ISOLATED
def test_several_batches_are_in_flight(executor, isolated):
    result = Pipeline("p", [MeetingOfMany().with_(isolated=isolated)]).run(executor, tasks(*range(1, 9)))
    assert [task.task_id for task in result] == ["0.0", "2.0", "4.0", "6.0"]
    assert max(task.data for task in result) == 4


class Picky(ProcessingStage):
    """Fails on odd numbers, a given number of times."""

    batch_size = 4
    concurrency = 2

    async def process_batch(self, tasks):
        await asyncio.sleep(0)
        if odd := [task.data for task in tasks if task.data % 2]:
            raise ValueError(f"{odd} are odd")
        return [Task(data=task.data) for task in tasks]


@EXECUTORS
@ISOLATED
def test_a_failed_call_fails_only_its_own_tasks(executor, isolated):
    stage = Picky().with_(isolated=isolated)
    result = Pipeline("p", [stage]).run(executor, tasks(*range(6), *[2] * 10), on_error="skip")
    assert [task.data for task in result] == [0, 2, 4, *[2] * 10]
    assert result.accounting.failed == {"Picky": ("1", "3", "5")}


@ISOLATED
def test_the_first_failure_ends_the_run_and_cancels_the_other_calls(isolated):
    class Waiting(ProcessingStage):
        concurrency = 3

        async def process(self, task):
            if task.data == 1:
                raise ValueError("one")
            await asyncio.Event().wait()

    with pytest.raises(StageError, match="raised ValueError on task '1': one"):
        Pipeline("p", [Waiting().with_(isolated=isolated)]).run(initial_tasks=tasks(0, 1, 2))


def test_only_failed_calls_are_retried():
    seen = []

    @processing_stage(max_attempts=3, retry_on=ConnectionError, retry_delay_s=0.0)
    async def ask(task):
        seen.append(task.data)
        task.data += 100  # a retry sees the original input
        if task.data == 103 and seen.count(3) < 3:
            raise ConnectionError
        return Task(data=task.data)

    recorder = Recorder()
    result = Pipeline("p", [ask]).run(initial_tasks=tasks(*range(5)), observers=[recorder])
    assert [(task.task_id, task.data) for task in result] == [(str(number), 100 + number) for number in range(5)]
    assert sorted(seen) == [0, 1, 2, 3, 3, 3, 4]
    (summary,) = result.stages
    assert (summary.attempts_retried, summary.items, summary.tasks_in) == (2, 5, 5)
    assert [[outcome.task_id for outcome in report.inputs] for report in recorder.batches] == [
        ["0", "1", "2", "4"],
        ["3"],
        ["3"],
        ["3"],
    ]
    assert [report.sequence for report in recorder.batches] == list(range(4))


def test_a_late_call_is_canceled_without_an_isolated_process():
    canceled = []

    class Slow(ProcessingStage):
        timeout_s = 0.05

        async def process(self, task):
            try:
                await (asyncio.Event().wait() if task.data else asyncio.sleep(0))
            except asyncio.CancelledError:
                canceled.append(task.data)
                raise
            return task

    result = Pipeline("p", [Slow()]).run(initial_tasks=tasks(0, 1, 0), on_error="skip")
    assert (len(result), canceled) == (2, [1])
    with pytest.raises(StageTimeoutError, match=r"timed out after 0\.05 s"):
        Pipeline("p", [Slow()]).run(initial_tasks=tasks(1))


@pytest.mark.parametrize("kind", [SystemExit, asyncio.CancelledError, KeyboardInterrupt, GeneratorExit])
def test_any_exception_of_a_call_fails_its_task(kind):
    @processing_stage()
    async def ask(task):
        if task.data:
            raise kind
        return task

    result = Pipeline("p", [ask]).run(initial_tasks=tasks(0, 1, 0), on_error="skip")
    assert [task.task_id for task in result] == ["0", "2"]
    assert result.stages[0].first_error.startswith(kind.__name__)


class Pages(ProcessingStage[EmptyTask, Task]):
    """An asynchronous source."""

    closed = False

    async def process(self, task):
        try:
            for number in range(1000):
                await asyncio.sleep(0)
                yield Task(data=number)
        finally:
            type(self).closed = True


def test_asynchronous_generators_fan_out_and_can_be_sources():
    @processing_stage()
    async def twice(task):
        for factor in (1, 10):
            await asyncio.sleep(0)
            yield Task(data=task.data * factor)

    result = Pipeline("p", [Pages(), twice]).run()
    assert [(task.task_id, task.data) for task in list(result)[:4]] == [("0.0", 0), ("0.1", 0), ("1.0", 1), ("1.1", 10)]
    assert len(result) == 2000


def test_an_asynchronous_source_is_streamed_and_closed_when_a_later_stage_fails():
    @processing_stage()
    def fail(task):
        if task.data == 3:
            raise ValueError("three")
        return task

    Pages.closed = False
    with pytest.raises(StageError, match="three") as raised:
        Pipeline("p", [Pages(), fail]).run()
    assert raised.value.result.stages[0].tasks_out == 4
    assert Pages.closed


def test_an_asynchronous_stage_runs_in_a_thread_with_a_running_loop():
    @processing_stage()
    async def same(task):
        return task

    async def notebook():
        return Pipeline("p", [same]).run(initial_tasks=tasks(1))

    assert len(asyncio.run(notebook())) == 1


def test_log_records_of_concurrent_calls_name_their_tasks(caplog):
    class Talking(Meeting):
        async def process(self, task):
            await super().process(task)
            await asyncio.gather(*[self.talk()])  # a separate asyncio task
            return task

        async def talk(self):
            logging.getLogger("talk").warning("here")

    Pipeline("p", [Talking()]).run(initial_tasks=tasks(*range(4)))
    said = {record.curator_task_id for record in caplog.records if record.name == "talk"}
    assert said == {"0", "1", "2", "3"}


def test_asyncio_tasks_left_running_are_canceled_with_the_worker():
    ended = []

    async def forever():
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    class Leaving(ProcessingStage):
        async def process(self, task):
            self.left = asyncio.ensure_future(forever())
            await asyncio.sleep(0)
            return task

    assert len(Pipeline("p", [Leaving()]).run(initial_tasks=tasks(1))) == 1
    assert ended == [True]


def test_concurrency_needs_an_asynchronous_stage():
    @processing_stage(concurrency=4)
    def plain(task):
        return task

    with pytest.raises(StageDefinitionError, match="concurrency") as raised:
        Pipeline("p", [plain]).compile()
    assert raised.value.hint == "write async def process, or leave concurrency unset"


def test_an_asynchronous_stage_is_compiled_with_concurrency_and_batch_size():
    @processing_stage(resources=Resources(cpus=0.5))
    async def ask(task):
        return task

    (compiled,) = Pipeline("p", [ask]).compile().stages
    assert (compiled.concurrency, compiled.batch_size, compiled.isolated) == (32, 32, None)
    (compiled,) = Pipeline("p", [ask.with_(batch_size=100, concurrency=10)]).compile().stages
    assert (compiled.concurrency, compiled.batch_size) == (10, 100)
    (compiled,) = Pipeline("p", [Picky()]).compile().stages
    assert (compiled.concurrency, compiled.batch_size, compiled.call_size) == (2, 8, 4)


class Frail(ProcessingStage):
    """Exits its process on one task."""

    isolated = True

    async def process(self, task):
        if task.data == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return task


@pytest.mark.parametrize("attempts", [1, 2])
def test_a_task_that_kills_the_process_of_all_calls_fails_alone(attempts):
    stage = Frail().with_(max_attempts=attempts, retry_delay_s=0.0)
    result = Pipeline("p", [stage]).run(initial_tasks=tasks(*range(6)), on_error="skip")
    assert result.accounting.failed == {"Frail": ("3",)}
    assert "was killed by SIGKILL on task '3'" in result.stages[0].first_error


@ISOLATED
def test_the_cause_is_reported_if_other_calls_were_canceled(isolated):
    class Second(ProcessingStage):
        batch_size = 2

        async def process_batch(self, tasks):
            if tasks[0].data == 2:
                raise ValueError("the reason")
            await asyncio.Event().wait()

    with pytest.raises(StageError, match="raised ValueError on a batch of 4 tasks: the reason"):
        Pipeline("p", [Second().with_(isolated=isolated)]).run(initial_tasks=tasks(*range(4)))


def test_a_batch_without_valid_inputs_makes_no_calls():
    class Invalid(Task):
        def validate(self):
            return False

    @processing_stage()
    async def ask(task):
        return task

    result = Pipeline("p", [ask]).run(initial_tasks=[Invalid(data=1), Invalid(data=2)], on_error="skip")
    assert result.stages[0].first_error.startswith("InputError: ")
    assert result.stages[0].tasks_failed == 2


def test_items_and_bytes_are_those_of_the_original_inputs():
    @processing_stage(max_attempts=2, retry_delay_s=0.0)
    async def shorten(task):
        first = "tried" not in task.metadata and not seen
        seen.append(task.task_id)
        del task.data[:]
        if first:
            raise ValueError
        return task

    seen = []
    recorder = Recorder()
    result = Pipeline("p", [shorten]).run(initial_tasks=tasks([1] * 5, [2] * 7), observers=[recorder])
    assert result.stages[0].items == 12
    assert sum(report.num_items for report in recorder.final()) == 12


def test_a_stage_can_stop_the_loop_and_run_a_pipeline():
    @processing_stage()
    async def inner(task):
        return Task(data=task.data + 1)

    @processing_stage()
    async def outer(task):
        asyncio.get_running_loop().stop()
        (made,) = Pipeline("inner", [inner]).run(initial_tasks=tasks(task.data))
        return Task(data=made.data)

    assert [task.data for task in Pipeline("p", [outer]).run(initial_tasks=tasks(0, 1))] == [1, 2]


def test_a_call_that_swallows_its_cancellation_has_failed():
    @processing_stage(timeout_s=0.1)
    async def stubborn(task):
        for _ in range(20):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    result = Pipeline("p", [stubborn]).run(initial_tasks=tasks(0), on_error="skip")
    assert result.stages[0].first_error.startswith("StageTimeoutError")


def test_a_call_that_blocks_its_loop_is_killed_if_isolated(monkeypatch):
    monkeypatch.setattr("curator_core._processes.stage._CANCELED_S", 0.2)

    @processing_stage(timeout_s=0.1, concurrency=1, isolated=True)
    async def ask(task):
        if task.data == "blocks":
            threading.Event().wait()
        return task

    result = Pipeline("p", [ask]).run(initial_tasks=tasks("blocks", "good"), on_error="skip")
    assert [task.data for task in result] == ["good"]
    assert result.stages[0].first_error.startswith("StageTimeoutError")


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_call_that_breaks_the_contract_fails_alone(on_error):
    class Forgetful(ProcessingStage):
        batch_size = 2

        async def setup(self, worker_metadata):
            self.seen = collections.Counter()

        async def process_batch(self, batch):
            self.seen.update(task.data for task in batch)
            return [Task(data=(task.data, self.seen[task.data])) for task in batch if task.data != 2]

    pipeline, given = Pipeline("p", [Forgetful()]), tasks(0, 1, 2, 3)
    if on_error == "raise":
        with pytest.raises(ContractError, match="process_batch returned 1 entry for 2 tasks"):
            pipeline.run(initial_tasks=given)
        return
    result = pipeline.run(initial_tasks=given, on_error="skip")
    assert [task.data for task in result] == [(0, 1), (1, 1), (3, 2)]  # with the number of calls for each
    assert result.stages[0].first_error.startswith("ContractError")


def test_a_source_can_keep_a_context_open_across_tasks():
    here = contextvars.ContextVar("here")

    class Held(ProcessingStage[EmptyTask, Task]):
        async def process(self, task):
            token = here.set(True)
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(0))
                for number in range(3):
                    yield Task(data=number)
            here.reset(token)

    class Late(ProcessingStage[EmptyTask, Task]):
        timeout_s = 0.1

        async def process(self, task):
            yield Task(data=1)
            await asyncio.Event().wait()

    assert len(Pipeline("p", [Held()]).run()) == 3
    with pytest.raises(StageTimeoutError):
        Pipeline("p", [Late()]).run()


def test_a_decorator_can_make_the_method_synchronous():
    def blocking(function):
        @functools.wraps(function)
        def call(task):
            return asyncio.run(function(task))

        return call

    @processing_stage()
    @blocking
    async def ask(task):
        return Task(data=task.data)

    assert len(Pipeline("p", [ask]).run(initial_tasks=tasks(1, 2))) == 2


def test_a_failing_asynchronous_setup_leaves_no_loop_and_its_records_name_the_stage(caplog):
    class Unready(ProcessingStage):
        async def setup(self, worker_metadata):
            logging.getLogger("unready").warning("no model")
            raise ValueError("no model")

        async def process(self, task):
            return task

    with pytest.raises(StageError, match="raised ValueError in setup"):
        Pipeline("p", [Unready()]).run(initial_tasks=tasks(1))
    (record,) = [record for record in caplog.records if record.name == "unready"]
    assert record.curator_stage == "Unready"
