# SPDX-License-Identifier: Apache-2.0
"""Two real raylets, which are joined: silent nodes are waited for, skipped, or named; clocks are corrected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="module")
def cases(run_script: Callable[..., Any]) -> Any:
    return run_script("two_nodes.py", "is_joined", "behind=30", "cannot_work")


@pytest.fixture(scope="module")
def slow_cases(run_script: Callable[..., Any]) -> Any:
    """The cases that wait until Ray reports a node dead, or for a time limit."""
    return run_script("two_nodes.py", "behind=0", "answers_late", "is_silent", "stays_silent", "is_dead", timeout=560)


def test_the_ray_at_the_address_is_joined_and_left_running(cases: Any) -> None:
    said = cases["is_joined"]  # the other cases use the cluster afterward
    assert said["size"] == 5
    assert said["planned_with"] == "available on each node: 1 CPUs and 0 GPUs, 1 CPUs and 0 GPUs"
    assert said["environ_kept"]
    assert said["connected"]
    assert said["warnings"] == ["num_cpus=64, dashboard=True, ray.num_gpus have no effect on an existing Ray cluster"]
    assert said["left"] == []


@pytest.mark.everything
@pytest.mark.timeout(600)
def test_a_node_that_answers_late_is_waited_for(slow_cases: Any) -> None:
    said = slow_cases["answers_late"]
    assert said["numbers"] == list(range(5))
    assert said["restarts"] == 0
    assert f"{said['node']} at " in said["waited"][0]  # it was stopped until then
    assert not said["known_dead"]


@pytest.mark.everything
@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", ["is_dead", "stays_silent"])
def test_a_node_that_ray_declares_dead_is_not_used(slow_cases: Any, how: str) -> None:
    said = slow_cases[how]
    assert said["numbers"] == list(range(5))
    assert said["restarts"] == 0
    assert said["known_dead"]


@pytest.mark.everything
@pytest.mark.timeout(600)
def test_a_silent_node_that_ray_considers_alive_ends_the_run(slow_cases: Any) -> None:
    said = slow_cases["is_silent"]
    assert said["error"].startswith(f"nodes that Ray reports as alive did not answer: {said['node']} at ")
    assert "ray stop --force" in said["hint"]
    assert said["restarts"] == 0  # another session would query the same node
    assert not said["known_dead"]


def test_a_node_that_answers_with_an_error_ends_the_run_at_once(cases: Any) -> None:
    said = cases["cannot_work"]
    assert said["error"].startswith(f"node {said['node']} at ")
    assert said["error"].endswith("cannot run stages: ModuleNotFoundError(\"No module named 'cosmos_xenna'\")")
    assert "same Python environment" in said["hint"]


def check_clocks(said: Any) -> None:
    assert said["numbers"] == list(range(100))
    assert said["home_worked"]
    assert said["batches_away"] > 0
    assert said["all_in_the_run"]  # from the first batch on, even with a clock that is 30 s behind


def test_a_clock_that_is_behind_is_corrected(cases: Any) -> None:
    said = cases["behind=30"]
    check_clocks(said)
    assert said["corrected"] == {"away": pytest.approx(30, abs=1)}
    assert len(said["summary"]) == 1


@pytest.mark.everything
@pytest.mark.timeout(600)
def test_nodes_that_share_a_clock_are_not_corrected(slow_cases: Any) -> None:
    said = slow_cases["behind=0"]
    check_clocks(said)
    assert said["corrected"] == {}
    assert said["summary"] == []
