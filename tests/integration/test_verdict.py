# SPDX-License-Identifier: Apache-2.0
"""Pipelines with one fault each, on Xenna: the verdict finds it.

Slow stages burn CPU time and the numbers of workers are fixed, because an autoscaler would even out the differences.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from curator_core import Pipeline, ProcessingStage, Resources, Task

if TYPE_CHECKING:
    from curator_core import RunResult

pytest.importorskip("curator_xenna")
LONG = pytest.mark.everything  # core's tests check the same on activity without an engine

FAST, SLOW = 0.004, 0.04
TASKS = 120


class Burn(ProcessingStage[Task[int], Task[int]]):
    """Uses a fixed amount of CPU time, even if it shares a core."""

    resources = Resources(cpus=0.25)
    num_workers = 1
    fusible = False

    def __init__(self, seconds: float = FAST) -> None:
        self.seconds = seconds

    def process(self, task: Task[int]) -> Task[int]:
        self.burn(self.seconds)
        return task

    def burn(self, seconds: float) -> None:
        until = time.thread_time() + seconds
        while time.thread_time() < until:
            sum(range(500))


class LoadsLong(Burn):
    def setup(self, worker: Any) -> None:
        time.sleep(5)


class OneGiant(Burn):
    num_workers = 2

    def process(self, task: Task[int]) -> Task[int]:
        self.burn(8 if task.data == TASKS - 1 else self.seconds)
        return task


class Waits(Burn):
    def process(self, task: Task[int]) -> Task[int]:
        time.sleep(self.seconds)
        return task


class FailsAtFirst(Burn):
    """Fails the first attempt at every other task, after its work is done."""

    max_attempts = 2
    retry_delay_s = 0.0

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.tried: set[int] = set()

    def process(self, task: Task[int]) -> Task[int]:
        self.burn(self.seconds)
        if task.data % 2 and task.data not in self.tried:
            self.tried.add(task.data)
            raise ValueError("try again")
        return task


def run(executor: Any, *stages: Burn, tasks: int = TASKS) -> RunResult:
    named = [stage.with_(name=name) for stage, name in zip(stages, "ABC", strict=False)]
    return Pipeline("verdict", named).run(executor, [Task(data=number) for number in range(tasks)])


@pytest.mark.parametrize("place", [pytest.param(0, marks=LONG), 1, pytest.param(2, marks=LONG)])
def test_a_slow_stage(xenna: Any, place: int) -> None:
    stages = [Burn() for _ in range(3)]
    stages[place] = Burn(SLOW)
    verdict = run(xenna, *stages).verdict
    assert verdict.stage == "ABC"[place], verdict
    assert verdict.kind in ("busy", "waits"), verdict  # correct if other processes use the cores: it waits for one


@LONG
def test_two_equally_slow_stages_are_both_named(xenna: Any) -> None:
    verdict = run(xenna, Burn(SLOW), Burn(), Burn(SLOW)).verdict
    # If the cores are not shared evenly, the verdict is correct to name one of them.
    assert verdict.kind in ("equal", "busy"), verdict
    assert verdict.stage in "AC"
    assert verdict.kind == "busy" or "'A' and 'C'" in verdict.reason


@LONG
def test_a_slow_setup_is_named(xenna: Any) -> None:
    verdict = run(xenna, Burn(SLOW), LoadsLong(), Burn(), tasks=TASKS // 3).verdict
    assert (verdict.kind, verdict.stage) == ("setup", "B"), verdict


@LONG
def test_a_giant_task_is_named(xenna: Any) -> None:
    verdict = run(xenna, Burn(), OneGiant(SLOW / 2), Burn()).verdict
    assert (verdict.kind, verdict.stage) == ("skew", "B"), verdict
    assert f"task '{TASKS - 1}'" in verdict.reason


@LONG
def test_a_waiting_stage_is_named(xenna: Any) -> None:
    verdict = run(xenna, Burn(), Waits(SLOW), Burn()).verdict
    assert (verdict.kind, verdict.stage) == ("waits", "B"), verdict


@LONG
def test_a_stage_with_many_failed_attempts_is_named(xenna: Any) -> None:
    verdict = run(xenna, Burn(), FailsAtFirst(SLOW), Burn()).verdict
    assert (verdict.kind, verdict.stage) == ("retries", "B"), verdict


@LONG
def test_transfer_time_above_processing_time_is_named(xenna: Any) -> None:
    from curator_xenna import XennaExecutor

    # It joins the Ray that the other executor has started.
    apart = XennaExecutor({"fuse": False, "bundle": False, "cpu_allocation_percentage": 1.0})
    verdict = run(apart, Burn(0.0), Burn(0.0), Burn(0.0), tasks=300).verdict
    assert verdict.kind == "transport", verdict


@LONG
def test_a_run_that_is_too_short(xenna: Any) -> None:
    result = run(xenna, Burn(), Burn(), tasks=5)
    assert result.verdict.kind == "too_short"
    assert str(result.verdict) in result.summary()
