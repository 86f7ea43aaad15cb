# SPDX-License-Identifier: Apache-2.0
"""Items and bytes of a batch: the sums of what the tasks report."""

from __future__ import annotations

from array import array
from collections import UserList, deque
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator_core import DocumentBatch, EmptyTask, Pipeline, ProcessingStage, Task
from curator_core._transport.sizes import measure


@dataclass
class Plain(Task[Any]):
    """Uses the default counts of a task."""

    fps: float = 0.0


@dataclass
class Counting(Task[Any]):
    @property
    def num_items(self) -> int:
        return 7


@dataclass
class Weighing(Task[Any]):
    @property
    def num_bytes(self) -> int:
        return 1000


@dataclass
class Fixed(Task[Any]):
    num_items = 3  # type: ignore[assignment]


class Listed(list):
    def __len__(self) -> int:
        return 100


class Wordy(str):
    def __len__(self) -> int:
        return 100


class Nameless:
    """Has no length and no bytes."""


class Dimensionless:
    """Like an array without dimensions: has the method, but no length."""

    nbytes = 8

    def __len__(self) -> int:
        raise TypeError("len() of unsized object")


class Moody(Task[Any]):
    @property
    def num_items(self) -> int:
        raise KeyError("frames")


TABLE = pa.table({"a": [1, 2, 3]})

payloads = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=3),
    st.binary(max_size=5),
    st.binary(max_size=5).map(bytearray),
    st.binary(max_size=5).map(memoryview),
    st.lists(st.integers(), max_size=3),
    st.lists(st.integers(), max_size=3).map(tuple),
    st.sets(st.integers(), max_size=3),
    st.frozensets(st.integers(), max_size=3),
    st.dictionaries(st.integers(), st.none(), max_size=3),
    st.sampled_from([TABLE, Nameless(), Dimensionless(), 1j, Listed(), Wordy("a"), UserList("ab"), deque("abc")]),
    st.just(array("d", [1.0, 2.0])),
)
classes = st.sampled_from([Task, Plain, Counting, Weighing, Fixed])
# Batches of one kind take a faster path than mixed ones.
batches = st.one_of(
    st.lists(st.builds(lambda kind, data: kind(data), classes, payloads), max_size=6),
    st.builds(lambda kind, data: [kind(one) for one in data], classes, st.lists(payloads, max_size=6)),
    st.builds(lambda data: [Task(one) for one in data], st.lists(st.binary(max_size=9), max_size=6)),
    st.builds(lambda data: [Plain(one) for one in data], st.lists(st.lists(st.none(), max_size=9), max_size=6)),
)


@given(batches)
def test_a_batch_measures_items_and_bytes_of_its_tasks(tasks):
    assert measure(tasks) == (sum(task.num_items for task in tasks), sum(task.num_bytes for task in tasks))


@pytest.mark.parametrize(
    ("tasks", "measured"),
    [
        ([], (0, 0)),
        ([EmptyTask()], (0, 0)),
        ([EmptyTask(), Task("a")], (1, 0)),
        ([Task("four"), Task("five!")], (2, 0)),
        ([Task(1), Task("a"), Task(None)], (3, 0)),
        ([Task([1, 2]), Task({}), Task((1,))], (3, 0)),
        ([Task(b"four"), Task(bytearray(5))], (2, 9)),
        ([Task(b"four"), Task([1, 2])], (3, 4)),
        ([Task(memoryview(b"four"))], (1, 4)),
        ([Task(TABLE), Task(TABLE)], (6, 48)),
        ([DocumentBatch([{}, {}]), DocumentBatch(TABLE)], (5, 24)),
        ([Task(Dimensionless())], (1, 8)),
        ([Task(Listed())], (100, 0)),
        ([Counting(b"four")], (7, 4)),
        ([Counting("a"), Task("a")], (8, 0)),
        ([Weighing([1, 2])], (2, 1000)),
        ([Fixed(b"four")], (3, 4)),
    ],
)
def test_items_and_bytes_of_known_batches(tasks, measured):
    assert measure(tasks) == measured


def test_an_exception_in_a_size_property_is_raised():
    with pytest.raises(KeyError, match="frames"):
        measure([Task("a"), Moody("b")])


# --- regressions ----------------------------------------------------------------------------------------


class MakesOneMoody(ProcessingStage):
    batch_size = 3

    def process(self, task):
        return Moody(data=1) if task.data == 1 else Task(data=task.data)


def test_an_output_that_cannot_be_measured_fails_alone():
    tasks = [Task(data=number) for number in range(3)]
    result = Pipeline("p", [MakesOneMoody()]).run(initial_tasks=tasks, on_error="skip")
    assert [task.task_id for task in result] == ["0", "2"]
