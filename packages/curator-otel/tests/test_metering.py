# SPDX-License-Identifier: Apache-2.0
"""Metrics of runs that small pipelines do not produce: every batch counts, and histograms report what they skip.

The metrics of an ordinary run are tested at a receiver, in otlp/test_metric_fields.py.
"""

from __future__ import annotations

import random


def test_retried_attempts_count_as_batches_and_their_tasks_once(memory, script, boom):
    script.play(
        memory.observer(),
        script.batch(0, 0, kinds=("retried", "retried"), error=boom, num_items=2),
        script.batch(0, 1, kinds=("out", "filtered"), attempt=2, num_items=2),
    )
    points = memory.points()
    assert points["curator.batch.count"] == {("read", "retried"): 1, ("read", "ok"): 1}
    assert points["curator.task.count"] == {("read", "out"): 1, ("read", "filtered"): 1}
    assert points["curator.item.count"] == {("read",): 2}


def test_failed_run_counts_as_failed(memory, script):
    script.play(memory.observer(), error=RuntimeError("x"))
    assert memory.points()["curator.run.count"] == {("failed",): 1}


def test_busy_second_is_counted_completely_and_sampled_in_histograms(memory, script):
    observer = memory.observer()
    observer.on_run_start(script.info)
    script.report(observer, *(script.batch(0, number, cpu_ns=250_000_000) for number in range(500)))
    script.turn_clock(observer, 1)
    script.report(observer, *(script.batch(0, number) for number in range(500, 510)))
    observer.on_run_end(script.result(), None)
    points = memory.points()
    recorded = points["curator.batch.duration"]["read", "ok"]
    assert 10 < recorded < 500
    assert points["curator.batch.unrecorded"] == {("read",): 510 - recorded}
    assert points["curator.batch.count"] == {("read", "ok"): 510}
    assert points["curator.process.time"] == {("read",): 510.0}
    assert points["curator.cpu.time"] == {("read",): 125.0}


def test_global_random_state_is_not_used(memory, script):
    """This includes sampled spans, in which the SDK would draw exemplars with the global `random`."""
    tracer = memory.tracer_provider.get_tracer("application")
    with tracer.start_as_current_span("outer"):
        observer = memory.observer(max_spans=1)  # the SDK draws its own ids from `random`: see `configure`
        observer.on_run_start(script.info)
        observer.on_batch(script.batch(0, 0))  # creates the span of the stage
        before = random.getstate()
        for number in range(1, 50):
            observer.on_batch(script.batch(0, number))
            script.turn_clock(observer, number)  # updates the counters
        observer.on_run_end(script.result(), None)
        assert random.getstate() == before
    assert memory.points()["curator.batch.count"] == {("read", "ok"): 50}
