# SPDX-License-Identifier: Apache-2.0
"""GPU scheduling, by the real Xenna on a real Ray: it is the hardware that is simulated (scripts/pynvml.py)."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parent / "scripts"


@pytest.fixture(scope="module")
def cases(run_script: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = os.pathsep.join(filter(None, [str(SCRIPTS), os.environ.get("PYTHONPATH")]))
    env = {"PYTHONPATH": path, "FAKE_GPUS": ",".join(["Tesla T4"] * 2)}
    return run_script("gpus.py", str(tmp_path_factory.mktemp("gpus")), env=env, timeout=280)


def by_worker(seen: list[dict[str, Any]]) -> dict[str, set[str]]:
    """The devices that each worker sees: those that it was allotted, and no others."""
    devices: dict[str, set[str]] = defaultdict(set)
    for one in seen:
        assert one["visible"] == ",".join(str(index) for index, _ in sorted(one["gpus"])), one
        devices[one["worker"]] |= set(one["visible"].split(","))
    return devices


def shares(seen: list[dict[str, Any]]) -> dict[int, float]:
    """How much of each device is taken."""
    taken: dict[int, dict[str, float]] = defaultdict(dict)
    for one in seen:
        for index, fraction in one["gpus"]:
            taken[index][one["worker"]] = fraction
    return {index: sum(fractions.values()) for index, fractions in taken.items()}


def test_halves_share_a_gpu(cases: Any) -> None:
    seen = cases["halves"]["seen"]
    assert {one["stage"] for one in seen} == {"half", "decode", "fits"}
    assert all(len(visible) == 1 for visible in by_worker(seen).values())
    assert all(fraction == pytest.approx(0.5) for one in seen for _, fraction in one["gpus"])
    assert all(share <= 1.0001 for share in shares(seen).values())
    workers = {summary["name"]: summary["workers"] for summary in cases["halves"]["stages"]}
    assert workers == {"half": 2, "decode": 1, "fits": 1}
    assert len(by_worker(seen)) == 4


def test_whole_gpus_are_not_shared(cases: Any) -> None:
    seen = [one for one in cases["wholes"]["seen"] if one["stage"] != "cpu"]
    devices = by_worker(seen)
    owned = [device for visible in devices.values() for device in visible]
    assert sorted(owned) == ["0", "1"]
    assert all(share == pytest.approx(1) for share in shares(seen).values())


def test_a_worker_of_two_gpus_sees_two(cases: Any) -> None:
    pairs = by_worker(cases["pair"]["seen"])
    assert [len(visible) for visible in pairs.values()] == [2]


def test_cpu_stages_beside_gpu_stages_see_none(cases: Any) -> None:
    assert {one["visible"] for one in cases["wholes"]["seen"] if one["stage"] == "cpu"} == {""}


def test_ranks_of_a_group_count_a_batch_once(cases: Any) -> None:
    seen = cases["spmd"]["seen"]
    assert {(one["rank"], one["world_size"]) for one in seen} == {("0", "2")}
    (stage,) = cases["spmd"]["stages"]
    assert (stage["tasks_in"], stage["tasks_out"]) == (12, 12)
    assert stage["workers"] == 2  # both ranks were set up


@pytest.mark.parametrize("case", ["too_many", "too_large"])
def test_more_gpus_than_there_are(cases: Any, case: str) -> None:
    assert cases[case]["stage"] == case
    assert "2 GPUs" in cases[case]["error"]
    assert "to mend" in cases[case]["error"]
