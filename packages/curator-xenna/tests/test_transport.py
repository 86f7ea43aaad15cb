# SPDX-License-Identifier: Apache-2.0
"""Fused stages and bundles in real runs: what is shared, what travels, and that nobody can tell from the results."""

from __future__ import annotations

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

from curator_core import DataError, Pipeline, ProcessingStage, Resources, Task
from curator_core.plan import Plan
from curator_core.testing import Recorder
from curator_xenna import XennaConfig, XennaExecutor

DEADLINE_S = 120


class Pid(ProcessingStage[Task[Any], Task[Any]]):
    """Adds the process that it ran in."""

    resources = Resources(cpus=0.5)

    def process(self, task: Task[Any]) -> Task[Any]:
        return Task(data=(*task.data, os.getpid()))


class Calls(ProcessingStage[Task[Any], Task[int]]):
    """How many calls to actors its process has made since the set-up."""

    resources = Resources(cpus=0.5)
    num_workers = 1

    def setup(self, worker: Any = None) -> None:
        self._calls = 0
        call = ActorMethod._remote

        def counted(*args: Any, **kwargs: Any) -> Any:
            self._calls += 1
            return call(*args, **kwargs)

        ActorMethod._remote = counted  # type: ignore[method-assign]  # the process ends with the run

    def process(self, task: Task[Any]) -> Task[int]:
        return Task(data=self._calls)


class Watch(Recorder):
    def sizes(self, stage: str) -> Counter[int]:
        return Counter(len(report.inputs) for report in self.final() if report.stage_name == stage)

    def bundles(self, stage: str) -> dict[str, int]:
        """How many tasks came in each bundle."""
        found: defaultdict[str, int] = defaultdict(int)
        for report in self.final():
            if report.stage_name == stage:
                found[report.bundle_id] += len(report.inputs)
        return dict(found)


def run(executor: XennaExecutor, stages: list[Any], tasks: list[Task[Any]], **options: Any) -> tuple[Any, Watch]:
    watch = Watch()
    return Pipeline("transport", stages).run(executor, tasks, [watch], **options), watch


@pytest.fixture
def plain(executor: XennaExecutor, monkeypatch: pytest.MonkeyPatch) -> XennaExecutor:
    """The shared Ray, with fusion and bundles off."""
    monkeypatch.setattr(executor, "config", XennaConfig(fuse=False, bundle=False))
    return executor


@pytest.mark.parametrize("stages", [1, 3])
def test_all_that_a_group_reports_of_a_bundle_takes_one_call(
    stages: int, executor: XennaExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "config", XennaConfig(bundle=False))
    pids = [Pid().with_(name=f"p{number}", num_workers=1) for number in range(stages - 1)]
    result, watch = run(executor, [*pids, Calls()], [Task(data=()) for _ in range(20)])
    assert len(watch.batches) == stages * 20
    assert {report.group for report in watch.batches} == {0}
    first, *_ = made = sorted(task.data for task in result)
    assert made == [*range(first, first + 20)]


def test_fused_stages_share_a_worker_which_shows_their_names(executor: XennaExecutor) -> None:
    stages = [Pid().with_(name=name, num_workers=1) for name in ("first", "second", "third")]
    result, watch = run(executor, stages, [Task(data=()) for _ in range(6)])
    for task in result:
        (pid,) = set(task.data)
        assert pid != os.getpid()
        assert [stats.stage_name for stats in task.stage_perf] == ["first", "second", "third"]
    assert all("first+second+third" in report.worker_id for report in watch.batches)  # as Xenna's tables have it
    assert {report.group for report in watch.batches} == {0}
    assert [stage.batches for stage in result.stages] == [6, 6, 6]


def test_without_fusion_and_bundles_each_stage_has_its_workers_and_each_task_travels_alone(
    plain: XennaExecutor,
) -> None:
    stages = [Pid().with_(name="first", num_workers=1), Pid().with_(name="second", num_workers=1)]
    result, watch = run(plain, stages, [Task(data=()) for _ in range(6)])
    assert all(first != second for first, second in (task.data for task in result))
    assert {report.bundle_id for report in watch.batches} == {""}
    assert {report.group for report in watch.batches} == {0, 1}


def test_ten_thousand_small_tasks_are_tens_of_bundles(executor: XennaExecutor) -> None:
    stages = [Pid().with_(name="first"), Pid().with_(name="second", fusible=False)]
    result, watch = run(executor, stages, [Task(data=(number,)) for number in range(10_000)])
    assert sorted(task.data[0] for task in result) == list(range(10_000))
    for stage, most in (("first", 100), ("second", 400)):  # until it is measured, work for the next group is spread
        bundles = watch.bundles(stage)
        assert sum(bundles.values()) == 10_000
        assert len(bundles) < most


def test_eight_large_tasks_are_eight_bundles(executor: XennaExecutor) -> None:
    class Sized(ProcessingStage[Task[Any], Task[Any]]):
        def process(self, task: Task[Any]) -> Task[Any]:
            return Task(data=len(task.data))

    result, watch = run(executor, [Sized()], [Task(data=bytes(20 * 2**20)) for _ in range(8)])
    assert [task.data for task in result] == [20 * 2**20] * 8
    assert list(watch.bundles("Sized").values()) == [1] * 8


class Third(ProcessingStage[Task[int], Task[int]]):
    resources = Resources(cpus=0.5)

    def process(self, task: Task[int]) -> Task[int] | None:
        return None if task.data % 3 else task


class Batches(ProcessingStage[Task[int], Task[int]]):
    resources = Resources(cpus=0.5)
    batch_size = 16
    full_batches = True

    def num_workers(self) -> int:
        return 1

    def process_batch(self, tasks: list[Task[int]]) -> list[Task[int]]:
        return tasks


@pytest.mark.parametrize("bundle", [True, False])
def test_full_batches_are_full_with_and_without_bundles(
    bundle: bool, executor: XennaExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "config", XennaConfig(bundle=bundle))
    result, watch = run(executor, [Third(), Batches()], [Task(data=number) for number in range(300)])
    assert len(result) == 100
    assert watch.sizes("Batches") == {16: 6, 4: 1}


def test_a_stage_that_is_fed_by_the_driver_has_full_batches(executor: XennaExecutor) -> None:
    _, watch = run(executor, [Batches()], [Task(data=number) for number in range(300)])
    assert watch.sizes("Batches") == {16: 18, 12: 1}


class Meets(ProcessingStage[Task[int], Task[int]]):
    """Two tasks wait for each other: they must be at work at the same time."""

    def __init__(self, directory: str) -> None:
        self.directory = Path(directory)

    def process(self, task: Task[int]) -> Task[int]:
        (self.directory / str(task.data)).touch()
        deadline = time.monotonic() + DEADLINE_S
        while not (self.directory / str(1 - task.data)).exists():
            assert time.monotonic() < deadline
            threading.Event().wait(0.02)
        return task


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two cores are to be used, and there is one")
def test_all_cores_are_used_from_the_start(executor: XennaExecutor, tmp_path: Path) -> None:
    result, _ = run(executor, [Meets(str(tmp_path))], [Task(data=0), Task(data=1)])
    assert len(result) == 2


class Array(ProcessingStage[Task[Any], Task[Any]]):
    resources = Resources(cpus=0.5)

    def num_workers(self) -> int:
        return 1

    def process(self, task: Task[Any]) -> Task[Any]:
        import numpy as np

        return Task(data=np.full(2**20, task.data))


class Look(Array):
    """Says whether its array is a view of shared memory, as it is where it was not copied through a pickle."""

    def process(self, task: Task[Any]) -> Task[Any]:
        array = task.data
        return Task(data=(bool(array.flags.writeable), bool(array.flags.owndata), int(array.sum())))


@pytest.mark.parametrize("attempts", [1, 2])
def test_arrays_are_not_copied_from_worker_to_worker(executor: XennaExecutor, attempts: int) -> None:
    stages = [Array(), Look().with_(fusible=False, max_attempts=attempts)]
    result, _ = run(executor, stages, [Task(data=number) for number in range(4)])
    assert sorted(task.data for task in result) == [(False, False, number * 2**20) for number in range(4)]


class Column(ProcessingStage[Task[int], Task[Any]]):
    """Makes a table of a megabyte."""

    resources = Resources(cpus=0.5)

    def process(self, task: Task[int]) -> Task[Any]:
        import numpy as np
        import pyarrow as pa

        return Task(data=pa.table({"number": np.full(2**17, task.data)}))


class LookAtColumn(ProcessingStage[Task[Any], Task[Any]]):
    """Says where the bytes of a table are, as memory that Ray shares is mapped, and what they add up to."""

    resources = Resources(cpus=0.5)

    def process(self, task: Task[Any]) -> Task[Any]:
        chunk = task.data["number"].chunk(0)
        where = int(chunk.buffers()[1].address)
        maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
        ranges = [(*(int(end, 16) for end in line[0].split("-")), line[5:]) for line in maps]
        (name,) = [name for start, end, name in ranges if start <= where < end]
        return Task(data=("plasma" in str(name), int(chunk.to_numpy().sum())))


def test_tables_are_not_copied_from_worker_to_worker(executor: XennaExecutor) -> None:
    stages = [Column(), LookAtColumn().with_(fusible=False)]
    result, _ = run(executor, stages, [Task(data=number) for number in range(4)])
    assert sorted(task.data for task in result) == [(True, number * 2**17) for number in range(4)]


def test_arrays_come_back_to_the_driver_as_its_own(executor: XennaExecutor) -> None:
    (task,) = run(executor, [Array()], [Task(data=7)])[0]
    task.data += 1  # not held in Ray's store, which is gone after the run
    assert int(task.data.sum()) == 8 * 2**20


def test_more_large_outputs_come_back_than_may_wait_to_be_copied(plain: XennaExecutor) -> None:
    result, watch = run(plain, [Array()], [Task(data=number) for number in range(40)])
    assert sorted(int(task.data[-1]) for task in result) == [*range(40)]
    assert len(watch.batches) == 40  # each came in a delivery of its own


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


class Closed(ProcessingStage[Task[int], Task[Any]]):
    """Makes tasks that the driver cannot open."""

    resources = Resources(cpus=0.5)

    def process(self, task: Task[int]) -> Task[Any]:
        return NotForTheDriver(bytes(task.data), self.driver)

    def __init__(self) -> None:
        self.driver = os.getpid()


@pytest.mark.parametrize("size", [1, 2**20])
def test_an_output_that_the_driver_cannot_open_ends_the_run(executor: XennaExecutor, size: int) -> None:
    with pytest.raises(DataError, match="cannot be read by the driver: ValueError: not in this process"):
        run(executor, [Closed()], [Task(data=size)])


FAIL = -1
scripts = st.lists(st.integers(FAIL, 3), min_size=1, max_size=4)


class Scripted(ProcessingStage[Task[int], Task[int]]):
    """Makes as many tasks of one as its script says: 1 keeps it, 0 drops it, and -1 raises."""

    resources = Resources(cpus=0.2)

    def __init__(self, name: str, script: list[int]) -> None:
        self.name, self.script = name, script

    def process(self, task: Task[int]) -> Task[int] | list[Task[int]] | None:
        count = self.script[task.data % len(self.script)]
        if count == FAIL:
            msg = f"told to fail at {task.data}"
            raise ValueError(msg)
        if count <= 1:
            return Task(data=task.data + 1) if count else None
        return [Task(data=task.data + number) for number in range(count)]


class ScriptedBatches(Scripted):
    """The same, a batch at a time."""

    def process_batch(self, tasks: list[Task[int]]) -> list[Any]:
        return [self.process(task) for task in tasks]


@st.composite
def pipelines(draw: Any) -> list[Scripted]:
    stages = []
    for number in range(draw(st.integers(2, 4))):
        made = draw(st.sampled_from([Scripted, ScriptedBatches]))(f"s{number}", draw(scripts))
        settings: dict[str, Any] = {"num_workers": 1, "batch_size": draw(st.integers(1, 5))}
        for name, values in (
            ("fans_out", [True, False]),
            ("fusible", [None, None, False]),
            ("full_batches", [False, False, True]),
        ):
            settings[name] = draw(st.sampled_from(values))
        stages.append(made.with_(**settings))
    return stages


@pytest.mark.everything
@settings(
    max_examples=6,
    deadline=None,
    phases=[Phase.generate],  # an example takes seconds: none is tried twice
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(pipelines(), st.integers(1, 300), st.sampled_from([{}, {}, {"fuse": False}, {"bundle": False}]))
def test_results_are_those_of_stages_by_themselves(
    executor: XennaExecutor, stages: list[Scripted], count: int, config: dict[str, bool]
) -> None:
    tasks = [Task(data=number) for number in range(count)]
    here = Pipeline("local", stages).run(None, tasks, on_error="skip")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executor, "config", XennaConfig(**config))
        there, watch = run(executor, stages, tasks, on_error="skip")
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
