# SPDX-License-Identifier: Apache-2.0
"""The metrics: every batch counts, the series stay few, and the histograms own up to what they leave out."""

from __future__ import annotations

import random
from typing import Any

import pytest

from curator_core import Pipeline, ProcessingStage, Task


class Half(ProcessingStage[Any, Any]):
    name = "half"
    batch_size = 4

    def process(self, task):
        if task.data == 3:
            raise ValueError("three")
        return None if task.data % 2 else [task, Task(data=0)]


def run_half(memory, count=10):
    tasks = [Task(data=number) for number in range(count)]
    return Pipeline("p", [Half()]).run(initial_tasks=tasks, observers=[memory.observer()], on_error="skip")


def test_counters_agree_with_the_result(memory):
    (stage,) = run_half(memory).stages
    points = memory.points()
    assert points["curator.batch.count"] == {("half", "ok"): 2, ("half", "failed"): 1}
    assert points["curator.task.count"] == {
        ("half", "out"): stage.tasks_passed,
        ("half", "filtered"): stage.tasks_filtered,
        ("half", "failed"): stage.tasks_failed,
    }
    assert points["curator.task.produced"] == {("half",): stage.tasks_out}
    assert points["curator.item.count"] == {("half",): stage.items}
    assert points["curator.process.time"] == {("half",): pytest.approx(stage.process_s)}
    assert points["curator.cpu.time"] == {("half",): pytest.approx(stage.cpu_s)}
    assert points["curator.idle.time"] == {("half",): pytest.approx(stage.idle_s)}
    assert points["curator.batch.duration"] == {("half", "ok"): 2, ("half", "failed"): 1}
    assert points["curator.batch.idle"] == {("half",): 3}
    assert points["curator.setup.duration"] == {("half", "ok"): 1}
    assert points["curator.run.count"] == {("ok",): 1}
    assert "curator.batch.unrecorded" not in points


def test_runs_add_up(memory):
    run_half(memory)
    run_half(memory)
    assert memory.points()["curator.batch.count"] == {("half", "ok"): 4, ("half", "failed"): 2}


def test_retried_attempts_are_batches_and_their_tasks_are_counted_once(memory, script, boom):
    script.play(
        memory.observer(),
        script.batch(0, 0, kinds=("retried", "retried"), error=boom, num_items=2),
        script.batch(0, 1, kinds=("out", "filtered"), attempt=2, num_items=2),
    )
    points = memory.points()
    assert points["curator.batch.count"] == {("read", "retried"): 1, ("read", "ok"): 1}
    assert points["curator.task.count"] == {("read", "out"): 1, ("read", "filtered"): 1}
    assert points["curator.item.count"] == {("read",): 2}


def test_a_failed_run_is_counted_as_one(memory, script):
    script.play(memory.observer(), error=RuntimeError("x"))
    assert memory.points()["curator.run.count"] == {("failed",): 1}


def test_labels_are_stage_and_outcome_only(memory):
    run_half(memory)
    labels = {
        label
        for metric in memory.instruments().values()
        for point in metric.data.data_points
        for label in point.attributes
    }
    assert labels == {"curator.stage.name", "curator.outcome"}


def test_a_busy_second_is_counted_in_full_and_recorded_in_part(memory, script):
    observer = memory.observer()
    observer.on_run_start(script.info)
    script.report(observer, *(script.batch(0, number) for number in range(500)))
    script.turn_clock(observer, 1)
    script.report(observer, *(script.batch(0, number) for number in range(500, 510)))
    observer.on_run_end(script.result(), None)
    points = memory.points()
    recorded = points["curator.batch.duration"]["read", "ok"]
    assert 10 < recorded < 500
    assert points["curator.batch.unrecorded"] == {("read",): 510 - recorded}
    assert points["curator.batch.count"] == {("read", "ok"): 510}
    assert points["curator.process.time"] == {("read",): 510.0}


@pytest.mark.real_clock
def test_the_counters_are_fed_while_the_run_goes_on(memory, script, wait_until):
    """By the run's own clock, also when no report comes any more."""
    observer = memory.observer()
    observer.on_run_start(script.info)
    observer.on_batch(script.batch(0, 0))
    wait_until(lambda: "curator.batch.count" in memory.points())
    assert memory.points()["curator.batch.count"] == {("read", "ok"): 1}
    observer.on_run_end(script.result(), None)
    assert memory.points()["curator.batch.count"] == {("read", "ok"): 1}


def test_a_batch_with_a_span_is_its_buckets_exemplar(memory, script):
    script.play(memory.observer(), script.batch(0, 0, took=2))
    (point,) = memory.instruments()["curator.batch.duration"].data.data_points
    (exemplar,) = point.exemplars
    assert exemplar.span_id == memory.one("process_batch read").get_span_context().span_id


def test_histograms_have_boundaries_for_seconds(memory):
    run_half(memory)
    ends = {
        (point.explicit_bounds[0], point.explicit_bounds[-1])
        for metric in memory.instruments().values()
        for point in metric.data.data_points
        if hasattr(point, "explicit_bounds")
    }
    assert ends == {(0.001, 3600)}


def test_a_users_seeded_sequence_stays_as_it_was(memory, script):
    """Also inside a sampled span, where the SDK would draw exemplars with the global `random`."""
    tracer = memory.tracer_provider.get_tracer("application")
    with tracer.start_as_current_span("outer"):
        observer = memory.observer(max_spans=1)  # the SDK's own ids come from `random`: see `configure`
        observer.on_run_start(script.info)
        observer.on_batch(script.batch(0, 0))  # the stage's span
        before = random.getstate()
        for number in range(1, 50):
            observer.on_batch(script.batch(0, number))
            script.turn_clock(observer, number)  # feeds the counters
        observer.on_run_end(script.result(), None)
        assert random.getstate() == before
    assert memory.points()["curator.batch.count"] == {("read", "ok"): 50}
