# SPDX-License-Identifier: Apache-2.0
"""Windows of activity: exact, few, and exported during the run."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.waiting import wait_until

from curator_otel.conventions import ATTRIBUTES

SECOND = 1_000_000_000
DAY = 24 * 3600.0
SAME_SUMS = [name for name, row in ATTRIBUTES.items() if {"stage", "window"} <= {*row.on} and row.unit]
SAME_SUMS.remove("curator.worker.count")


def whole(value):
    """Convert to nanoseconds exactly: seconds as a double have whole nanoseconds for a hundred days."""
    return round(value * SECOND) if isinstance(value, float) else value


def sums(*spans):
    return {name: sum(whole(span.attributes[name]) for span in spans) for name in SAME_SUMS}


@st.composite
def activity(draw):
    """Draw reports, and the time that passes between them."""
    kinds = st.lists(st.sampled_from(("out", "filtered", "failed")), min_size=1, max_size=4)
    some = st.tuples(st.integers(0, 1), st.integers(0, 5 * SECOND), kinds, st.booleans(), st.floats(0, 3))
    return draw(st.lists(some, max_size=60))


@given(made=activity())
def test_windows_add_up_to_their_stage_exactly(make_memory, make_script, made):
    memory, script = make_memory(), make_script()
    observer = memory.observer()
    observer.on_run_start(script.info)
    age = 0.0
    for number, (stage, took, kinds, is_retried, passes) in enumerate(made):
        report = script.batch(stage, number, at=number, kinds=["retried"] * len(kinds) if is_retried else kinds)
        script.report(
            observer, report._replace(duration_ns=took, cpu_ns=took // 3, idle_ns=took // 7, num_items=number)
        )
        age += passes
        script.turn_clock(observer, age)
    observer.on_run_end(script.result(), None)
    for index, stage in enumerate(("read", "write")):
        windows = memory.named(f"window {stage}")
        if windows:
            assert sums(*windows) == sums(memory.one(f"0{index} {stage}"))
            assert [span.attributes["curator.window.number"] for span in windows] == list(range(len(windows)))


def test_window_has_the_totals_of_its_interval(memory, script):
    observer = memory.observer()
    observer.on_run_start(script.info)
    script.report(
        observer,
        script.batch(0, 0, at=1, took=2, num_items=3, cpu_ns=SECOND, idle_ns=SECOND // 2),
        script.batch(0, 0, at=2, took=4, worker_id="w2", kinds=("out", "filtered", "failed")),
    )
    script.turn_clock(observer, 1)
    window = memory.one("window read")
    assert (window.start_time - script.info.start_unix_ns, window.end_time - window.start_time) == (SECOND, 5 * SECOND)
    assert dict(window.attributes) == {
        "curator.stage.name": "read",
        "curator.stage.index": 0,
        "curator.window.number": 0,
        "curator.worker.count": 2,
        "curator.window.slowest_batch": 4.0,
        "curator.batch.ended": 2,
        "curator.batch.retried": 0,
        "curator.task.in": 4,
        "curator.task.out": 2,
        "curator.task.filtered": 1,
        "curator.task.failed": 1,
        "curator.task.merged": 0,
        "curator.item.count": 3,
        "curator.process.time": 6.0,
        "curator.cpu.time": 1.0,
        "curator.idle.time": 0.5,
    }
    observer.on_run_end(script.result(), None)
    assert window.parent == memory.one("00 read").get_span_context()


def test_stage_shorter_than_a_window_has_no_window(memory, script):
    script.play(memory.observer(), script.batch(0, 0))
    assert not memory.named("window read")


def test_pause_has_no_window(memory, script):
    observer = memory.observer()
    observer.on_run_start(script.info)
    for age in (1, 2, 3):
        script.turn_clock(observer, age)
    script.report(observer, script.batch(0, 0))
    script.turn_clock(observer, 4)
    script.turn_clock(observer, 5)
    observer.on_run_end(script.result(), None)
    assert len(memory.named("window read")) == 1


NO_LINEAGE = ("a batch that has no span",)


def slowest_of_windows(memory):
    return {
        span.attributes["curator.batch.sequence"]: span.end_time - span.start_time
        for span in memory.named("process_batch read")
        if span.attributes["curator.batch.kept_as"] == "slowest"
    }


def test_slowest_batch_of_a_window_has_a_span(memory, script):
    observer = memory.observer()
    observer.on_run_start(script.info)
    for age in (1, 2, 3):
        crowd = [script.batch(0, 100 * age + n, at=age, took=0.001, parents=NO_LINEAGE) for n in range(90)]
        slow = script.batch(0, 100 * age + 99, at=age, took=age, parents=NO_LINEAGE)
        script.report(observer, *crowd, slow)
        script.turn_clock(observer, age)
    observer.on_run_end(script.result(), None)
    assert slowest_of_windows(memory) == {199: SECOND, 299: 2 * SECOND, 399: 3 * SECOND}
    left_out = memory.one("00 read").attributes["curator.span.left_out"]
    assert left_out == 273 - len(memory.named("process_batch read"))


def test_slowest_batches_of_windows_are_kept_throughout_a_run_of_many_stages(memory, make_script):
    script = make_script("read", *(f"stage{number}" for number in range(39)))
    observer = memory.observer()
    observer.on_run_start(script.info)
    for number in range(1, 40):
        script.report(observer, script.batch(0, number, parents=NO_LINEAGE))
        script.turn_clock(observer, 10.0**number)
    observer.on_run_end(script.result(), None)
    windows = len(memory.named("window read"))
    kept = list(slowest_of_windows(memory))
    assert len(kept) == 5  # a fortieth of the share, for 14 windows
    gaps = {later - earlier for earlier, later in itertools.pairwise([*kept, windows + 1])}
    assert kept[0] == 1
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(("max_spans", "at_most", "growth"), [(1500, 60, 0.3), (30, 6, math.inf)])
def test_month_of_activity_has_few_windows_and_short_recent_ones(memory, script, max_spans, at_most, growth):
    observer = memory.observer(max_spans=max_spans)
    observer.on_run_start(script.info)
    age, number, closed_at = 1.0, 0, [0.0]
    while age < 30 * DAY:
        script.report(observer, script.batch(0, number))
        script.turn_clock(observer, age)
        if len(memory.named("window read")) == len(closed_at):
            closed_at.append(age)
        age, number = max(age + 0.5, age * 1.02), number + 1
    observer.on_run_end(script.result(), None)
    assert 2 <= len(memory.named("window read")) <= at_most
    assert len(memory.spans) <= max_spans
    # A killed driver may lose only the open window.
    assert all(later - earlier <= max(2, growth * later) for earlier, later in itertools.pairwise(closed_at))
    assert 30 * DAY - closed_at[-1] <= growth * 30 * DAY


@pytest.mark.real_clock
def test_windows_and_counters_are_exported_without_new_reports(memory, script):
    observer = memory.observer()
    observer.on_run_start(script.info)
    observer.on_batch(script.batch(0, 0))
    wait_until(lambda: memory.named("window read") and "curator.batch.count" in memory.points())
    assert memory.points()["curator.batch.count"] == {("read", "ok"): 1}
    assert memory.named("run started by_hand")
    assert not memory.named("run by_hand")
    observer.on_run_end(script.result(), None)
    assert len(memory.named("window read")) == 1
    assert memory.points()["curator.batch.count"] == {("read", "ok"): 1}
