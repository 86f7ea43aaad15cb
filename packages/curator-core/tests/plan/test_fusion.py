# SPDX-License-Identifier: Apache-2.0
"""Which stages share a worker, and why others do not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.pipelines import pipelines

from curator_core import EmptyTask, Plan, ProcessingStage, Resources, Task, processing_stage
from curator_core._plan.groups import FusionLevel, StageGroup, group_stages
from curator_core._transport.pickling import dumps, loads

GPU = {"resources": Resources(gpus=0.5)}
SHARED_GPU = {**GPU, "fusible": True}
LEVELS = list(FusionLevel)


class Pass(ProcessingStage[Task, Task]):
    def process(self, task):
        return task


class Batches(ProcessingStage[Task, Task]):
    def process_batch(self, tasks):
        return tasks


class Source(ProcessingStage[EmptyTask, Task]):
    def process(self, task):
        return Task(data=1)


def plan_of(*stages: dict[str, Any], source: bool = False) -> Plan:
    """Return a plan of stages named a, b, c … with these settings."""
    named = [{"name": name, **given} for name, given in zip("abcdefghijkl", stages, strict=False)]
    first = [Source().with_(name="read")] if source else []
    return Plan.from_stages(
        [*first, *((Batches if "batch_size" in given else Pass)().with_(**given) for given in named)],
        "p",
        fed=not source,
    )


def groups_of(
    *stages: dict[str, Any], fusion: FusionLevel = FusionLevel.EQUAL, source: bool = False
) -> tuple[StageGroup, ...]:
    plan = plan_of(*stages, source=source)
    return group_stages(plan.stages, fusion, has_source=plan.has_source)


def names_of(groups: tuple[StageGroup, ...]) -> list[str]:
    return [group.name for group in groups]


def asking(**resources: Any) -> dict[str, Any]:
    return {"resources": Resources(**resources)}


# --- reasons for a boundary -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {}),
        ({}, {"fusible": True}),
        ({}, {"batch_size": 8}),
        ({}, {"max_attempts": 3}),
        ({"fans_out": False}, {"fans_out": True}),
        ({"full_batches": True, "batch_size": 4}, {}),
        ({}, {"full_batches": True, "batch_size": 1}),
        (asking(cpus=2.5), asking(cpus=2.5)),
        ({"num_workers": 3}, {"num_workers": 3}),
        ({"runtime_env": {"pip": ["x"]}}, {"runtime_env": {"pip": ["x"]}}),
        ({"xenna_stage_spec": {"slots_per_actor": 3}}, {"xenna_stage_spec": {"slots_per_actor": 3}}),
        (SHARED_GPU, SHARED_GPU),
        ({**asking(entire_gpu=True), "fusible": True}, {**asking(entire_gpu=True), "fusible": True}),
        ({**asking(nvdecs=1), "fusible": True}, {**asking(nvdecs=1), "fusible": True}),
    ],
)
def test_stages_that_need_the_same_share_a_worker(first, second):
    (group,) = groups_of(first, second)
    assert group.name == "a+b"
    assert group.boundary == ""


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ({"fusible": False}, {}, "'a' sets fusible=False"),
        ({}, {"fusible": False}, "'b' sets fusible=False"),
        ({"fusible": True}, {"fusible": False}, "'b' sets fusible=False"),
        ({"fans_out": True}, {}, "'a' fans out, so its outputs are redistributed"),
        ({}, asking(cpus=2), "'b' asks for cpus=2, 'a' for 1"),
        (asking(cpus=0.5), {}, "'b' asks for cpus=1, 'a' for 0.5"),
        ({}, asking(gpus=1), "'b' asks for gpus=1, 'a' for 0"),
        (asking(gpus=0.5), asking(gpus=0.25), "'b' asks for gpus=0.25, 'a' for 0.5"),
        (asking(gpu_memory_gb=8), asking(gpu_memory_gb=9), "'b' asks for gpu_memory_gb=9, 'a' for 8"),
        (asking(nvdecs=1), asking(nvdecs=2), "'b' asks for nvdecs=2, 'a' for 1"),
        (asking(nvencs=1), {}, "'b' asks for nvencs=0, 'a' for 1"),
        ({}, asking(entire_gpu=True), "'b' asks for entire_gpu=1, 'a' for 0"),
        ({**GPU, "fusible": True}, {"fusible": True}, "'b' asks for gpus=0, 'a' for 0.5"),
        (GPU, GPU, "'a' asks for a GPU and does not set fusible=True"),
        (SHARED_GPU, GPU, "'b' asks for a GPU and does not set fusible=True"),
        (GPU, SHARED_GPU, "'a' asks for a GPU and does not set fusible=True"),
        (asking(nvdecs=1), asking(nvdecs=1), "'a' asks for a GPU and does not set fusible=True"),
        ({"num_workers": 2}, {}, "'b' and 'a' differ in num_workers"),
        ({"num_workers": 2}, {"num_workers": 3}, "'b' and 'a' differ in num_workers"),
        ({"runtime_env": {"pip": ["x"]}}, {}, "'b' and 'a' differ in runtime_env"),
        ({}, {"runtime_env": {"env_vars": {"KEY": "s3cret"}}}, "'b' and 'a' differ in runtime_env"),
        ({}, {"xenna_stage_spec": {"slots_per_actor": 3}}, "'b' and 'a' differ in engine_options"),
        (
            {"xenna_stage_spec": {"slots_per_actor": 2}},
            {"xenna_stage_spec": {"slots_per_actor": 3}},
            "'b' and 'a' differ in engine_options",
        ),
        (
            {},
            {"full_batches": True, "batch_size": 4},
            "'b' needs full batches, filled with tasks from any worker",
        ),
        (
            SHARED_GPU,
            {**SHARED_GPU, "batch_size": 4},
            "'b' needs full batches, filled with tasks from any worker",
        ),
    ],
)
def test_stages_with_different_needs_are_apart_and_explain_says_why(first, second, reason):
    groups = groups_of(first, second)
    assert names_of(groups) == ["a", "b"]
    assert [group.boundary for group in groups] == ["", reason]


def test_a_fan_out_ends_its_group_and_begins_none():
    assert names_of(groups_of({}, {"fans_out": True}, {}, {})) == ["a+b", "c+d"]


def test_an_annotated_fan_out_ends_its_group():
    @processing_stage()
    def split(task: Task) -> list[Task]:
        return [task]

    plan = Plan.from_stages([Pass().with_(name="a"), split, Pass().with_(name="b")], fed=True)
    assert names_of(plan.groups) == ["a+split", "b"]
    assert plan.groups[1].boundary == "'split' fans out, so its outputs are redistributed"


def test_a_stage_is_compared_with_the_one_before_it():
    assert names_of(groups_of({}, asking(cpus=2), {}, {})) == ["a", "b", "c+d"]
    assert names_of(groups_of({}, {"fusible": False}, {})) == ["a", "b", "c"]


# --- fusion levels --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("second", "groups_at"),
    [
        ({}, [2, 1, 1, 1]),
        (asking(cpus=2), [2, 2, 1, 1]),
        (asking(cpus=0.25), [2, 2, 1, 1]),
        ({"num_workers": 2}, [2, 2, 2, 2]),
        ({"runtime_env": {}}, [2, 2, 2, 2]),
        ({"xenna_stage_spec": {"slots_per_actor": 3}}, [2, 2, 2, 2]),
        ({"fusible": False}, [2, 2, 2, 2]),
        (GPU, [2, 2, 2, 2]),
        ({"full_batches": True, "batch_size": 2}, [2, 2, 2, 2]),
    ],
)
def test_each_fusion_level_fuses_as_documented(second, groups_at):
    assert [len(groups_of({}, second, fusion=fusion)) for fusion in LEVELS] == groups_at


def test_only_the_last_level_crosses_fan_outs():
    split = {"fans_out": True}
    assert [len(groups_of(split, {}, fusion=fusion)) for fusion in LEVELS] == [2, 2, 2, 1]
    assert [len(groups_of(split, asking(cpus=2), fusion=fusion)) for fusion in LEVELS] == [2, 2, 2, 1]


def test_gpu_stages_with_different_cpus_share_on_request():
    two = {"resources": Resources(cpus=2, gpus=0.5)}
    assert [len(groups_of(GPU, two, fusion=fusion)) for fusion in LEVELS] == [2, 2, 2, 2]
    asked = [{**GPU, "fusible": True}, {**two, "fusible": True}]
    assert [len(groups_of(*asked, fusion=fusion)) for fusion in LEVELS] == [2, 2, 1, 1]


@pytest.mark.parametrize("fusion", LEVELS)
def test_a_source_forms_its_own_group(fusion):
    groups = groups_of({}, {}, fusion=fusion, source=True)
    assert groups[0].name == "read"
    assert groups[1].boundary == "'read' is a source"
    assert len(groups) == (3 if fusion is FusionLevel.OFF else 2)


def test_with_fusion_off_each_stage_gives_that_reason():
    groups = groups_of({}, {"fusible": True}, asking(cpus=2), fusion=FusionLevel.OFF)
    assert [group.boundary for group in groups] == ["", "fusion is off", "fusion is off"]


# --- a group --------------------------------------------------------------------------------------------


def test_a_group_requests_the_resources_of_its_stages():
    common = {"num_workers": 2, "runtime_env": {"pip": ["x"]}, "xenna_stage_spec": {"slots_per_actor": 3}}
    sizes = [asking(cpus=1), {**asking(cpus=3), "batch_size": 8}, {**asking(cpus=2), "batch_size": 3}]
    (group,) = groups_of(*({**common, **size} for size in sizes), fusion=FusionLevel.UNEQUAL_CPUS)
    assert group.resources == Resources(cpus=3)
    assert (group.num_workers, group.runtime_env) == (2, {"pip": ["x"]})
    assert group.engine_options == {"slots_per_actor": 3}
    assert group.batch_size == 8
    assert [compiled.batch_size for compiled in group.stages] == [1, 8, 3]
    assert not group.full_batches


def test_a_group_of_gpu_stages_requests_one_gpu():
    two = {"resources": Resources(cpus=2, gpus=0.5), "fusible": True}
    (group,) = groups_of(SHARED_GPU, two, fusion=FusionLevel.UNEQUAL_CPUS)
    assert group.resources == Resources(cpus=2, gpus=0.5)


def test_a_stage_with_full_batches_starts_a_group():
    groups = groups_of({}, {"full_batches": True, "batch_size": 4}, {"batch_size": 2})
    assert names_of(groups) == ["a", "b+c"]
    assert [group.full_batches for group in groups] == [False, True]


def test_groups_are_numbered():
    assert [group.index for group in groups_of({}, asking(cpus=2), {}, {})] == [0, 1, 2]


def test_without_stages_there_are_no_groups():
    assert group_stages([]) == ()


# --- the settings of a stage ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "full"),
    [
        ({"batch_size": 4}, False),
        ({"batch_size": 4, "full_batches": True}, True),
        ({"batch_size": 1, "full_batches": True}, False),
        ({**GPU, "batch_size": 4}, True),
        ({**asking(nvencs=1), "batch_size": 4}, True),
        ({**GPU, "batch_size": 4, "full_batches": False}, False),
        (GPU, False),
    ],
)
def test_batches_are_full_on_gpus_and_if_declared(given, full):
    stage = Batches().with_(**given)
    assert Plan.from_stages([stage]).stages[0].full_batches is full


def test_fusion_settings_are_unset_by_default():
    compiled = Plan.from_stages([Pass()]).stages[0]
    assert (Pass().fusible, Pass().fans_out, Pass().full_batches) == (None, None, None)
    assert (compiled.fusible, compiled.fans_out, compiled.full_batches) == (None, False, False)


@pytest.mark.parametrize("fusible", [None, True, False])
def test_a_compiled_stage_has_the_fusion_settings_of_the_stage(fusible):
    assert Plan.from_stages([Pass().with_(fusible=fusible)]).stages[0].fusible is fusible


# --- a plan ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "fed", "has_source"),
    [
        (Source(), None, True),
        (Source(), False, True),
        (Source(), True, False),
        (Pass(), None, False),
        (Pass(), False, True),
        (Pass(), True, False),
    ],
)
def test_whether_a_plan_has_a_source(stage, fed, has_source):
    plan = Plan.from_stages([stage, Pass().with_(name="next")], fed=fed)
    assert plan.has_source is has_source
    assert names_of(plan.groups) == ([stage.name, "next"] if has_source else [f"{stage.name}+next"])


def test_a_plan_explains_its_groups():
    plan = plan_of(
        {},
        {"fans_out": True},
        {"batch_size": 2},
        {},
        GPU,
        {"runtime_env": {"env_vars": {"TOKEN": "s3cret"}}},
        {"fusible": False},
        {"full_batches": True, "batch_size": 3},
        {},
        source=True,
    )
    assert plan.explain().splitlines() == [
        "p: 10 stages in 7 groups",
        "  00 read  (source)",
        "     | 'read' is a source",
        "  01 a + b",
        "     | 'b' fans out, so its outputs are redistributed",
        "  02 c + d",
        "     | 'e' asks for gpus=0.5, 'd' for 0",
        "  03 e",
        "     | 'f' asks for gpus=0, 'e' for 0.5",
        "  04 f",
        "     | 'g' sets fusible=False",
        "  05 g",
        "     | 'g' sets fusible=False",
        "  06 h + i",
    ]


def test_a_plan_of_one_stage_explains_itself():
    assert plan_of({}).explain() == "p: 1 stage in 1 group\n  00 a"
    assert Plan.from_stages([Source()], "p").explain() == "p: 1 stage in 1 group\n  00 Source  (source)"


def test_the_groups_of_a_pickled_plan_are_the_same():
    plan = plan_of({}, {"fans_out": True}, asking(cpus=2), source=True)
    assert loads(dumps(plan)).explain() == plan.explain()


# --- any stages -----------------------------------------------------------------------------------------

in_groups = pipelines(
    most=8,
    resources=st.sampled_from([Resources(), Resources(), Resources(cpus=2), Resources(cpus=0.5), Resources(gpus=0.5)]),
    fusible=st.sampled_from([None, None, True, False]),
    fans_out=st.sampled_from([None, None, True]),
    full_batches=st.sampled_from([None, None, True]),
    num_workers=st.sampled_from([None, None, 2]),
    runtime_env=st.sampled_from([None, None, {"pip": ["x"]}]),
    xenna_stage_spec=st.sampled_from([{}, {}, {"slots_per_actor": 3}]),
)


@given(in_groups, st.booleans())
def test_every_grouping_keeps_all_stages_in_order(stages, source):
    plan = Plan.from_stages([Source(), *stages] if source else stages, fed=not source)
    counts = []
    for fusion in LEVELS:
        groups = group_stages(plan.stages, fusion, has_source=source)
        counts.append(len(groups))
        assert tuple(compiled for group in groups for compiled in group.stages) == plan.stages
        assert [group.index for group in groups] == list(range(len(groups)))
        assert [bool(group.boundary) for group in groups] == [False] + [True] * (len(groups) - 1)
        for group in groups:
            assert group.resources.cpus == max(compiled.resources.cpus for compiled in group.stages)
            for field in ("num_workers", "runtime_env", "engine_options"):
                assert {repr(getattr(compiled, field)) for compiled in group.stages} == {repr(getattr(group, field))}
    assert counts[FusionLevel.OFF] == len(plan.stages)
    assert counts == sorted(counts, reverse=True)
    assert plan.groups == group_stages(plan.stages, FusionLevel.EQUAL, has_source=source)
    assert plan.explain().count("\n     | ") == counts[FusionLevel.EQUAL] - 1
