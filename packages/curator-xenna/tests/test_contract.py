# SPDX-License-Identifier: Apache-2.0
"""The contract of the adapter, row by row, with Xenna's classes and in real runs on Xenna."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import pytest
from cosmos_xenna.pipelines import v1 as pipelines_v1

import curator_xenna.adapter
from curator_core import BaseStageAdapter, NodeInfo, Pipeline, Plan, ProcessingStage, Resources, Task, WorkerMetadata
from curator_core._reports.batch import BatchReport
from curator_core.testing import Recorder
from curator_xenna import XennaExecutor, XennaStageAdapter, create_named_xenna_stage_adapter


class ImageReaderStage(ProcessingStage[Task[int], Task[Any]]):
    """Returns what it was given; a negative task is passed on unchanged."""

    name = "image_reader"
    batch_size = 4
    resources = Resources(cpus=0.5)

    def num_workers(self) -> int:
        return 1  # Xenna calls setup_on_node only in the first worker of a node

    def setup_on_node(self, node_info: NodeInfo, worker_metadata: WorkerMetadata) -> None:
        self.node_info, self.node_worker = node_info, worker_metadata

    def setup(self, worker_metadata: WorkerMetadata) -> None:
        self.worker = worker_metadata

    def process(self, task: Task[int]) -> Task[Any]:
        if task.data < 0:
            return task
        return Task(data={"node": self.node_info, "worker": self.worker, "pid": os.getpid()})


class Named(ProcessingStage[Task[Any], Task[Any]]):
    """Looks up the names of its actors through Ray."""

    def process(self, task: Task[Any]) -> Task[Any]:
        import ray
        from ray.util.state import list_actors

        here = ray.get_runtime_context().gcs_address  # there may be other instances of Ray on this machine
        # Ray shows 100 actors unless asked for more, and other tests have left more than that.
        shown = [actor.repr_name for actor in list_actors(here, limit=10_000, detail=True)]
        return Task(data={**task.data, "shown": shown})


class Ran(NamedTuple):
    outputs: list[dict[str, Any]]
    result: Any
    reports: list[BatchReport]
    named: list[str]


@pytest.fixture(scope="module")
def ran(executor: XennaExecutor) -> Ran:
    """A real run; the function that names adapters is observed, not replaced."""
    named: list[str] = []

    def watched(stage: ProcessingStage[Any, Any]) -> XennaStageAdapter:
        made = create_named_xenna_stage_adapter(stage)
        named.append(type(made).__name__)
        return made

    seen = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curator_xenna.adapter, "create_named_xenna_stage_adapter", watched)
        pipeline = Pipeline("contract", [ImageReaderStage(), Named()])
        result = pipeline.run(executor, [Task(data=number) for number in range(6)], [seen])
    return Ran([task.data for task in result], result, seen.batches, named)


def adapter(stage: ProcessingStage[Any, Any] | None = None) -> XennaStageAdapter:
    return XennaStageAdapter(stage or ImageReaderStage())


def test_is_both_adapters() -> None:
    assert isinstance(adapter(), BaseStageAdapter)
    assert isinstance(adapter(), pipelines_v1.Stage)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Resources(cpus=2), pipelines_v1.Resources(cpus=2, gpus=0)),
        (Resources(cpus=1, gpus=0.25), pipelines_v1.Resources(cpus=1, gpus=0.25)),
        (Resources(cpus=1, gpus=2), pipelines_v1.Resources(cpus=1, gpus=2)),
        (Resources(cpus=1, entire_gpu=True), pipelines_v1.Resources(cpus=1, gpus=1)),
    ],
)
def test_required_resources_are_xennas(ours: Resources, theirs: pipelines_v1.Resources) -> None:
    required = adapter(ImageReaderStage().with_(resources=ours)).required_resources
    assert type(required) is pipelines_v1.Resources
    assert required == theirs


def test_stage_batch_size_is_the_stages() -> None:
    assert adapter().stage_batch_size == 4


def test_stage_batch_size_is_one_where_unset() -> None:
    assert adapter(Named()).stage_batch_size == 1
    assert adapter(ImageReaderStage().with_(batch_size=None)).stage_batch_size == 1


def test_env_info_is_none_by_default() -> None:
    assert adapter().env_info is None


def test_env_info_is_the_stages() -> None:
    env = adapter(ImageReaderStage().with_(runtime_env={"env_vars": {"MODE": "fast"}})).env_info
    assert isinstance(env, pipelines_v1.RuntimeEnv)
    assert env.extra_env_vars == {"MODE": "fast"}


def test_process_data_delegates_and_attaches_performance() -> None:
    one = adapter(ImageReaderStage())
    tasks = [Task(data=-1), Task(data=-2)]
    outputs = one.process_data(tasks)
    assert outputs == tasks
    assert [task.stage_perf[-1].stage_name for task in outputs] == ["image_reader"] * 2
    assert outputs[0].stage_perf[-1].num_items_processed == 2


def test_process_data_returns_a_list_if_all_is_filtered() -> None:
    class Drop(ProcessingStage[Task[int], Task[int]]):
        def process(self, task: Task[int]) -> None:
            return None

    assert adapter(Drop()).process_data([Task(data=1)]) == []


def test_setup_on_node_gets_a_core_node_info() -> None:
    one = adapter()
    one.setup_on_node(pipelines_v1.NodeInfo(node_id="n7"), pipelines_v1.WorkerMetadata.make_dummy())
    assert one.processing_stage.node_info == NodeInfo("n7")
    assert one.processing_stage.node_worker.worker_id == "debug_worker"


def test_setup_gets_core_worker_metadata() -> None:
    one, theirs = adapter(), pipelines_v1.WorkerMetadata.make_dummy()
    one.setup(theirs)
    assert type(one.processing_stage.worker) is WorkerMetadata
    assert one.processing_stage.worker == WorkerMetadata("debug_worker", theirs.allocation)


def test_named_adapter_has_the_stage_class_name() -> None:
    named = create_named_xenna_stage_adapter(ImageReaderStage())
    assert type(named).__name__ == "ImageReaderStage"
    assert isinstance(named, XennaStageAdapter)
    assert pipelines_v1.StageSpec(named).name(3) == "Stage 03 - ImageReaderStage"


def test_named_adapter_shows_in_ray(ran: Ran) -> None:
    shown = ran.outputs[0]["shown"]
    assert any("ImageReaderStage" in name for name in shown), shown


def test_executor_names_an_adapter_for_each_stage(ran: Ran) -> None:
    assert ran.named == ["ImageReaderStage", "Named"]


def test_generic_fields(ran: Ran) -> None:
    first = ran.reports[0]
    for output in ran.outputs:
        assert output["node"].node_id == first.node_id
        assert output["worker"].worker_id
        assert output["worker"].allocation.node == first.node_id
        assert output["worker"].allocation.cpus == pytest.approx(0.5)
        assert output["pid"] != os.getpid()


def test_processed_tasks_carry_performance(ran: Ran) -> None:
    workers = {report.worker_id for report in ran.reports}
    for task in ran.result:
        assert [stats.stage_name for stats in task.stage_perf] == ["image_reader", "Named"]
        assert {stats.worker_id for stats in task.stage_perf} <= workers
        assert all(stats.process_time > 0 and stats.start_time_unix_ns > 0 for stats in task.stage_perf)


def test_survives_the_copies_that_xenna_makes() -> None:
    import copy
    import pickle

    named = create_named_xenna_stage_adapter(ImageReaderStage())
    assert copy.deepcopy(named) is named  # Xenna copies a specification several times
    again = pickle.loads(pickle.dumps(named))
    assert type(again).__name__ == "ImageReaderStage"
    assert again.stage_batch_size == 4


def test_a_copy_keeps_what_the_plan_read() -> None:
    import pickle

    _, compiled = Plan.from_stages([ImageReaderStage().with_(name="first"), ImageReaderStage()], fed=True).stages
    again = pickle.loads(pickle.dumps(XennaStageAdapter(compiled.fresh_stage(), compiled)))
    assert again.compiled.index == 1


@pytest.mark.parametrize(("name", "shown"), [("Größe", "Grosse"), ("Señal", "Senal"), ("大小x", "__x")])
def test_a_name_that_is_not_ascii_is_transliterated(name: str, shown: str) -> None:
    stage = type(name, (Named,), {})()
    adapter = create_named_xenna_stage_adapter(stage)
    assert type(adapter).__name__ == shown
    assert (adapter.compiled.name, adapter.compiled.class_name) == (name, name)
