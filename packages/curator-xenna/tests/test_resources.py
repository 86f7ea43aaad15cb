# SPDX-License-Identifier: Apache-2.0
"""Requests in Xenna's terms: shares of GPUs, codec engines, and requests that cannot be expressed."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import pytest

from curator_core import ProcessingStage, Resources, ResourcesError, StageDefinitionError, Task
from curator_core._plan.plan import Plan
from curator_xenna import XennaConfig
from curator_xenna._convert.resources import CODEC_ENGINES, Gpu, Share, share_of
from curator_xenna._session.specification import check_limits, check_options

H100 = Gpu("NVIDIA H100 80GB HBM3", 85.9)
L40S = Gpu("NVIDIA L40S", 48.3)
L4 = Gpu("NVIDIA L4", 24.2)
T4 = Gpu("Tesla T4", 16.1)


def share(resources: Resources, *gpus: Gpu, **options: Any) -> Share:
    return share_of(resources, gpus, "decode", **options)


@pytest.mark.parametrize(
    ("resources", "gpu", "gpus"),
    [
        (Resources(nvdecs=1), H100, 1 / 7),
        (Resources(nvdecs=7), H100, 1.0),
        (Resources(nvdecs=8), H100, 2.0),
        (Resources(nvdecs=14), H100, 2.0),
        (Resources(nvdecs=1), T4, 0.5),
        (Resources(nvencs=1), T4, 1.0),
        (Resources(nvdecs=1, nvencs=1), L40S, 1 / 3),
        (Resources(nvdecs=1, nvencs=1), L4, 0.5),
        (Resources(nvdecs=1, gpus=0.5), H100, 0.5),
        (Resources(gpu_memory_gb=8.05), T4, 0.5),
        (Resources(entire_gpu=True, nvdecs=3), H100, 1.0),
        (Resources(gpus=0.25), H100, 0.25),
    ],
)
def test_requests_become_a_share_of_a_gpu(resources: Resources, gpu: Gpu, gpus: float) -> None:
    assert share(resources, gpu).gpus == pytest.approx(gpus)


def test_codec_engines_are_those_of_the_smallest_model() -> None:
    assert share(Resources(nvdecs=1), H100, T4).gpus == pytest.approx(0.5)


def test_l40s_is_not_an_l4() -> None:
    assert CODEC_ENGINES["L40S"] != CODEC_ENGINES["L4"]
    assert share(Resources(nvencs=1), L40S).gpus == pytest.approx(1 / 3)


def test_table_can_be_overridden_and_added_to() -> None:
    assert share(Resources(nvdecs=1), H100, codec_engines={"H100": (2, 0)}).gpus == pytest.approx(0.5)
    assert share(Resources(nvencs=1), Gpu("Card X"), codec_engines={"Card X": (0, 4)}).gpus == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("resources", "gpus", "says"),
    [
        (Resources(nvencs=1), (H100,), "NVIDIA H100"),
        (Resources(nvdecs=1), (Gpu("Card X"),), "Card X"),
        (Resources(nvdecs=1), (), "no GPU is known"),
        (Resources(gpu_memory_gb=1), (Gpu("Card X"),), "gpu_memory_gb"),
        (Resources(nvdecs=8, entire_gpu=True), (H100,), "entire"),
    ],
)
def test_resources_that_xenna_cannot_express_are_an_error(
    resources: Resources, gpus: tuple[Gpu, ...], says: str
) -> None:
    with pytest.raises(ResourcesError, match=says) as caught:
        share(resources, *gpus)
    assert caught.value.stage == "decode"
    assert caught.value.hint


class Stage(ProcessingStage[Task[int], Task[int]]):
    def process(self, task: Task[int]) -> Task[int]:
        return task


def stages(*settings: dict[str, Any]) -> Any:
    return Plan.from_stages(Stage().with_(name=f"s{i}", **given) for i, given in enumerate(settings)).stages


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_workers": 2}, "num_workers"),
        ({"ignore_failures": True}, "on_error"),
        ({"num_run_attempts_python": 3}, "max_attempts"),
        ({"reset_workers_on_failure": True}, "never reach Xenna"),
        ({"slots_per_acter": 3}, "slots_per_actor"),
    ],
)
def test_unknown_stage_options_are_rejected(options: dict[str, Any], says: str) -> None:
    with pytest.raises(StageDefinitionError, match=says) as caught:
        check_options(stages({"xenna_stage_spec": options}))
    assert caught.value.stage == "s0"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("slots_per_actor", "3", "a whole number above 0"),
        ("slots_per_actor", 0, "a whole number above 0"),
        ("num_workers_per_node", 0.0, "a number above 0"),
        ("over_provision_factor", -1, "a number, 0 or more"),
        ("is_spmd", "no", "True or False"),
    ],
)
def test_an_invalid_value_of_a_stages_option(name: str, value: Any, expected: str) -> None:
    with pytest.raises(StageDefinitionError, match="invalid option of Xenna's StageSpec") as caught:
        check_options(stages({}, {"xenna_stage_spec": {name: value}}))
    error = caught.value
    assert (error.stage, error.field, error.given, error.expected) == ("s1", name, repr(value), expected)


@pytest.mark.parametrize("name", ["num_workers", "min_workers", "max_workers", "initial_workers"])
def test_contradictory_worker_counts_are_rejected(name: str) -> None:
    with pytest.raises(StageDefinitionError, match=f"{name} and num_workers_per_node are both set"):
        check_options(stages({name: 2, "xenna_stage_spec": {"num_workers_per_node": 1}}))


@pytest.mark.parametrize(
    ("limits", "name"),
    [
        ({"initial_workers": 2}, "initial_workers"),
        ({"min_workers": 2, "initial_workers": 2, "max_workers": 4}, "initial_workers"),
        ({"min_workers": 2}, "min_workers"),
    ],
)
def test_limits_that_the_autoscaler_cannot_keep_are_rejected(limits: dict[str, int], name: str) -> None:
    with pytest.raises(
        StageDefinitionError, match=f"the autoscaler of cosmos-xenna .* does not support {name}"
    ) as caught:
        check_limits(stages({}, limits), XennaConfig())
    assert (caught.value.stage, caught.value.field, caught.value.given) == ("s1", name, "2")
    assert version("cosmos-xenna") in caught.value.message
    assert "num_workers()" in caught.value.hint


@pytest.mark.parametrize(
    ("limits", "config"),
    [
        ({"min_workers": 1}, XennaConfig()),
        ({"max_workers": 4}, XennaConfig()),
        ({"min_workers": 2, "max_workers": 4}, XennaConfig()),
        ({"min_workers": 2, "max_workers": 2, "initial_workers": 2}, XennaConfig()),
        ({"min_workers": 2}, XennaConfig(max_workers_per_stage=4)),
    ],
)
def test_consistent_limits_of_workers_are_accepted(limits: dict[str, int], config: XennaConfig) -> None:
    check_limits(stages({}, limits), config)


def test_known_stage_options_are_passed_on() -> None:
    check_options(stages({"xenna_stage_spec": {"slots_per_actor": 3, "over_provision_factor": 2.0, "is_spmd": True}}))
    check_options(stages({"xenna_stage_spec": {"slots_per_actor": None, "num_workers_per_node": 0.5}}))
