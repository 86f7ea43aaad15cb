# SPDX-License-Identifier: Apache-2.0
"""GPU scheduling by the real Xenna on a real Ray: only the hardware is simulated (scripts/pynvml.py)."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import pytest

from .conftest import PATHS, SCRIPTS  # noqa: TID252 - no import can write this directory's name

GPUS = 6


@pytest.fixture(scope="module")
def cases(run_script: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    env = {"PYTHONPATH": os.pathsep.join([str(SCRIPTS), *PATHS]), "FAKE_GPUS": ",".join(["Tesla T4"] * GPUS)}
    return run_script("gpus.py", str(tmp_path_factory.mktemp("gpus")), env=env)


@pytest.fixture(scope="module")
def seen(cases: Any) -> dict[str, list[dict[str, Any]]]:
    """Return what the workers of each stage saw."""
    found = defaultdict(list)
    for one in cases["all"]["seen"]:
        found[one["stage"]].append(one)
    return found


def by_worker(seen: Iterable[dict[str, Any]]) -> dict[str, set[str]]:
    """Return the devices that each worker sees: only those that it was allotted."""
    devices: dict[str, set[str]] = defaultdict(set)
    for one in seen:
        assert one["visible"] == ",".join(str(index) for index, _ in sorted(one["gpus"])), one
        devices[one["worker"]] |= set(one["visible"].split(","))
    return devices


def shares(seen: Iterable[dict[str, Any]]) -> dict[int, float]:
    """Return how much of each device is used."""
    taken: dict[int, dict[str, float]] = defaultdict(dict)
    for one in seen:
        for index, fraction in one["gpus"]:
            taken[index][one["worker"]] = fraction
    return {index: sum(fractions.values()) for index, fractions in taken.items()}


def test_halves_share_a_gpu(cases: Any, seen: Any) -> None:
    halves = [one for stage in ("half", "decode") for one in seen[stage]]
    assert all(len(visible) == 1 for visible in by_worker(halves).values())
    assert all(fraction == pytest.approx(0.5) for one in halves for _, fraction in one["gpus"])
    assert list(shares(halves).values()) == [pytest.approx(1)]
    workers = {summary["name"]: summary["workers"] for summary in cases["all"]["stages"]}
    assert [workers[stage] for stage in ("half", "decode")] == [1, 1]
    assert len(by_worker(halves)) == 2


def test_whole_gpus_are_not_shared(seen: Any) -> None:
    assert [len(by_worker(seen[stage]).popitem()[1]) for stage in ("entire", "pair")] == [1, 2]
    assert all(share == pytest.approx(1) for share in shares(chain(*seen.values())).values())


def test_every_gpu_is_used(seen: Any) -> None:
    of_gpus = [one for stage, all_seen in seen.items() if stage not in ("cpu", "group") for one in all_seen]
    assert len(set().union(*by_worker(of_gpus).values())) == GPUS - 2  # the second rank of a group gets no task


def test_cpu_stages_see_no_gpus(seen: Any) -> None:
    assert {one["visible"] for one in seen["cpu"]} == {""}


def test_a_group_of_ranks_counts_a_batch_once(cases: Any, seen: Any) -> None:
    assert {(one["rank"], one["world_size"]) for one in seen["group"]} == {("0", "2")}
    (stage,) = [summary for summary in cases["all"]["stages"] if summary["name"] == "group"]
    assert (stage["tasks_in"], stage["tasks_out"]) == (12, 12)
    assert stage["workers"] == 2  # both ranks were set up


@pytest.mark.parametrize("case", ["too_many", "too_large"])
def test_more_gpus_than_exist_are_rejected(cases: Any, case: str) -> None:
    assert cases[case]["stage"] == case
    assert f"{GPUS} GPUs" in cases[case]["error"]
    assert "hint:" in cases[case]["error"]
