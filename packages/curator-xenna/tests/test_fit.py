# SPDX-License-Identifier: Apache-2.0
"""The steps that are taken if a plan does not fit the cluster, each logged in one line."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator_core import EmptyTask, ProcessingStage, Resources, ResourcesError, Task
from curator_core._plan.plan import Plan
from curator_xenna import XennaConfig
from curator_xenna._cluster.nodes import Node
from curator_xenna._convert.resources import Gpu, Share
from curator_xenna._placement.placement import Fit, Placement, check_fit, fit

H100 = Gpu("NVIDIA H100 80GB HBM3", 85.9)

UNEQUAL = "streaming does not fit: stages that request different numbers of CPUs share workers"
FAN_OUTS = "streaming does not fit: stages share workers even across stages that fan out"
BATCH = "streaming does not fit: the stages run one after the other, with all tasks in memory in between"

APART = {"fusible": False}
SPLIT = {"fans_out": True}


def declares(cpus: int, there_are: int) -> str:
    return f"streaming does not fit: Ray declares {cpus} CPUs for stages that share {there_are}"


class Stage(ProcessingStage[Task, Task]):
    def process(self, task: Task) -> Task:
        return task


class Source(ProcessingStage[EmptyTask, Task]):
    def process(self, task: EmptyTask) -> Task:
        return Task(data=1)


def machine(cpus: int, gpus: int = 0) -> list[Node]:
    return [Node("a", cpus, (H100,) * gpus)]


def asking(**resources: Any) -> dict[str, Any]:
    return {"resources": Resources(**resources)}


def fitted(
    nodes: list[Node], *stages: dict[str, Any], source: bool = False, may_declare: bool = True, **config: Any
) -> Fit:
    """Return how stages s0, s1 … with these settings run, optionally after a source."""
    made: list[Any] = [Source().with_(name="read", **stages[0])] if source else []
    made += [Stage().with_(name=f"s{number}", **given) for number, given in enumerate(stages[source:])]
    plan = Plan.from_stages(made, fed=not source)
    return fit(plan.stages, nodes, XennaConfig(**config), has_source=source, may_declare=may_declare)


@pytest.mark.parametrize(
    ("stages", "cpus", "expected"),
    [
        ([asking(cpus=0.25)], 2, [2]),
        ([{**asking(cpus=0.25), "num_workers": 8}], 2, [8]),
        ([asking(cpus=0.25), {**asking(cpus=0.25), "fusible": False}], 2, [2, 2]),
        ([asking(cpus=0.75), {**asking(cpus=0.75), "fusible": False}], 2, [1, 1]),
        ([asking(cpus=0.25), {**asking(cpus=1), "fusible": False}], 2, [2, None]),
        ([asking(cpus=1)], 2, [None]),
    ],
)
def test_small_groups_have_no_more_workers_than_an_embedded_rays_machine_has_cores(
    stages: list[dict[str, Any]], cpus: int, expected: list[int | None]
) -> None:
    made = [Stage().with_(name=f"s{number}", **given) for number, given in enumerate(stages)]
    stages = Plan.from_stages(made, fed=True).stages
    found = fit(stages, machine(cpus), XennaConfig(), has_source=False, may_declare=True, cores=cpus)
    assert workers(found) == expected


def names(found: Fit) -> list[str]:
    return [placement.group.name for placement in found.placements]


def workers(found: Fit) -> list[int | None]:
    return [placement.workers for placement in found.placements]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """A function that returns the logged lines."""
    caplog.set_level(logging.INFO, "curator_xenna._placement.placement")
    return lambda: [
        record.getMessage() for record in caplog.records if record.name == "curator_xenna._placement.placement"
    ]


# --- step by step ---------------------------------------------------------------------------------------


def test_a_plan_that_fits_is_not_changed(lines: Any) -> None:
    found = fitted(machine(4), {}, SPLIT, {}, asking(cpus=2))
    assert names(found) == ["s0+s1", "s2", "s3"]
    assert (found.streaming, found.cpus, lines()) == (True, 0, [])
    assert workers(found) == [None, None, None]


def test_the_first_step_lets_stages_of_unequal_cpus_share_workers(lines: Any) -> None:
    found = fitted(machine(3), {}, asking(cpus=2), SPLIT, {})
    assert names(found) == ["s0+s1+s2", "s3"]
    assert [placement.share.cpus for placement in found.placements] == [2, 1]
    assert (found.streaming, found.cpus) == (True, 0)
    assert lines() == [UNEQUAL]


def test_the_second_step_lets_stages_share_workers_across_fan_outs(lines: Any) -> None:
    found = fitted(machine(2), {}, asking(cpus=2), SPLIT, {})
    assert names(found) == ["s0+s1+s2+s3"]
    assert (found.streaming, found.cpus) == (True, 0)
    assert lines() == [UNEQUAL, FAN_OUTS]


def test_a_step_without_effect_is_not_logged(lines: Any) -> None:
    found = fitted(machine(1), {}, SPLIT, {})
    assert names(found) == ["s0+s1+s2"]
    assert lines() == [FAN_OUTS]


def test_the_third_step_declares_more_cpus(lines: Any) -> None:
    found = fitted(machine(2), {}, APART, {}, SPLIT, asking(cpus=1.5))
    assert names(found) == ["s0", "s1", "s2+s3+s4"]
    assert (found.streaming, found.cpus) == (True, 4)  # 1 + 1 + 1.5
    assert lines() == [FAN_OUTS, declares(4, 2)]


def test_each_step_before_more_cpus_is_logged(lines: Any) -> None:
    stages = [asking(cpus=2), {}, SPLIT, {}, {**asking(cpus=2), **APART}]
    assert names(fitted(machine(2), *stages)) == ["s0+s1+s2+s3", "s4"]
    assert lines() == [UNEQUAL, FAN_OUTS, declares(4, 2)]


def test_fusion_is_not_logged_if_nothing_is_fused(lines: Any) -> None:
    assert names(fitted(machine(2), asking(cpus=2), SPLIT, fuse=False)) == ["s0", "s1"]
    assert lines() == [declares(3, 2)]


def test_batch_mode_is_the_last_step(lines: Any) -> None:
    found = fitted(machine(2), {}, APART, {}, SPLIT, asking(cpus=2), may_declare=False)
    assert names(found) == ["s0", "s1", "s2+s3", "s4"]  # nothing is fused more than necessary
    assert (found.streaming, found.cpus) == (False, 0)
    assert lines() == [BATCH]


@pytest.mark.parametrize("may_declare", [True, False])
@pytest.mark.parametrize("config", [{}, {"fuse": False}, {"execution_mode": "batch"}, {"max_workers_per_stage": 2}])
def test_only_stages_larger_than_the_machine_fail(may_declare: bool, config: dict[str, Any], lines: Any) -> None:
    with pytest.raises(ResourcesError, match="does not fit the cluster: one worker is larger than any node"):
        fitted(machine(2), {}, asking(cpus=3), {}, may_declare=may_declare, **config)
    assert lines() == []


def test_the_error_has_a_table_and_the_setting_to_change() -> None:
    stages = [{}, {**asking(cpus=9, gpus=0.5), "num_workers": 2}, asking(cpus=2)]
    nodes = [Node("a", 8, (H100,)), Node("b", 4, ())]
    with pytest.raises(ResourcesError) as caught:
        fitted(nodes, *stages, may_declare=False)
    assert (caught.value.stage, caught.value.field) == ("s1", "resources")
    assert caught.value.expected.splitlines() == [
        "at most what is available:",
        "    stage                    workers  cpus each  gpus each",
        "    s0                             1          1          0",
        "    s1                             2          9        0.5",
        "    s2                             1          2          0",
        "    available on each node: 8 CPUs and 1 GPUs, 4 CPUs and 0 GPUs",
    ]
    assert (
        caught.value.hint
        == "lower the resources of 's1' to fit a node with 8 CPUs and 1 GPUs, or run on a larger cluster"
    )


def test_a_worker_that_is_too_large_has_a_hint_to_request_less() -> None:
    with pytest.raises(ResourcesError) as caught:
        fitted(machine(2), {}, APART, {**asking(cpus=4), **APART})
    assert caught.value.stage == "s2"
    assert caught.value.given == repr(Resources(cpus=4))
    assert (
        caught.value.hint
        == "lower the resources of 's2' to fit a node with 2 CPUs and 0 GPUs, or run on a larger cluster"
    )


@pytest.mark.parametrize("may_declare", [True, False])
def test_requested_workers_must_fit(may_declare: bool) -> None:
    with pytest.raises(ResourcesError, match="its workers do not fit together") as caught:
        fitted(machine(2), {}, {"num_workers": 3}, may_declare=may_declare)
    assert caught.value.stage == "s1"
    assert caught.value.hint == "lower the number of workers of 's1' to 2 or fewer, or run on a larger cluster"


def test_an_error_names_the_node_with_most_of_the_missing_resource() -> None:
    nodes = [Node("a", 8, (H100,)), Node("b", 64, ())]
    for asked, has in ((asking(cpus=100), "64 CPUs and 0 GPUs"), (asking(cpus=9, gpus=1), "8 CPUs and 1 GPUs")):
        with pytest.raises(ResourcesError) as caught:
            fitted(nodes, asked, may_declare=False)
        assert f"to fit a node with {has}" in caught.value.hint


def test_gpus_cannot_be_declared() -> None:
    with pytest.raises(ResourcesError, match="its workers do not fit together") as caught:
        fitted(machine(2, gpus=2), {**asking(gpus=0.6), "num_workers": 5})
    assert caught.value.hint == "lower the number of workers of 's0' to 2 or fewer, or run on a larger cluster"


@pytest.mark.parametrize("may_declare", [True, False])
@pytest.mark.parametrize("config", [{}, {"fuse": False}, {"max_workers_per_stage": 2}, {"execution_mode": "batch"}])
@pytest.mark.parametrize("stages", [[asking(cpus=3)], [{}, {"num_workers": 3}], [asking(gpus=0.5)], [{}, {}]])
def test_a_plan_that_does_not_fit_is_an_error_before_the_run(
    stages: list[dict[str, Any]], config: dict[str, Any], may_declare: bool
) -> None:
    stages = Plan.from_stages([Stage().with_(name=f"s{n}", **given) for n, given in enumerate(stages)], fed=True).stages
    told = []
    for decide in (check_fit, partial(fit, may_declare=may_declare)):
        try:
            decide(stages, machine(2), XennaConfig(**config), has_source=False)
        except ResourcesError as error:
            told.append(str(error))
        else:
            told.append("")
    assert told[0] == told[1]


# --- twelve stages of one CPU ---------------------------------------------------------------------------

TWELVE = [{} for _ in range(12)]


@pytest.mark.parametrize("cpus", [1, 2])
def test_twelve_equal_stages_are_one_group(cpus: int, lines: Any) -> None:
    found = fitted(machine(cpus), *TWELVE)
    assert len(found.placements) == 1
    assert (found.streaming, found.cpus, lines()) == (True, 0, [])


@pytest.mark.parametrize("cpus", [1, 2])
def test_twelve_fan_outs_are_one_group(cpus: int, lines: Any) -> None:
    found = fitted(machine(cpus), *[SPLIT] * 12)
    assert len(found.placements) == 1
    assert (found.streaming, found.cpus, lines()) == (True, 0, [FAN_OUTS])


@pytest.mark.parametrize("cpus", [1, 2])
@pytest.mark.parametrize("how", [{"config": {"fuse": False}}, {"settings": APART}])
def test_cpus_are_declared_for_twelve_stages_that_refuse_to_share(cpus: int, how: dict[str, Any], lines: Any) -> None:
    found = fitted(machine(cpus), *[how.get("settings", {})] * 12, **how.get("config", {}))
    assert len(found.placements) == 12
    assert (found.streaming, found.cpus, lines()) == (True, 12, [declares(12, cpus)])


@pytest.mark.parametrize("cpus", [1, 2])
def test_twelve_stages_on_a_joined_cluster_run_in_batch_mode(cpus: int, lines: Any) -> None:
    found = fitted(machine(cpus), *[APART] * 12, may_declare=False)
    assert len(found.placements) == 12
    assert (found.streaming, found.cpus, lines()) == (False, 0, [BATCH])


def test_without_fusion_twelve_stages_that_fit_stay_separate(lines: Any) -> None:
    found = fitted(machine(12), *TWELVE, fuse=False)
    assert names(found) == [f"s{number}" for number in range(12)]
    assert (found.streaming, found.cpus, lines()) == (True, 0, [])


@pytest.mark.parametrize("cpus", [1, 2])
def test_twelve_stages_fit_beside_a_source_with_a_worker(cpus: int, lines: Any) -> None:
    found = fitted(machine(cpus), {"runtime_env": {}}, *TWELVE, source=True)
    assert [len(placement.group.stages) for placement in found.placements] == [1, 12]
    assert (found.cpus, lines()) == ((0, []) if cpus == 2 else (2, [declares(2, 1)]))


# --- workers --------------------------------------------------------------------------------------------


def test_a_source_gets_one_worker() -> None:
    assert workers(fitted(machine(4), {}, {}, source=True)) == [1, None]
    assert workers(fitted(machine(4), {}, {}, source=True, execution_mode="batch")) == [1, None]
    assert workers(fitted(machine(4), {}, {})) == [None]


def test_a_source_gets_the_requested_workers() -> None:
    assert workers(fitted(machine(4), {"num_workers": 2}, {}, source=True)) == [2, None]


def test_unset_worker_counts_are_left_to_the_autoscaler() -> None:
    assert workers(fitted(machine(8), {}, {"num_workers": 3}, {"num_workers": 3})) == [None, 3]


@pytest.mark.parametrize(("per_node", "expected"), [(1, 2), (1.5, 3), (0.5, 1), (0.7, 2)])
def test_workers_per_node_are_counted(per_node: float, expected: int) -> None:
    nodes = [Node("a", 8, ()), Node("b", 8, ())]
    assert workers(fitted(nodes, {"xenna_stage_spec": {"num_workers_per_node": per_node}})) == [expected]


def test_no_stage_has_more_workers_than_the_limit(lines: Any) -> None:
    nodes = [Node("a", 8, ()), Node("b", 4, ())]
    stages = [APART, {**APART, "num_workers": 5}, {**APART, "num_workers": 1}]
    assert workers(fitted(nodes, *stages, max_workers_per_stage=3)) == [3, 3, 1]
    assert set(lines()) == {"stage 's1' gets 3 workers, not the 5 that it requests: limited by max_workers_per_stage"}


def test_the_limit_leaves_room_for_all_stages() -> None:
    found = fitted(machine(12), APART, asking(cpus=3), APART, max_workers_per_stage=100)
    assert workers(found) == [3, 2, 3]  # 3 + 2x3 + 3 CPUs of 12


def test_a_limit_on_a_large_cluster_is_distributed_in_large_steps() -> None:
    nodes = [Node(str(number), 64, (H100,)) for number in range(24)]  # one by one, this takes 30 times as long
    stages = [APART, {**APART, "max_workers": 300}, asking(cpus=2, gpus=0.5), {**APART, "max_workers": 900}]
    assert workers(fitted(nodes, *stages, max_workers_per_stage=700)) == [570, 300, 48, 570]


def test_the_worker_limit_applies_to_gpu_stages() -> None:
    assert workers(fitted(machine(12, gpus=1), asking(gpus=0.5), {}, max_workers_per_stage=4)) == [2, 4]


def test_the_worker_limit_applies_to_a_source() -> None:
    assert workers(fitted(machine(8), {}, {}, source=True, max_workers_per_stage=3)) == [1, 3]


LIMITED = {**APART, "min_workers": 2, "max_workers": 4}


@pytest.mark.parametrize("mode", ["streaming", "batch"])
@pytest.mark.parametrize(("cpus", "expected"), [(2, 2), (3, 3), (4, 4), (8, 4)])
def test_a_stage_with_a_maximum_has_a_fixed_number_of_workers_within_its_limits(
    cpus: int, expected: int, mode: str
) -> None:
    assert workers(fitted(machine(cpus), LIMITED, execution_mode=mode)) == [expected]


def test_a_maximum_leaves_other_stages_their_share() -> None:
    assert workers(fitted(machine(12), APART, {**APART, "max_workers": 8})) == [None, 6]
    assert workers(fitted(machine(12), asking(cpus=2), {**APART, "max_workers": 8})) == [None, 4]
    assert workers(fitted(machine(12), {**APART, "num_workers": 2}, {**APART, "max_workers": 8})) == [2, 8]


@pytest.mark.parametrize(("limit", "expected"), [(3, [3, 3, 2]), (9, [5, 4, 2])])
def test_the_smaller_of_the_limits_of_stage_and_executor_counts(limit: int, expected: list[int]) -> None:
    stages = [{**APART, "max_workers": 5}, LIMITED, {**APART, "max_workers": 2}]
    assert workers(fitted(machine(16), *stages, max_workers_per_stage=limit)) == expected


def test_the_limit_of_the_executor_counts_more_than_a_minimum(lines: Any) -> None:
    assert workers(fitted(machine(8), LIMITED, max_workers_per_stage=1)) == [1]
    assert lines() == ["stage 's0' gets 1 workers, not the 2 that it requests: limited by max_workers_per_stage"]


def test_a_minimum_of_one_leaves_the_number_to_the_autoscaler() -> None:
    assert workers(fitted(machine(8), {"min_workers": 1}, {**APART, "num_workers": 2})) == [None, 2]


def test_a_source_on_xenna_has_its_minimum() -> None:
    assert workers(fitted(machine(8), {"max_workers": 4}, {}, source=True)) == [1, None]
    assert workers(fitted(machine(8), {"min_workers": 2, "max_workers": 4}, {}, source=True)) == [2, None]


def test_a_minimum_must_fit() -> None:
    found = fitted(machine(4), LIMITED, {**APART, "min_workers": 3, "max_workers": 4})
    assert (found.streaming, found.cpus, workers(found)) == (True, 5, [2, 3])
    with pytest.raises(ResourcesError, match="its workers do not fit together") as caught:
        fitted(machine(4, gpus=1), {**asking(gpus=0.5), "min_workers": 3, "max_workers": 4})
    assert "lower the number of workers of 's0' to 2 or fewer" in caught.value.hint


def test_in_batch_mode_each_stage_has_the_cluster(lines: Any) -> None:
    found = fitted(machine(12), APART, APART, max_workers_per_stage=10, execution_mode="batch")
    assert workers(found) == [10, 10]
    assert (found.streaming, found.cpus, lines()) == (False, 0, [])


def test_batch_mode_needs_only_the_largest_stage(lines: Any) -> None:
    found = fitted(machine(8), asking(cpus=8), {**asking(cpus=8), **APART}, {}, execution_mode="batch")
    assert names(found) == ["s0", "s1", "s2"]
    assert (found.streaming, workers(found), lines()) == (False, [None] * 3, [])


def test_fractions_of_a_cpu_are_added() -> None:
    found = fitted(machine(1), *[{**asking(cpus=1 / 9), **APART}] * 9)  # 1 - 8/9 is slightly less than 1/9
    assert (found.streaming, found.cpus) == (True, 0)


# --- GPUs -----------------------------------------------------------------------------------------------

HALF, WHOLE, TWO = asking(gpus=0.5), asking(gpus=1), asking(gpus=2)


@pytest.mark.parametrize(
    ("gpus", "stages", "fits"),
    [
        (1, [HALF, HALF], True),
        (1, [HALF, HALF, HALF], False),
        (2, [HALF, HALF, HALF], True),
        (1, [HALF, WHOLE], False),
        (2, [HALF, WHOLE], True),
        (2, [HALF, WHOLE, HALF], True),
        (2, [HALF, TWO], False),
        (3, [HALF, TWO], True),
        (2, [TWO], True),
        (2, [asking(gpus=0.6), asking(gpus=0.6), asking(gpus=0.4)], True),
        (1, [asking(gpus=0.6), asking(gpus=0.6)], False),
        (1, [asking(gpus=1 / 9)] * 9, True),
        (1, [asking(nvdecs=1)] * 7, True),
        (1, [asking(nvdecs=1)] * 8, False),
        (1, [asking(gpu_memory_gb=40)] * 2, True),
        (1, [asking(gpu_memory_gb=50)] * 2, False),
        (1, [asking(entire_gpu=True), HALF], False),
        (2, [{**HALF, "num_workers": 3}, HALF], True),
        (1, [{**HALF, "num_workers": 2}, HALF], False),
    ],
)
@pytest.mark.parametrize("may_declare", [True, False])
def test_gpus_are_divided_or_used_in_batch_mode(
    gpus: int, stages: list[Any], fits: bool, may_declare: bool, lines: Any
) -> None:
    found = fitted(machine(16, gpus), *stages, may_declare=may_declare)
    assert (found.streaming, found.cpus) == (fits, 0)
    assert lines() == ([] if fits else [BATCH])
    assert len(found.placements) == len(stages)


@pytest.mark.parametrize(
    ("nodes", "stage"),
    [
        (machine(8, 1), TWO),
        ([Node("a", 8, (H100,)), Node("b", 8, (H100,))], TWO),
        (machine(8, 1), {**HALF, "num_workers": 3}),
        (machine(2, 1), asking(cpus=3, gpus=0.5)),
        ([Node("a", 8, ()), Node("b", 2, (H100,))], asking(cpus=3, gpus=0.5)),
    ],
)
def test_a_gpu_stage_that_does_not_fit_fails(nodes: list[Node], stage: dict[str, Any]) -> None:
    with pytest.raises(ResourcesError, match="does not fit the cluster") as caught:
        fitted(nodes, {}, stage)
    assert caught.value.stage == "s1"


def test_missing_cpus_are_declared_if_the_gpus_suffice(lines: Any) -> None:
    found = fitted(machine(2, gpus=1), {}, HALF, {})
    assert names(found) == ["s0", "s1", "s2"]
    assert (found.streaming, found.cpus, lines()) == (True, 3, [declares(3, 2)])


def test_missing_gpus_cannot_be_declared(lines: Any) -> None:
    found = fitted(machine(2, gpus=1), {}, WHOLE, {}, WHOLE)
    assert (found.streaming, found.cpus, lines()) == (False, 0, [BATCH])


def test_gpu_stages_share_a_worker_on_request(lines: Any) -> None:
    both = {**WHOLE, "fusible": True}
    found = fitted(machine(4, gpus=1), {}, both, both)
    assert names(found) == ["s0", "s1+s2"]
    assert [placement.share for placement in found.placements] == [Share(1, 0), Share(1, 1)]
    assert (found.streaming, lines()) == (True, [])


def test_a_gpu_stage_is_placed_before_cpu_stages_take_its_node(lines: Any) -> None:
    nodes = [Node("a", 4, (H100,)), Node("b", 4, ())]
    assert fitted(nodes, asking(cpus=4), asking(cpus=4, gpus=1), may_declare=False).streaming
    assert lines() == []


def test_the_ranks_of_an_spmd_group_can_be_on_several_nodes() -> None:
    nodes = [Node("a", 4, (H100,)), Node("b", 4, (H100,))]
    spmd = {**asking(cpus=4, gpus=2), "xenna_stage_spec": {"is_spmd": True}}
    assert fitted(nodes, spmd).streaming
    with pytest.raises(ResourcesError, match="larger than any node"):
        fitted(nodes, asking(cpus=4, gpus=2))


# --- any CPU pipeline -----------------------------------------------------------------------------------

a_stage = st.fixed_dictionaries(
    {"resources": st.sampled_from([Resources(cpus=cpus) for cpus in (0.25, 1 / 3, 1, 2, 4)])},
    optional={"fusible": st.booleans(), "fans_out": st.booleans(), "runtime_env": st.just({})},
)


@given(st.lists(a_stage, min_size=1, max_size=9), st.integers(4, 12), st.booleans(), st.booleans())
def test_any_cpu_pipeline_whose_largest_stage_fits_runs(
    stages: list[dict[str, Any]], cpus: int, fuse: bool, may_declare: bool
) -> None:
    found = fitted(machine(cpus), *stages, may_declare=may_declare, fuse=fuse)
    asked = sum(placement.least_cpus for placement in found.placements)
    kept = [compiled.name for placement in found.placements for compiled in placement.group.stages]
    assert kept == [f"s{number}" for number in range(len(stages))]
    assert found.streaming or not may_declare
    if found.streaming:
        assert asked <= (found.cpus or cpus) + 1e-6
        assert found.cpus == 0 or (may_declare and found.cpus > cpus and found.cpus < asked + 1)


def test_a_placement_has_its_minimum_resources() -> None:
    (placement,) = fitted(machine(8), {**asking(cpus=1.5), "num_workers": 2}).placements
    assert isinstance(placement, Placement)
    assert (placement.least_workers, placement.least_cpus) == (2, 3)
    (placement,) = fitted(machine(8), asking(cpus=1.5)).placements
    assert (placement.least_workers, placement.least_cpus) == (1, 1.5)


# --- regressions ----------------------------------------------------------------------------------------


def test_in_batch_mode_the_limit_applies_to_each_stage() -> None:
    found = fitted(machine(2), *[APART] * 3, may_declare=False, max_workers_per_stage=2)
    assert not found.streaming
    assert workers(found) == [2, 2, 2]  # as with execution_mode="batch"


@pytest.mark.parametrize("cpus", [8, 3])
def test_fewer_workers_than_requested_are_logged_once(cpus: int, lines: Any) -> None:
    fitted(machine(cpus), asking(cpus=2), {**SPLIT, "num_workers": 2}, {}, max_workers_per_stage=1)
    assert sum("max_workers_per_stage" in line for line in lines()) == 1
