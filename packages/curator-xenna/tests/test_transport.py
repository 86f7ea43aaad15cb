# SPDX-License-Identifier: Apache-2.0
"""Fused stages and bundles in real runs: what is shared, what travels, and that results are the same."""

from __future__ import annotations

import asyncio
import math
import os
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from ray.actor import ActorMethod
from tests.pipelines import pipelines
from tests.waiting import DEADLINE_S, wait_until

from curator_core import DataError, Pipeline, ProcessingStage, Resources, Task
from curator_core._plan.plan import Plan
from curator_core.testing import Recorder
from curator_xenna import XennaConfig, XennaExecutor


class Light(ProcessingStage[Task[Any], Task[Any]]):
    """Passes on its inputs."""

    resources = Resources(cpus=0.2)  # several fit on a core

    def num_workers(self) -> int:
        return 1  # starts faster than the maximum number of workers

    def process(self, task: Task[Any]) -> Task[Any] | None:
        return Task(data=task.data)


class Pid(Light):
    """Adds its process id."""

    def process(self, task: Task[Any]) -> Task[Any]:
        return Task(data=(*task.data, os.getpid()))


class Calls(Light):
    """Adds the number of calls to actors that its process has made since the setup."""

    def setup(self, worker: Any = None) -> None:
        self._calls = 0
        call = ActorMethod._remote

        def counted(*args: Any, **kwargs: Any) -> Any:
            self._calls += 1
            return call(*args, **kwargs)

        ActorMethod._remote = counted  # type: ignore[method-assign]  # the process ends with the run

    def process(self, task: Task[Any]) -> Task[Any]:
        return Task(data=(*task.data, self._calls))


class Watch(Recorder):
    def sizes(self, stage: str) -> Counter[int]:
        return Counter(len(report.inputs) for report in self.final() if report.stage_name == stage)

    def bundles(self, stage: str) -> dict[str, int]:
        """Return the number of tasks in each bundle."""
        found: defaultdict[str, int] = defaultdict(int)
        for report in self.final():
            if report.stage_name == stage:
                found[report.bundle_id] += len(report.inputs)
        return dict(found)


def run(executor: XennaExecutor, stages: list[Any], tasks: list[Task[Any]], **options: Any) -> tuple[Any, Watch]:
    watch = Watch()
    return Pipeline("transport", stages).run(executor, tasks, [watch], **options), watch


class TakesLongToLoad:
    """Stands for a module that takes long to import: unpickling calls `time.sleep`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return time.sleep, (0.2,)


def test_fused_stages_share_a_worker_and_one_call_for_all_their_reports(
    executor: XennaExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "config", XennaConfig(bundle=False))
    stages = [Pid().with_(name="first"), Pid().with_(name="second"), Calls().with_(name="third")]
    stages[1].model = TakesLongToLoad()  # type: ignore[attr-defined]
    result, watch = run(executor, stages, [Task(data=()) for _ in range(20)])
    for task in result:
        assert task.data[0] == task.data[1] != os.getpid()
        assert [stats.stage_name for stats in task.stage_perf] == ["first", "second", "third"]
    assert all("first+second+third" in report.worker_id for report in watch.batches)  # as in Xenna's tables
    assert {report.group for report in watch.batches} == {0}
    assert [stage.batches for stage in result.stages] == [20, 20, 20]
    assert [stage.startup_s >= 0.2 for stage in result.stages[1:]] == [True, False]  # the first one imports this module
    first, *_ = calls = sorted(task.data[2] for task in result)
    assert calls == [*range(first, first + 20)]


def test_stages_that_refuse_fusion_have_separate_workers(executor: XennaExecutor) -> None:
    stages = [Pid().with_(name="first"), Pid().with_(name="second", fusible=False)]
    result, watch = run(executor, stages, [Task(data=(number,)) for number in range(10_000)])
    assert sorted(task.data[0] for task in result) == list(range(10_000))
    assert all(first != second for _, first, second in (task.data for task in result))
    assert {report.group for report in watch.batches} == {0, 1}
    # Small tasks travel in dozens of bundles; until it is measured, work for the next group is distributed more evenly.
    for stage, most in (("first", 100), ("second", 400)):
        bundles = watch.bundles(stage)
        assert sum(bundles.values()) == 10_000
        assert len(bundles) < most


def test_batch_mode_distributes_the_bundles(executor: XennaExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "config", XennaConfig(execution_mode="batch"))
    result, watch = run(executor, [Light().with_(num_workers=2)], [Task(data=number) for number in range(100)])
    assert len(result) == 100
    assert len(watch.bundles("Light")) > 2  # one call for each bundle; a single call would use a single worker


@pytest.mark.everything
def test_large_tasks_are_sent_one_by_one(executor: XennaExecutor) -> None:
    class Sized(Light):
        def process(self, task: Task[Any]) -> Task[Any]:
            return Task(data=len(task.data))

    result, watch = run(executor, [Sized()], [Task(data=bytes(20 * 2**20)) for _ in range(8)])
    assert [task.data for task in result] == [20 * 2**20] * 8
    assert list(watch.bundles("Sized").values()) == [1] * 8


class Third(Light):
    def process(self, task: Task[int]) -> Task[int] | None:
        return None if task.data % 3 else task


class Batches(Light):
    batch_size = 16
    full_batches = True

    def process_batch(self, tasks: list[Task[int]]) -> list[Task[int]]:
        return tasks


@pytest.mark.parametrize("bundle", [True, pytest.param(False, marks=pytest.mark.everything)])
def test_full_batches_work_with_and_without_bundles(
    bundle: bool, executor: XennaExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "config", XennaConfig(bundle=bundle))
    stages = [Batches().with_(name="fed by the driver"), Third(), Batches().with_(name="after a filter")]
    result, watch = run(executor, stages, [Task(data=number) for number in range(300)])
    assert len(result) == 100
    assert watch.sizes("fed by the driver") == {16: 18, 12: 1}
    assert watch.sizes("after a filter") == {16: 6, 4: 1}


class Meets(ProcessingStage[Task[int], Task[int]]):
    """Lets two tasks wait for each other: they must be in flight at the same time."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def process(self, task: Task[int]) -> Task[int]:
        (self.directory / str(task.data)).touch()
        wait_until((self.directory / str(1 - task.data)).exists)
        return task


@pytest.mark.everything
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_all_cores_are_used_from_the_start(executor: XennaExecutor, tmp_path: Path) -> None:
    result, _ = run(executor, [Meets(tmp_path)], [Task(data=0), Task(data=1)])
    assert len(result) == 2


# --- arrays and tables ----------------------------------------------------------------------------------


class Asks(Light):
    """No call returns before the maximum number of calls is in flight."""

    concurrency = 4

    async def setup(self, worker: Any = None) -> None:  # type: ignore[override]  # may be a coroutine
        self.under_way, self.all_there = 0, asyncio.Event()

    async def process(self, task: Task[Any]) -> Task[Any]:  # type: ignore[override]  # may be a coroutine
        self.under_way += 1
        if self.under_way == self.concurrency:
            self.all_there.set()
        async with asyncio.timeout(DEADLINE_S):
            await self.all_there.wait()
        at_once, self.under_way = self.under_way, self.under_way - 1
        if not self.under_way:
            self.all_there.clear()
        return Task(data=(task.data, at_once))


def test_calls_of_an_asynchronous_stage_are_concurrent(executor: XennaExecutor) -> None:
    result = Pipeline("asks", [Asks()]).run(executor, [Task(data=number) for number in range(8)])
    assert sorted(task.data[0] for task in result) == list(range(8))
    assert max(task.data[1] for task in result) == Asks.concurrency


ROWS = 2**17  # of eight bytes: more than Ray sends inside a call


class Payload(Light):
    """Creates an array and a table of one megabyte each."""

    def process(self, task: Task[int]) -> Task[Any]:
        import numpy as np
        import pyarrow as pa

        made = {"number": task.data, "seen": []}
        return Task(data={**made, "array": np.full(ROWS, task.data), "table": pa.table({"n": np.full(ROWS, 1)})})


class Look(Light):
    """Records whether its inputs are in memory that Ray shares, which means that they were not copied."""

    def process(self, task: Task[Any]) -> Task[Any]:
        array, chunk = task.data["array"], task.data["table"]["n"].chunk(0)
        shared = [is_shared(array.ctypes.data), is_shared(chunk.buffers()[1].address)]
        seen = (self.name, *shared, bool(array.flags.writeable), int(chunk.to_numpy().sum()))
        return Task(data={**task.data, "seen": [*task.data["seen"], seen]})


class Double(Light):
    """Creates a new array."""

    def process(self, task: Task[Any]) -> Task[Any]:
        return Task(data={**task.data, "array": 2 * task.data["array"]})


def is_shared(address: int) -> bool:
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(number, 16) for number in line.split()[0].split("-"))
        if start <= address < end:
            return "plasma" in line
    raise LookupError(f"{address:x} is not mapped")


@pytest.fixture(scope="module")
def carried(executor: XennaExecutor) -> Any:
    """A run whose payloads pass three groups, one of which keeps its inputs for a second attempt."""
    looks = Look().with_(name="once", fans_out=True), Look().with_(name="again", max_attempts=2)
    stages = [Payload().with_(fans_out=True), *looks, Double()]  # a fan-out ends a group
    return run(executor, stages, [Task(data=number) for number in range(10)])


def test_arrays_and_tables_are_not_copied_from_worker_to_worker(carried: Any) -> None:
    result, _ = carried
    for task in result:
        assert task.data["seen"] == [("once", True, True, False, ROWS), ("again", True, True, False, ROWS)]


def test_returned_arrays_are_writable_in_the_driver(carried: Any) -> None:
    result, _ = carried
    task = result[0]
    task.data["array"] += 1  # not in Ray's store, which is gone after the run
    assert int(task.data["array"].sum()) == (2 * task.data["number"] + 1) * ROWS
    assert sorted(task.data["number"] for task in result) == [*range(10)]


def _opened_here(driver: int, content: Any) -> Any:
    if os.getpid() == driver:
        raise ValueError("not in this process")
    return NotForTheDriver(content, driver)


class NotForTheDriver(Task[Any]):
    """Cannot be unpickled in the driver."""

    def __init__(self, data: Any, driver: int) -> None:
        super().__init__(data)
        self.driver = driver

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened_here, (self.driver, self.data)


class Closed(Light):
    """Creates tasks that the driver cannot unpickle."""

    def process(self, task: Task[int]) -> Task[Any]:
        return NotForTheDriver(bytes(task.data), self.driver)

    def __init__(self) -> None:
        self.driver = os.getpid()


@pytest.mark.parametrize("size", [pytest.param(1, marks=pytest.mark.everything), 2**20])
def test_an_output_that_the_driver_cannot_unpickle_ends_the_run(executor: XennaExecutor, size: int) -> None:
    with pytest.raises(DataError, match="cannot be read by the driver: ValueError: not in this process"):
        run(executor, [Closed()], [Task(data=size)])


class Locked(Light):
    """Creates an output that does not pickle from the input 1."""

    def process(self, task: Task[int]) -> Task[Any]:
        return Task(data=threading.Lock() if task.data == 1 else task.data)


def test_an_output_that_does_not_pickle_is_the_failure_of_its_batch(executor: XennaExecutor) -> None:
    result, watch = run(executor, [Locked()], [Task(data=number) for number in range(3)], on_error="skip")
    assert sorted(task.data for task in result) == [0, 2]
    assert (result.stages[0].tasks_failed, result.lost) == (1, ())
    (error,) = [report.error.message for report in watch.final() if report.error is not None]
    assert "an output cannot be sent to the driver: cannot pickle '_thread.lock' object" in error


# --- random pipelines -----------------------------------------------------------------------------------

EXAMPLES = max(2, settings.default.max_examples // 20)  # each takes seconds
SETTINGS = {
    "num_workers": st.just(1),
    "resources": st.just(Resources(cpus=0.2)),
    "fans_out": st.booleans(),
    "fusible": st.sampled_from([None, None, False]),
    "full_batches": st.sampled_from([False, False, True]),
}


@settings(
    max_examples=EXAMPLES,
    phases=[Phase.generate],  # without shrinking
    suppress_health_check=[*settings.default.suppress_health_check, HealthCheck.function_scoped_fixture],
)
@given(pipelines(2, 4, **SETTINGS), st.integers(1, 300), st.sampled_from([{}, {}, {"fuse": False}, {"bundle": False}]))
def test_results_are_those_of_unfused_stages(
    executor: XennaExecutor, stages: list[Any], count: int, config: dict[str, bool]
) -> None:
    tasks = [Task(data=number) for number in range(count)]
    goes_on = {"on_error": "skip", "max_failures": math.inf}  # even if all of the first tasks fail
    here = Pipeline("local", stages).run(None, tasks, **goes_on)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executor, "config", XennaConfig(**config))
        there, watch = run(executor, stages, tasks, **goes_on)
    assert {task.task_id: task.data for task in there} == {task.task_id: task.data for task in here}
    assert {stage: sorted(ids) for stage, ids in there.accounting.failed.items()} == {
        stage: sorted(ids) for stage, ids in here.accounting.failed.items()
    }
    assert there.lost == ()
    assert [(s.tasks_in, s.tasks_out, s.tasks_filtered, s.tasks_failed) for s in there.stages] == [
        (s.tasks_in, s.tasks_out, s.tasks_filtered, s.tasks_failed) for s in here.stages
    ]
    plan = Plan.from_stages(stages, fed=True)
    for report in watch.batches:
        assert len(report.inputs) <= plan.stages[report.stage_index].batch_size
        if config.get("fuse", True):
            assert plan.stages[report.stage_index] in plan.groups[report.group].stages
        else:
            assert report.group == report.stage_index
