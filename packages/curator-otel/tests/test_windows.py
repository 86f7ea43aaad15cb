# SPDX-License-Identifier: Apache-2.0
"""Windows of activity: exact, few, and out while the run goes on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator_otel import OTelObserver
from curator_otel.conventions import ATTRIBUTES
from curator_otel.windows import MOST_WINDOWS, plan_windows

SECOND = 1_000_000_000
DAY = 24 * 3600.0
SAME_SUMS = (
    *("batches", "attempts_retried", "tasks_in", "tasks_out", "tasks_filtered", "tasks_failed", "items"),
    *("process_time", "cpu_time", "idle_time"),
)


def whole(value):
    """Exact: seconds as a double hold whole nanoseconds for a hundred days."""
    return round(value * SECOND) if isinstance(value, float) else value


def sums(spans, prefix):
    return {name: sum(whole(span.attributes[f"{prefix}.{name}"]) for span in spans) for name in SAME_SUMS}


@st.composite
def activity(draw):
    """Reports, and between them how much time passes."""
    kinds = st.lists(st.sampled_from(("out", "filtered", "failed")), min_size=1, max_size=4)
    some = st.tuples(st.integers(0, 1), st.integers(0, 5 * SECOND), kinds, st.booleans(), st.floats(0, 3))
    return draw(st.lists(some, max_size=60))


@given(made=activity())
def test_windows_add_up_to_the_stage_exactly(make_memory, make_script, made):
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
    for stage in ("read", "write"):
        windows = memory.named(f"window {stage}")
        if windows:
            (whole_stage,) = [span for span in memory.spans if span.name.endswith(f" {stage}") and span.name[0] == "0"]
            assert sums(windows, "curator.window") == sums([whole_stage], "curator.stage")
            assert [span.attributes["curator.window.number"] for span in windows] == list(range(len(windows)))


def test_a_window_says_what_happened_in_it(memory, script):
    observer = memory.observer()
    observer.on_run_start(script.info)
    script.report(
        observer,
        script.batch(0, 0, at=1, took=2, num_items=3, cpu_ns=SECOND, idle_ns=SECOND // 2),
        script.batch(0, 0, at=2, took=4, worker_id="w2", kinds=("out", "filtered", "failed")),
    )
    script.turn_clock(observer, 1)
    (window,) = memory.spans[-1:]  # it has left, though the run goes on
    assert window.name == "window read"
    assert (window.start_time - script.info.start_unix_ns, window.end_time - window.start_time) == (SECOND, 5 * SECOND)
    assert {name.rpartition(".")[2]: value for name, value in window.attributes.items() if ".window." in name} == {
        "number": 0,
        "workers": 2,
        "slowest_batch": 4.0,
        "batches": 2,
        "attempts_retried": 0,
        "tasks_in": 4,
        "tasks_out": 2,
        "tasks_filtered": 1,
        "tasks_failed": 1,
        "items": 3,
        "process_time": 6.0,
        "cpu_time": 1.0,
        "idle_time": 0.5,
    }
    assert all(name in ATTRIBUTES for name in window.attributes)
    observer.on_run_end(script.result(), None)
    assert window.parent == memory.one("00 read").get_span_context()


def test_a_stage_that_is_over_within_its_first_window_has_none(memory, script):
    script.play(memory.observer(), script.batch(0, 0))
    assert not memory.named("window read")


def test_a_pause_makes_no_window(memory, script):
    observer = memory.observer()
    observer.on_run_start(script.info)
    for age in (1, 2, 3):
        script.turn_clock(observer, age)
    script.report(observer, script.batch(0, 0))
    script.turn_clock(observer, 4)
    script.turn_clock(observer, 5)
    observer.on_run_end(script.result(), None)
    assert len(memory.named("window read")) == 1


def test_the_slowest_batch_of_a_window_has_a_span(memory, script):
    observer = memory.observer()
    observer.on_run_start(script.info)
    for age in (1, 2, 3):
        parents = ("one that has no span",)
        crowd = [script.batch(0, 100 * age + number, at=age, took=0.001, parents=parents) for number in range(90)]
        slow = script.batch(0, 100 * age + 99, at=age, took=age, parents=parents)
        script.report(observer, *crowd, slow)
        script.turn_clock(observer, age)
    observer.on_run_end(script.result(), None)
    slowest = {
        span.attributes["curator.batch.sequence"]: span.end_time - span.start_time
        for span in memory.named("process_batch read")
        if span.attributes["curator.batch.kept_as"] == "slowest"
    }
    assert slowest == {199: SECOND, 299: 2 * SECOND, 399: 3 * SECOND}
    left_out = memory.one("00 read").attributes["curator.spans.left_out"]
    assert left_out == 273 - len(memory.named("process_batch read"))


@pytest.mark.parametrize("stages", [1, 3, 10, 40])
@pytest.mark.parametrize("days", [0.01, 1, 30])
def test_there_are_never_more_windows_than_planned_and_they_last_for_a_month(stages, days):
    plan = plan_windows(600, stages)
    assert plan.most == min(MOST_WINDOWS, 600 // stages)
    age, count = 0.0, 0
    while age < days * DAY:
        age += plan.length_s(age)
        count += 1
    assert count <= plan.most
    # The part of a run that is not out yet is a small one: what a killed driver has lost, without a snapshot.
    assert plan.growth < (0.3 if plan.most == MOST_WINDOWS else 3)


def test_a_run_has_no_more_windows_than_planned_however_long_it_is(memory, script):
    observer = memory.observer(max_spans=30)
    observer.on_run_start(script.info)
    for number in range(50):
        script.report(observer, script.batch(0, number))
        script.turn_clock(observer, 10.0**number)
    observer.on_run_end(script.result(), None)
    assert 2 <= len(memory.named("window read")) <= 0.4 * 30 / 2
    assert len(memory.spans) <= 30


@pytest.mark.real_clock
def test_windows_leave_by_themselves_while_the_run_goes_on(memory, script, wait_until):
    """By the run's own clock, with nothing coming any more."""
    observer = OTelObserver(memory.tracer_provider, memory.meter_provider)
    observer.on_run_start(script.info)
    observer.on_batch(script.batch(0, 0))
    wait_until(lambda: memory.named("window read"))
    assert memory.named("run started by_hand")
    assert not memory.named("run by_hand")
    observer.on_run_end(script.result(), None)
    assert len(memory.named("window read")) == 1
