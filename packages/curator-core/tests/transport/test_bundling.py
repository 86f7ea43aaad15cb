# SPDX-License-Identifier: Apache-2.0
"""How many tasks travel together: by their time, by their bytes, and in whole batches."""

from __future__ import annotations

import copy
import heapq
import pickle
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator_core import Plan, ProcessingStage, Task
from curator_core._plan.bundles import (
    HOP_S,
    MAX_BUNDLE_BYTES,
    TARGET_S,
    Bundle,
    BundlePlan,
    Pace,
    split,
    unbundled,
    within_bytes,
)
from curator_core._transport.pickling import dumps, loads
from curator_core.tasks import new_state, stamp

from ..helpers import tasks as tasks_of  # noqa: TID252 - no import can write this directory's name

plans = st.builds(BundlePlan, batch_size=st.integers(1, 9), slots=st.integers(1, 8))
seconds = st.floats(1e-7, 10.0)


@dataclass
class Weighed(Task[int]):
    """A task that reports how many bytes it has."""

    @property
    def num_bytes(self) -> int:
        return self.data


def deal(total: int, plan: BundlePlan, takes: float) -> list[int]:
    """Return the sizes of bundles for a number of tasks if each bundle is measured before the next."""
    pace, sizes = Pace(plan), []
    while total:
        sizes.append(min(pace.next_size(total), total))
        total -= sizes[-1]
        pace.observe(sizes[-1], sizes[-1] * takes)
    return sizes


# --- a bundle -------------------------------------------------------------------------------------------


def test_a_bundle_can_be_pickled():
    first = Task(data=b"x")
    stamp(first, new_state("7.1"))
    there = loads(dumps(Bundle([first, Task(data="y")])))
    assert type(there) is Bundle
    assert [(task.task_id, task.data) for task in there.tasks] == [("7.1", b"x"), ("", "y")]


def test_a_bundle_is_not_copied():
    bundle = Bundle(tasks_of(1, 2))
    assert copy.deepcopy(bundle) is bundle
    assert copy.deepcopy([bundle])[0] is bundle


def test_bundles_are_unpacked_in_order():
    one, two, three, four = tasks_of(1, 2, 3, 4)
    assert unbundled([Bundle([one, two]), three, Bundle([]), Bundle([four])]) == [one, two, three, four]
    assert unbundled([]) == []


@pytest.mark.parametrize(
    ("batch_size", "count", "whole"),
    [(1, 0, 1), (1, 5, 5), (1, 4.2, 5), (8, 0, 8), (8, 1, 8), (8, 8, 8), (8, 9, 16), (8, 0.5, 8), (3, 9.0, 9)],
)
def test_counts_are_rounded_up_to_whole_batches(batch_size, count, whole):
    assert BundlePlan(batch_size).whole_batches(count) == whole


# --- pace -----------------------------------------------------------------------------------------------


def test_without_measurements_the_pace_is_unknown():
    pace = Pace(BundlePlan())
    assert pace.seconds_per_task is None
    pace.observe(0, 1.0)
    assert pace.seconds_per_task is None
    pace.observe(4, 1.0)
    pace.observe(4, 2.0)
    assert pace.seconds_per_task == 0.5


@pytest.mark.parametrize(
    ("plan", "sizes"),
    [
        (BundlePlan(slots=1), [1, 4, 16, 64, 64]),
        (BundlePlan(slots=2), [1, 1, 4, 4, 16, 16, 64, 64, 64]),
        (BundlePlan(batch_size=8, slots=1), [8, 32, 64, 64]),
        (BundlePlan(batch_size=100, slots=1), [100, 100, 100]),
    ],
)
def test_unmeasured_bundles_begin_with_one_batch_and_grow_up_to_a_limit(plan, sizes):
    pace = Pace(plan)
    assert [pace.next_size() for _ in sizes] == sizes


@pytest.mark.parametrize(
    ("takes", "plan", "sizes"),
    [
        (0.0, BundlePlan(), [4, 16, 64, 256, 1024]),
        (0.001, BundlePlan(), [4, 16, 64, 256, 500, 500]),
        (0.001, BundlePlan(batch_size=64), [256, 512, 512]),
        (0.1, BundlePlan(), [4, 5, 5]),
        (0.3, BundlePlan(), [2, 2]),
        (0.5, BundlePlan(), [1, 1]),
        (1.0, BundlePlan(), [1, 1]),
        (1.0, BundlePlan(batch_size=4), [4, 4]),
    ],
)
def test_measured_bundles_grow_up_to_half_a_second_of_work(takes, plan, sizes):
    pace = Pace(plan)
    pace.observe(10, 10 * takes)
    assert [pace.next_size() for _ in sizes] == sizes


def test_bundles_shrink_as_soon_as_tasks_get_slow():
    pace = Pace(BundlePlan())
    pace.observe(1000, 0.001)
    assert [pace.next_size() for _ in range(6)][-1] == 4096
    pace.observe(1, 1001.0)
    assert pace.next_size() == 1


def test_half_of_the_remaining_tasks_are_spread_evenly():
    pace = Pace(BundlePlan(slots=4))
    pace.observe(1, 0.001)
    for _ in range(5):
        pace.next_size()
    assert [pace.next_size(remaining) for remaining in (5000, 800, 700, 200, 80, 1)] == [500, 100, 88, 25, 20, 1]


@pytest.mark.parametrize("slots", [1, 2, 4, 8])
@pytest.mark.parametrize("takes", [1e-6, 5e-5, 2e-4, 1e-3])
def test_ten_thousand_quick_tasks_make_tens_of_bundles(slots, takes):
    sizes = deal(10_000, BundlePlan(slots=slots), takes)
    assert sum(sizes) == 10_000
    assert 8 <= len(sizes) < 100
    assert max(sizes) * takes <= TARGET_S + takes
    assert sizes[-1] * takes <= HOP_S + takes  # no worker waits long for the last one


@pytest.mark.parametrize("slots", [1, 4])
def test_measured_slow_tasks_are_sent_one_by_one(slots):
    assert deal(64, BundlePlan(slots=slots), 1.0) == [1] * 64


@pytest.mark.parametrize("seed", range(4))
def test_slow_tasks_do_not_queue_behind_each_other(seed):
    # 64 tasks of 0.1 to 2 s on two workers with two bundles each, compared with one task per bundle.
    draw = random.Random(seed)
    durations = [draw.uniform(0.1, 2.0) for _ in range(64)]
    pace = Pace(BundlePlan(slots=4))
    assert makespan(durations, pace.next_size, pace.observe) <= 1.1 * makespan(durations, lambda _: 1)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("draw", [lambda rng: rng.uniform(0.1, 2.0), lambda rng: 0.1 * 20 ** (rng.random() ** 2)])
def test_slow_outputs_of_one_task_do_not_queue_behind_each_other(seed, draw):
    # The same, if all tasks are bundled at once before any is measured.
    rng = random.Random(seed)
    durations = [draw(rng) for _ in range(64)]
    parts = iter(split(durations, BundlePlan(slots=4), None))
    assert makespan(durations, lambda _: len(next(parts))) <= 1.1 * makespan(durations, lambda _: 1)


def makespan(
    durations: list[float],
    next_size: Callable[[int], int],
    done: Callable[[int, float], None] = lambda *_: None,
    workers: int = 2,
    slots_each: int = 2,
) -> float:
    """Return when the last task ends, with bundles of these sizes; call `done` after each bundle."""
    start = 0
    queues: list[list[list[float]]] = [[] for _ in range(workers)]
    ends: list[tuple[float, int, list[float]]] = []

    def hand_out(worker: int) -> None:
        nonlocal start
        if start < len(durations):
            size = next_size(len(durations) - start)
            queues[worker].append(durations[start : start + size])
            start += size

    def begin(worker: int, now: float) -> None:
        if queues[worker]:
            bundle = queues[worker].pop(0)
            heapq.heappush(ends, (now + sum(bundle), worker, bundle))

    for number in range(workers * slots_each):
        hand_out(number % workers)
    for worker in range(workers):
        begin(worker, 0.0)
    now = 0.0
    while ends:
        now, worker, bundle = heapq.heappop(ends)
        done(len(bundle), sum(bundle))
        hand_out(worker)
        begin(worker, now)
    return now


@given(plans, st.lists(st.one_of(st.tuples(st.integers(0, 50), seconds), st.integers(1, 5000)), max_size=40))
def test_sizes_are_full_batches_within_all_limits(plan, events):
    pace = Pace(plan)
    last = 0
    for event in events:
        if isinstance(event, tuple):
            pace.observe(event[0], event[0] * event[1])
            continue
        size, mean = pace.next_size(event), pace.seconds_per_task
        assert size >= plan.batch_size
        assert size % plan.batch_size == 0
        fair = plan.whole_batches(event / (2 * plan.slots) + 1)
        if mean is None:
            assert size <= min(fair, plan.whole_batches(64))
        else:
            assert size <= 4 * max(last, plan.batch_size)
            assert size <= plan.whole_batches(TARGET_S / mean)
            assert size <= max(fair, plan.whole_batches(HOP_S / mean))
        last = size


# --- splitting the outputs of a worker ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "takes", "sizes"),
    [
        (BundlePlan(slots=4), None, [2, *[1] * 8]),
        (BundlePlan(slots=1), None, [5, 3, 1, 1]),
        (BundlePlan(batch_size=4, slots=4), None, [4, 4, 2]),
        (BundlePlan(), 0.0, [10]),
        (BundlePlan(), 0.05, [10]),
        (BundlePlan(), 0.1, [5, 5]),
        (BundlePlan(batch_size=3), 0.1, [6, 4]),
        (BundlePlan(), 0.2, [3, 3, 3, 1]),
        (BundlePlan(), 0.25, [2, 2, 2, 2, 2]),
        (BundlePlan(), 7.0, [1] * 10),
        (BundlePlan(batch_size=4), 7.0, [4, 4, 2]),
    ],
)
def test_outputs_of_a_worker_are_split_for_the_next_stage(plan, takes, sizes):
    tasks = tasks_of(*range(10))
    parts = [*split(tasks, plan, takes)]
    assert [len(part) for part in parts] == sizes
    assert [task for part in parts for task in part] == tasks


def test_unmeasured_pieces_have_a_limit():
    assert [len(part) for part in split(tasks_of(*range(150)), BundlePlan(), None)] == [64, 43, 22, 11, 5, 3, 1, 1]


@given(st.lists(st.integers(1, 60), max_size=60), st.integers(1, 5), st.integers(1, 4), st.one_of(st.none(), seconds))
def test_splitting_loses_nothing_and_keeps_the_limit_of_bytes(sizes, batch_size, slots, takes):
    plan = BundlePlan(batch_size, slots, max_bytes=100)
    tasks = [Weighed(size) for size in sizes]
    parts = [*split(tasks, plan, takes)]
    assert [id(task) for part in parts for task in part] == [*map(id, tasks)]
    assert all(parts)
    assert all(len(part) == 1 or sum(task.num_bytes for task in part) <= 100 for part in parts)
    if takes is None:
        assert max(map(len, parts), default=0) <= plan.whole_batches(64)
    else:
        assert max(map(len, parts), default=0) <= plan.whole_batches(TARGET_S / takes)
    if sum(sizes) <= 100:
        assert all(len(part) % batch_size == 0 for part in parts[:-1])


def test_bundles_follow_the_stage_that_needs_full_batches():
    class Several(ProcessingStage[Task, Task]):
        def process_batch(self, tasks):
            return tasks

    first = Several().with_(batch_size=8, full_batches=True)
    second = Several().with_(name="second", batch_size=12)
    (group,) = Plan.from_stages([first, second], fed=True).groups
    assert BundlePlan.of(group, 4) == BundlePlan(8, 4, full=True)
    (group,) = Plan.from_stages([first.with_(full_batches=False), second], fed=True).groups
    assert BundlePlan.of(group, 4) == BundlePlan(12, 4)


# --- bytes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "batch_size", "fits"),
    [
        ([10, 10, 10], 1, 3),
        ([50, 50], 1, 2),
        ([50, 51], 1, 1),
        ([101], 1, 1),
        ([500, 1], 1, 1),
        ([1, 500], 1, 1),
        ([30, 30, 30, 30], 1, 3),
        ([20] * 9, 2, 4),
        ([20] * 9, 3, 3),
        ([20] * 9, 5, 5),
        ([20] * 9, 8, 5),
        ([20] * 5, 2, 5),
    ],
)
def test_a_bundle_has_as_many_full_batches_as_fit_and_at_least_one(sizes, batch_size, fits):
    tasks = [Weighed(size) for size in sizes]
    bundle = within_bytes(tasks, BundlePlan(batch_size, max_bytes=100))
    assert [*map(id, bundle)] == [*map(id, tasks[:fits])]
    assert bundle is not tasks


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_byte_payloads_are_measured(kind):
    tasks = tasks_of(*(kind(40) for _ in range(5)))
    assert len(within_bytes(tasks, BundlePlan(max_bytes=100))) == 2


@pytest.mark.parametrize("wrap", [lambda data: {"video": data}, lambda data: [data], lambda data: (data, 1)])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_tasks_of_unknown_size_are_measured(wrap, batch_size):
    plan = BundlePlan(batch_size, max_bytes=10_000)
    tasks = tasks_of(*(wrap(bytes([n]) * 1000) for n in range(50)))
    parts = [*split(tasks, plan, 0.0)]
    assert [task for part in parts for task in part] == tasks
    assert {len(part) for part in parts[:-1]} == {9}
    assert all(len(pickle.dumps(Bundle(part))) <= 10_000 for part in parts)


def test_a_large_task_of_unknown_size_is_sent_alone():
    tasks = tasks_of({"a": bytes(3000)}, {"a": bytes(3000)})
    assert len(within_bytes(tasks, BundlePlan(max_bytes=2000))) == 1


def test_unpicklable_tasks_are_left_to_the_sender():
    tasks = tasks_of({"lock": threading.Lock()}, {})
    assert within_bytes(tasks, BundlePlan(max_bytes=1000)) == tasks


def test_large_tasks_are_sent_alone():
    large = bytes(MAX_BUNDLE_BYTES // 2 + 1)
    assert [len(part) for part in split(tasks_of(*[large] * 8), BundlePlan(), 0.0)] == [1] * 8


@given(st.lists(st.integers(1, 150), min_size=1, max_size=30), st.integers(1, 6))
def test_bundles_are_as_large_as_possible(sizes, batch_size):
    count = len(within_bytes([Weighed(size) for size in sizes], BundlePlan(batch_size, max_bytes=100)))
    more = [sum(sizes[:n]) > 100 for n in range(1, len(sizes) + 1)]
    assert [a for a, b in pairwise(more) if a > b] == []
    most = more.index(True) if True in more else len(sizes)
    assert count == (max(most, 1) if most <= batch_size or most == len(sizes) else most - most % batch_size)
