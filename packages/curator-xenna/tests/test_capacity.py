# SPDX-License-Identifier: Apache-2.0
"""Plans of capacity: Xenna's own autoscaler decides on clusters that do not exist. Nothing is started."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from typing import Any

import pytest

from curator_core import (
    EmptyTask,
    ExecutorError,
    LocalExecutor,
    Pipeline,
    Plan,
    ProcessingStage,
    Resources,
    ResourcesError,
    StageDefinitionError,
    StageSpeed,
    Task,
)
from curator_xenna import CapacityPlan, ClusterSpec, XennaConfig, plan_capacity

H100 = {"cpus": 96, "gpus": 8, "gpu": "NVIDIA H100 80GB HBM3", "gpu_memory_gb": 85.9}


class Stage(ProcessingStage[Task, Task]):
    def process(self, task: Task) -> Task:
        return task


class Source(ProcessingStage[EmptyTask, Task]):
    def process(self, task: EmptyTask) -> list[Task]:
        return [Task(data=number) for number in range(10)]


def stage(name: str, *, cpus: float = 1.0, gpus: float = 0.0, **settings: Any) -> Any:
    return Stage().with_(name=name, resources=Resources(cpus=cpus, gpus=gpus), **settings)


def plan_of(*stages: Any, fed: bool = True) -> Plan:
    return Pipeline("p", [*stages]).compile(fed=fed)


VIDEO = plan_of(
    stage("Split", cpus=3, fans_out=True),
    stage("Decode", gpus=0.25),
    stage("Caption", gpus=1),
    stage("Write", cpus=0.25),
)
SPEEDS = {
    "Split": StageSpeed(8.0, 24.0, 20),
    "Decode": StageSpeed(0.3, 0.3),
    "Caption": StageSpeed(1.0, 0.2),
    "Write": StageSpeed(0.01, 0.01),
}


def groups(capacity: CapacityPlan) -> dict[str, Any]:
    return {group.name: group for group in capacity.groups}


def test_the_slowest_stage_of_a_gpu_cluster_is_the_limit() -> None:
    capacity = plan_capacity(VIDEO, ClusterSpec(nodes=64, **H100), SPEEDS)
    found = groups(capacity)
    assert (capacity.limit_kind, capacity.limit) == ("group", "Caption")
    assert capacity.tasks_per_s == found["Caption"].workers / 20  # 20 clips of a second each
    assert capacity.hours(1_000_000) == pytest.approx(1_000_000 / capacity.tasks_per_s / 3600)
    assert found["Caption"].busy_ratio == 1
    assert found["Caption"].workers + found["Decode"].workers / 4 + capacity.idle_gpus == 64 * 8
    assert sum(group.workers * group.cpus for group in capacity.groups) + capacity.idle_cpus == 64 * 91
    assert capacity.idle_gpus < 8
    assert 0 < capacity.driver_ratio < 0.2


def test_more_nodes_are_faster() -> None:
    rates = [plan_capacity(VIDEO, ClusterSpec(nodes=nodes, **H100), SPEEDS).tasks_per_s for nodes in (1, 2, 8, 64)]
    assert rates == sorted(rates)
    assert rates[3] / rates[2] == pytest.approx(8, rel=0.05)


def test_nodes_may_differ() -> None:
    alone = plan_capacity(VIDEO, ClusterSpec(nodes=4, **H100), SPEEDS)
    helped = plan_capacity(VIDEO, [ClusterSpec(nodes=4, **H100), ClusterSpec(nodes=2, cpus=64)], SPEEDS)
    assert helped.tasks_per_s >= alone.tasks_per_s
    assert helped.idle_cpus > alone.idle_cpus


@pytest.mark.parametrize(
    ("config", "is_embedded", "expected"),
    [({}, False, 95), ({"cpu_allocation_percentage": 0.5}, False, 50), ({}, True, 100), ({"num_cpus": 4}, True, 4)],
)
def test_cpus_are_planned_with_as_in_a_run(config: dict[str, Any], is_embedded: bool, expected: int) -> None:
    cluster = ClusterSpec(cpus=100, is_embedded=is_embedded)
    capacity = plan_capacity(plan_of(stage("A")), cluster, {"A": StageSpeed(1.0)}, config)
    assert groups(capacity)["A"].workers == expected


def test_a_fixed_number_of_workers_is_kept() -> None:
    plan = plan_of(stage("Few", num_workers=3), stage("Many", fusible=False))
    capacity = plan_capacity(plan, ClusterSpec(nodes=2, cpus=32), {"Few": StageSpeed(3.0), "Many": StageSpeed(1.0)})
    assert groups(capacity)["Few"].workers == 3
    assert (capacity.limit, capacity.tasks_per_s) == ("Few", 1.0)


def test_stages_that_declare_less_than_a_core_are_limited_by_the_cores() -> None:
    plan = plan_of(stage("A", cpus=0.25), stage("B", cpus=0.25, fusible=False), stage("C", cpus=0.25, fusible=False))
    speeds = {name: StageSpeed(0.5, 0.5) for name in "ABC"}
    capacity = plan_capacity(plan, ClusterSpec(cpus=2, is_embedded=True), speeds)
    assert capacity.limit_kind == "cores"
    assert capacity.tasks_per_s == pytest.approx(2 / 1.5)


def test_light_stages_are_limited_by_the_driver() -> None:
    plan = plan_of(stage("A"), stage("B"), stage("Batched", batch_size=10))
    speeds = dict.fromkeys(("A", "B", "Batched"), StageSpeed(0.00001))
    capacity = plan_capacity(plan, ClusterSpec(nodes=100, cpus=100), speeds)
    assert capacity.limit_kind == "driver"
    assert capacity.tasks_per_s == pytest.approx(40_000 / 2.1)
    assert capacity.driver_ratio == 1


@pytest.mark.parametrize("in_driver", [True, False])
def test_a_source_runs_before_the_other_stages(in_driver: bool) -> None:
    source = Source().with_(name="List", **({} if in_driver else {"resources": Resources(cpus=2)}))
    plan = plan_of(source, stage("Work", num_workers=1, fusible=False), fed=False)
    speeds = {"List": StageSpeed(5.0, outputs=10), "Work": StageSpeed(0.1)}
    capacity = plan_capacity(plan, ClusterSpec(nodes=8, cpus=32), speeds)
    assert (capacity.limit_kind, capacity.limit) == ("source", "List")
    assert capacity.tasks_per_s == pytest.approx(1 / (0.5 + 0.1))
    assert groups(capacity)["Work"].busy_ratio == pytest.approx(1 / 6)
    assert "List" not in groups(capacity) or groups(capacity)["List"].workers == 1


def test_a_stage_that_drops_everything_leaves_nothing_to_the_next_one() -> None:
    plan = plan_of(stage("Filter"), stage("After", fusible=False))
    capacity = plan_capacity(
        plan, ClusterSpec(cpus=8), {"Filter": StageSpeed(1.0, outputs=0), "After": StageSpeed(1.0)}
    )
    assert capacity.limit == "Filter"
    assert groups(capacity)["After"].busy_ratio == 0


def test_groups_that_do_not_fit_together_run_one_after_the_other() -> None:
    plan = plan_of(stage("A", gpus=1), stage("B", gpus=1, fusible=False))
    cluster = ClusterSpec(cpus=8, gpus=1)
    capacity = plan_capacity(plan, cluster, dict.fromkeys("AB", StageSpeed(1.0)))
    assert (capacity.is_streaming, capacity.limit_kind, capacity.tasks_per_s) == (False, "turns", 0.5)
    assert "limited by the groups, which run one after the other" in str(capacity)
    assert plan_capacity(plan, cluster, dict.fromkeys("AB", StageSpeed(0))).limit_kind == "driver"


def test_batch_mode_runs_one_group_after_the_other() -> None:
    plan = plan_of(stage("A"), stage("B", fusible=False))
    cluster, speeds = ClusterSpec(cpus=32), dict.fromkeys("AB", StageSpeed(1.0))
    capacity = plan_capacity(plan, cluster, speeds, {"execution_mode": "batch"})
    assert capacity.limit_kind == "turns"
    assert [group.workers for group in capacity.groups] == [30, 30]


def test_an_embedded_ray_declares_the_cpus_that_the_stages_need() -> None:
    plan = plan_of(*(stage(name, fusible=False) for name in "ABCD"))
    capacity = plan_capacity(plan, ClusterSpec(cpus=2, is_embedded=True), dict.fromkeys("ABCD", StageSpeed(1.0, 1.0)))
    assert [group.workers for group in capacity.groups] == [1, 1, 1, 1]
    assert (capacity.limit_kind, capacity.tasks_per_s, capacity.idle_cpus) == ("cores", 0.5, 0)


def test_an_spmd_group_is_one_worker() -> None:
    model = stage("Model", gpus=8, xenna_stage_spec={"is_spmd": True})
    capacity = plan_capacity(plan_of(model), ClusterSpec(nodes=4, **H100), {"Model": StageSpeed(2.0)})
    assert (groups(capacity)["Model"].workers, capacity.tasks_per_s) == (4, 2.0)


def test_the_speeds_of_a_run_are_sufficient() -> None:
    pipeline = Pipeline("p", [Source().with_(name="List"), stage("Work")])
    result = pipeline.run(LocalExecutor())
    listed, worked = result.stages
    assert result.speeds == {
        "List": StageSpeed(listed.process_s, listed.cpu_s, 10),
        "Work": StageSpeed(worked.process_s / 10, worked.cpu_s / 10, 1),
    }
    capacity = plan_capacity(pipeline.compile(), ClusterSpec(cpus=4), result.speeds)
    assert capacity.tasks_per_s < 10 / listed.process_s


def test_a_plan_is_shown_as_a_table() -> None:
    shown = str(plan_capacity(VIDEO, ClusterSpec(nodes=2, **H100), SPEEDS)).splitlines()
    assert shown[0].split() == ["group", "workers", "cpus", "each", "gpus", "each", "tasks/s", "busy"]
    assert [line.split()[0] for line in shown[1:5]] == ["Split", "Decode", "Caption", "Write"]
    assert "source tasks per second, limited by 'Caption'" in shown[5]
    assert shown[6].startswith("idle: ")


# --- bad input ------------------------------------------------------------------------------------------


def test_a_cluster_that_is_too_small_is_an_error_that_says_what_to_change() -> None:
    with pytest.raises(ResourcesError, match="does not fit the cluster") as raised:
        plan_capacity(VIDEO, ClusterSpec(cpus=96), SPEEDS)
    assert (raised.value.stage, raised.value.field) == ("Decode", "resources")
    assert "larger cluster" in raised.value.hint


@pytest.mark.parametrize(
    ("speeds", "message", "stage_name", "hint"),
    [
        ({**SPEEDS, "Captoin": StageSpeed(1.0)}, "unknown stage", None, "'Caption'"),
        ({**SPEEDS, "Write": StageSpeed(-1.0)}, "invalid", "Write", None),
        ({**SPEEDS, "Write": 5}, "invalid", "Write", None),
        (5, "invalid speeds", None, None),
        ({name: SPEEDS[name] for name in ("Split", "Decode", "Write")}, "missing", "Caption", "more tasks"),
    ],
)
def test_speeds_are_checked(
    speeds: dict[str, StageSpeed], message: str, stage_name: str | None, hint: str | None
) -> None:
    with pytest.raises(ExecutorError, match=message) as raised:
        plan_capacity(VIDEO, ClusterSpec(nodes=2, **H100), speeds)
    assert raised.value.stage == stage_name
    assert hint is None or hint in raised.value.hint


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"cpus": 0}, "cpus"),
        ({"gpu": None}, "gpu"),
        ({"is_embedded": "no"}, "is_embedded"),
        ({"nodes": 0}, "nodes"),
        ({"nodes": 2.5}, "nodes"),
        ({"cpus": True}, "cpus"),
        ({"gpus": -1}, "gpus"),
        ({"gpu_memory_gb": float("nan")}, "gpu_memory_gb"),
        ({"nodes": 2, "is_embedded": True}, "nodes"),
    ],
)
def test_clusters_are_checked(given: dict[str, Any], field: str) -> None:
    with pytest.raises(ExecutorError, match="invalid cluster") as raised:
        ClusterSpec(**{"cpus": 8, **given})
    assert raised.value.field == field


@pytest.mark.parametrize("cluster", [None, [], "abc", {"cpus": 8}, [ClusterSpec(8), ClusterSpec(8, is_embedded=True)]])
def test_anything_but_nodes_is_rejected(cluster: Any) -> None:
    with pytest.raises(ExecutorError, match="invalid cluster"):
        plan_capacity(VIDEO, cluster, SPEEDS)


def test_a_pipeline_must_be_compiled() -> None:
    plan: Any = Pipeline("p", [stage("A")])
    with pytest.raises(ExecutorError, match="not compiled") as raised:
        plan_capacity(plan, ClusterSpec(cpus=8), {"A": StageSpeed(1.0)})
    assert "compile(fed=True)" in raised.value.hint


def test_a_source_without_tasks_says_nothing_about_the_others() -> None:
    plan = plan_of(Source().with_(name="List"), stage("Work"), fed=False)
    with pytest.raises(ExecutorError, match="the source gave no tasks"):
        plan_capacity(plan, ClusterSpec(cpus=8), {"List": StageSpeed(1.0, outputs=0), "Work": StageSpeed(1.0)})


def test_settings_that_the_executor_refuses_are_refused() -> None:
    with pytest.raises(StageDefinitionError, match="min_workers"):
        plan_capacity(plan_of(stage("A", min_workers=20)), ClusterSpec(cpus=32), {"A": StageSpeed(1.0)})


@pytest.mark.skipif(version("cosmos-xenna").startswith("0.2."), reason="Xenna 0.2 can place these stages")
def test_what_xenna_cannot_place_is_an_error() -> None:
    """The check before a run fills the fullest node first, and Xenna places workers in another order."""
    plan = plan_of(
        stage("A", cpus=0.25, gpus=1, fusible=False),
        stage("B", cpus=2, gpus=0.5, fusible=False),
        stage("C", cpus=1, gpus=1 / 3, num_workers=3, fusible=False),
        stage("D", cpus=0.5, gpus=1, fusible=False),
    )
    speeds = dict.fromkeys("ABCD", StageSpeed(1.0))
    with pytest.raises(ResourcesError, match="Xenna cannot place one worker of each group"):
        plan_capacity(plan, ClusterSpec(nodes=2, cpus=9, gpus=2), speeds)


def test_the_environment_is_unchanged() -> None:
    before = dict(os.environ)
    plan_capacity(VIDEO, ClusterSpec(nodes=2, **H100), SPEEDS)
    assert dict(os.environ) == before


def test_a_version_of_xenna_without_this_autoscaler_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cosmos_xenna.pipelines.private.autoscaling_algorithms", None)
    monkeypatch.delattr("cosmos_xenna.pipelines.private.autoscaling_algorithms", raising=False)
    with pytest.raises(ExecutorError, match="cannot show how it allocates workers") as raised:
        plan_capacity(VIDEO, ClusterSpec(nodes=2, **H100), SPEEDS)
    assert raised.value.expected == "cosmos-xenna 0.2.0 to 0.5.12"


def test_settings_of_the_executor_apply() -> None:
    cluster = ClusterSpec(nodes=8, cpus=32)
    plan, speeds = plan_of(stage("A"), stage("B")), dict.fromkeys("AB", StageSpeed(1.0))
    fused = plan_capacity(plan, cluster, speeds)
    apart = plan_capacity(plan, cluster, speeds, XennaConfig(fuse=False, max_workers_per_stage=4))
    assert [group.name for group in fused.groups] == ["A+B"]
    assert [(group.name, group.workers) for group in apart.groups] == [("A", 4), ("B", 4)]
