# SPDX-License-Identifier: Apache-2.0
"""Tickets and the bundles that replace them: none is lost, duplicated, or too large."""

from __future__ import annotations

import copy
import pickle
from collections import deque
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator_core import Task
from curator_core._plan.bundles import MAX_BUNDLE_BYTES, Bundle, BundlePlan
from curator_xenna._session.inputs import InputQueue, Inputs, Tickets

MACHINE = BundlePlan(slots=4)  # two workers of two slots
seconds = st.floats(1e-7, 5.0)


@dataclass
class Weighed(Task[int]):
    """A task that reports how many bytes it has."""

    @property
    def num_bytes(self) -> int:
        return self.data


def queue_of(count: int, plan: BundlePlan = MACHINE) -> InputQueue:
    return InputQueue([Task(data=number) for number in range(count)], plan)


def take_all(queue: InputQueue, takes: float | None = None) -> list[int]:
    """Return the sizes of all bundles; each is measured, if at all, before the next is taken."""
    sizes = []
    while not queue.is_empty:
        sizes.append(len(queue.take().tasks))
        if takes is not None:
            queue.pace.observe(sizes[-1], sizes[-1] * takes)
    return sizes


def sent(tickets: Tickets) -> list[Bundle]:
    """Return the bundles that workers get for the tickets."""
    return [pickle.loads(pickle.dumps(ticket)) for ticket in tickets]


# --- how many bundles -----------------------------------------------------------------------------------


@pytest.mark.parametrize("takes", [1e-6, 5e-5, 2e-4, 1e-3])
@pytest.mark.parametrize("slots", [1, 2, 4])
def test_ten_thousand_quick_tasks_make_tens_of_bundles(slots: int, takes: float) -> None:
    sizes = take_all(queue_of(10_000, BundlePlan(slots=slots)), takes)
    assert sum(sizes) == 10_000
    assert 8 <= len(sizes) < 100


def test_ten_thousand_unmeasured_tasks_make_few_hundred_bundles() -> None:
    sizes = take_all(queue_of(10_000))
    assert sum(sizes) == 10_000
    assert len(sizes) < 300
    assert max(sizes) == 64


@pytest.mark.parametrize("takes", [None, 0.0, 1e-3, 1.0])
@pytest.mark.parametrize("slots", [1, 2, 4, 8])
def test_eight_large_tasks_make_eight_bundles(slots: int, takes: float | None) -> None:
    large = Weighed(MAX_BUNDLE_BYTES // 2 + 1)
    assert take_all(InputQueue([large] * 8, BundlePlan(slots=slots)), takes) == [1] * 8


def test_eight_tasks_are_spread_over_the_machine() -> None:
    assert take_all(queue_of(8)) == [1] * 8


@pytest.mark.parametrize("slots", [1, 4, 8])
def test_measured_slow_tasks_are_sent_one_by_one(slots: int) -> None:
    assert take_all(queue_of(64, BundlePlan(slots=slots)), takes=1.0) == [1] * 64


def test_slow_tasks_are_sent_one_by_one_even_if_the_first_are_unmeasured() -> None:
    queue = queue_of(64)
    first = [len(queue.take().tasks) for _ in range(8)]
    assert first == [1, 1, 1, 1, 4, 4, 4, 4]
    queue.pace.observe(1, 1.0)
    assert set(take_all(queue)) == {1}


def test_whole_batches_are_sent() -> None:
    sizes = take_all(queue_of(1003, BundlePlan(batch_size=8, slots=4)), takes=0.01)
    assert sum(sizes) == 1003
    assert [size % 8 for size in sizes] == [0] * (len(sizes) - 1) + [3]


def test_full_batches_stay_full_for_large_tasks() -> None:
    tasks = [Weighed(2 * 2**20) for _ in range(100)]
    sizes = take_all(InputQueue(tasks, BundlePlan(batch_size=32, slots=4, full=True)), takes=0.1)
    assert sizes == [32, 32, 32, 4]
    assert max(take_all(InputQueue(tasks, BundlePlan(batch_size=32, slots=4)), takes=0.1)) == 16
    assert InputQueue(tasks * 100, BundlePlan(batch_size=32, slots=4, full=True)).num_tickets == 313


def test_an_empty_queue_gives_empty_bundles() -> None:
    queue = queue_of(0)
    assert queue.is_empty
    assert queue.num_tickets == 0
    assert queue.take().tasks == []
    assert queue.bundles() == []


@pytest.mark.parametrize(
    ("count", "plan", "tickets"),
    [
        (1, MACHINE, 1),
        (100, MACHINE, 100),
        (1000, MACHINE, 256),
        (10_000, MACHINE, 312),
        (100_000, MACHINE, 3125),
        (1_000_000, MACHINE, 4100),  # four of them because of the size limit
        (1000, BundlePlan(slots=20), 640),
        (10_000, BundlePlan(slots=1000), 10_000),
    ],
)
def test_the_number_of_tickets_is_sufficient_and_limited(count: int, plan: BundlePlan, tickets: int) -> None:
    assert InputQueue([Task(data=1)] * count, plan).num_tickets == tickets


def test_large_tasks_have_enough_tickets() -> None:
    tasks = [Weighed(600) for _ in range(2000)]
    assert InputQueue(tasks, BundlePlan(max_bytes=1000)).num_tickets == 2000


def test_the_queue_releases_sent_tasks() -> None:
    queue = queue_of(100)
    for _ in range(10):
        queue.take()
    assert len(queue._tasks) < 100
    while not queue.is_empty:
        queue.take()
    assert queue._tasks == deque()


# --- any order of events --------------------------------------------------------------------------------


@given(
    st.integers(0, 1500),
    st.builds(BundlePlan, batch_size=st.integers(1, 9), slots=st.integers(1, 40)),
    st.lists(st.one_of(st.none(), st.tuples(st.integers(0, 100), seconds)), min_size=1, max_size=30),
)
def test_every_task_is_sent_exactly_once_for_any_measurements(count: int, plan: BundlePlan, events: list[Any]) -> None:
    queue = queue_of(count, plan)
    bundles = []
    for number in range(queue.num_tickets):
        event = events[number % len(events)]
        if event is not None:
            queue.pace.observe(event[0], event[0] * event[1])
        bundles.append(queue.take().tasks)
    assert [task.data for tasks in bundles for task in tasks] == [*range(count)]
    assert queue.is_empty
    filled = [tasks for tasks in bundles if tasks]
    assert filled == bundles[: len(filled)]
    assert all(len(tasks) % plan.batch_size == 0 for tasks in filled[:-1])
    assert queue.take().tasks == []


@given(
    st.one_of(
        st.lists(st.integers(1, 150), max_size=250),  # as many tickets as tasks
        st.builds(lambda size, count: [size] * count, st.integers(1, 150), st.integers(0, 2000)),  # all equal
    ),
    st.integers(1, 5),
    st.one_of(st.none(), seconds),
)
def test_only_a_single_large_task_exceeds_the_bundle_limit(
    sizes: list[int], batch_size: int, takes: float | None
) -> None:
    queue = InputQueue([Weighed(size) for size in sizes], BundlePlan(batch_size, slots=2, max_bytes=100))
    seen = []
    for _ in range(queue.num_tickets):
        tasks = queue.take().tasks
        assert len(tasks) <= 1 or sum(task.num_bytes for task in tasks) <= 100
        seen += tasks
        if takes is not None:
            queue.pace.observe(len(tasks), len(tasks) * takes)
    assert [task.data for task in seen] == sizes


@pytest.mark.parametrize("takes", [None, 1e-6, 0.01, 1.0])
@pytest.mark.parametrize(("count", "size"), [(250, 3000), (250, 700), (2000, 100), (2000, 5)])
def test_the_bundle_limit_holds_for_tasks_of_unknown_size(count: int, size: int, takes: float | None) -> None:
    tasks = [Task(data={"video": bytes(size)}) for _ in range(count)]
    queue = InputQueue(tasks, BundlePlan(slots=4, max_bytes=5000))
    bundles = []
    for _ in range(queue.num_tickets):
        bundles.append(queue.take())
        queue.pace.observe(*(0, 0.0) if takes is None else (1, takes))
    assert sum(len(bundle.tasks) for bundle in bundles) == count
    assert all(len(pickle.dumps(bundle)) <= 5000 for bundle in bundles)


def test_batch_mode_takes_all_bundles_at_once() -> None:
    bundles = queue_of(500, BundlePlan(batch_size=4, slots=4)).bundles()
    assert [task.data for bundle in bundles for task in bundle.tasks] == [*range(500)]
    assert all(bundle.tasks for bundle in bundles)


# --- tickets --------------------------------------------------------------------------------------------


def test_tickets_become_bundles_when_they_are_pickled() -> None:
    queue = queue_of(100)
    tickets = [*Tickets(queue)]
    assert len(queue._tasks) == 100
    there = pickle.loads(pickle.dumps(tickets[0]))
    assert type(there) is Bundle
    assert [task.data for task in there.tasks] == [0]


def test_a_ticket_that_is_pickled_twice_gives_the_same_bundle() -> None:
    first, second, *_ = Tickets(queue_of(100))
    data = pickle.dumps(first)
    assert pickle.loads(pickle.dumps(second)).tasks == [Task(data=1)]
    assert pickle.dumps(first) == data


def test_later_tickets_use_newer_measurements() -> None:
    queue = queue_of(1000)
    first, second, *_ = Tickets(queue)
    pickle.dumps(first)
    queue.pace.observe(1, 0.01)
    assert len(pickle.loads(pickle.dumps(second)).tasks) == 4


@pytest.mark.parametrize("count", [0, 1, 7, 300, 5000])
def test_all_tasks_are_sent_with_the_last_ticket(count: int) -> None:
    queue = queue_of(count)
    bundles = sent(Tickets(queue))
    assert len(bundles) == queue.num_tickets
    assert [task.data for bundle in bundles for task in bundle.tasks] == [*range(count)]
    assert queue.is_empty


def test_no_task_remains_if_the_limit_leaves_too_few_tickets() -> None:
    queue = InputQueue([Task(data={"video": bytes(300)}) for _ in range(1000)], BundlePlan(max_bytes=500))
    bundles = sent(Tickets(queue))
    assert sum(len(bundle.tasks) for bundle in bundles) == 1000
    assert queue.take().tasks == []


def test_surplus_tickets_are_empty() -> None:
    queue = queue_of(10_000)
    queue.pace.observe(1, 1e-6)
    bundles = sent(Tickets(queue))
    sizes = [len(bundle.tasks) for bundle in bundles]
    assert sum(sizes) == 10_000
    assert 0 in sizes
    assert set(sizes[sizes.index(0) :]) == {0}


def test_the_number_of_tickets_is_known_before_creation() -> None:
    queue = queue_of(1000)
    tickets = Tickets(queue)
    assert len(tickets) == len([*tickets]) == 256
    assert tickets
    assert not Tickets(queue_of(0))
    assert isinstance(tickets, list)


@pytest.mark.parametrize("read", [list, tuple, deque, lambda tickets: [*tickets]])
def test_tickets_can_be_read_like_any_sequence(read: Any) -> None:
    assert len(read(Tickets(queue_of(10)))) == 10


def test_neither_tickets_nor_inputs_are_copied() -> None:
    tickets = Tickets(queue_of(10))
    inputs = Inputs([Bundle([]), Task(data=1)])
    copied = copy.deepcopy({"tickets": tickets, "inputs": inputs})
    assert copied["tickets"] is tickets
    assert copied["inputs"] is inputs


# --- regressions ----------------------------------------------------------------------------------------


def test_the_last_ticket_keeps_the_limit_for_tasks_of_unknown_size() -> None:
    queue = InputQueue([Task(data={"video": bytes(3000)}) for _ in range(2000)], BundlePlan(max_bytes=5000))
    assert max(len(bundle.tasks) for bundle in queue.bundles()) == 1


def test_the_last_ticket_keeps_the_limit_if_large_tasks_are_last() -> None:
    sizes = [1] * 900 + [60] * 100
    queue = InputQueue([Weighed(size) for size in sizes], BundlePlan(max_bytes=100))
    queue.pace.observe(1, 1.0)
    for bundle in queue.bundles():
        assert len(bundle.tasks) == 1 or sum(task.num_bytes for task in bundle.tasks) <= 100


def test_instant_tasks_are_sent_within_the_limit() -> None:
    queue = InputQueue([Weighed(600) for _ in range(100)], BundlePlan(max_bytes=1000))
    assert take_all(queue, takes=0.0) == [1] * 100


class Moody(Task[Any]):
    @property
    def num_items(self) -> int:
        raise KeyError("frames")


def test_a_task_that_cannot_be_measured_is_left_to_its_stage() -> None:
    queue = InputQueue([Task(data=1), Moody(data=2)], MACHINE)
    assert sum(len(bundle.tasks) for bundle in queue.bundles()) == 2
