# SPDX-License-Identifier: Apache-2.0
"""Tasks that are copied without a pickle: which ones, and that the copies are indistinguishable."""

from __future__ import annotations

import copyreg
import pickle
import sqlite3
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator_core import FileGroupTask, Task
from curator_core._adapter.input_copies import InputCopies, PlainTasks
from curator_core.tasks import new_state, stamp


@dataclass
class Clip(Task[str]):
    """Has additional fields."""

    fps: float = 0.0
    labels: list[str] = field(default_factory=list)


class Frozen(Task[str]):
    """Rejects writes after it is created."""

    def __setattr__(self, name, value):
        if name in vars(self):
            raise AttributeError(name)
        super().__setattr__(name, value)


class Reduced(Task[int]):
    def __reduce__(self):
        return Reduced, (self.data + 1,)


class Stateful(Task[int]):
    def __getstate__(self):
        return {"data": self.data + 1}


class Restored(Task[int]):
    def __setstate__(self, state):
        self.__dict__.update(state, data=state["data"] + 1)


class Made(Task[int]):
    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)


class Slotted(Task[int]):
    __slots__ = ("more",)


class Registered(Task[int]):
    """Other code has registered how it is pickled."""


class Forwarding(Task[dict]):
    """Recurses infinitely while it is unpickled, because it has no data yet."""

    def __getattr__(self, name):
        return self.data[name]


class Watched(Task[int]):
    def __getattribute__(self, name):
        return super().__getattribute__(name)


class Connection(Task[str], sqlite3.Connection):
    """Has state in C in addition to its fields."""


class Text(str):
    """A string that may have attributes."""

    __slots__ = ()


copyreg.pickle(Registered, lambda task: (Registered, (task.data + 1,)))

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
VALUES = SCALARS | st.lists(SCALARS) | st.dictionaries(st.text() | st.integers(), SCALARS)
NOTES = st.none() | st.dictionaries(st.text(), VALUES)


def task_of(data: Any, notes: dict[str, Any] | None = None, **more: Any) -> Task[Any]:
    task = Task(data=data)
    task.__dict__.update(more)
    stamp(task, new_state("7", metadata=notes))
    return task


@given(st.lists(st.builds(task_of, VALUES, NOTES, more=VALUES), max_size=4))
def test_a_plain_copy_equals_a_pickled_one(tasks):
    pickled = pickle.loads(pickle.dumps(tasks))
    copies = InputCopies(tasks)
    for _ in range(2):
        restored = copies.restore()
        assert restored == pickled
        assert [*map(repr, map(vars, restored))] == [*map(repr, map(vars, pickled))]  # 1 == True == 1.0
        assert not any(new is old for new, old in zip(restored, tasks, strict=True))


@pytest.mark.parametrize(
    "task",
    [
        Task(data=5),
        Task(data=b"bytes" * 1000),
        Task(data={"text": "a", "words": 1}),
        Clip(data="a.mp4", fps=25.0, labels=["cat"]),
        Frozen(data="a"),
        FileGroupTask(["a.parquet", "b.parquet"]),
        task_of("a", {"path": "a.txt"}),
    ],
    ids=lambda task: type(task).__name__,
)
def test_text_numbers_and_flat_collections_are_not_pickled(task):
    assert PlainTasks.of([task]) is not None
    (restored,) = InputCopies([task]).restore()
    assert type(restored) is type(task)
    assert restored == task
    assert restored.metadata == task.metadata


@pytest.mark.parametrize(
    "task",
    [
        Task(data=[[1]]),
        Task(data={"a": {}}),
        Task(data={(1, 2): 3}),
        Task(data=(1, [2])),
        Task(data=bytearray(b"a")),
        Task(data={1}),
        Task(data=Text("a")),
        task_of(1, {"notes": [1]}),
        task_of(1, more=object),
        *(kind(data=1) for kind in (Reduced, Stateful, Restored, Made, Slotted, Registered, Watched)),
    ],
    ids=lambda task: f"{type(task).__name__}-{task.data}",
)
def test_other_values_are_pickled(task):
    assert PlainTasks.of([task]) is None
    assert PlainTasks.of([Task(data=1), task]) is None


@pytest.mark.parametrize("kind", [Reduced, Stateful, Restored, Registered])
def test_custom_pickling_of_a_class_is_respected(kind):
    (restored,) = InputCopies([kind(data=1)]).restore()
    assert restored.data == 2


def test_a_class_that_is_registered_later_is_pickled_from_then_on(monkeypatch):
    class Late(Task[int]):
        pass

    assert PlainTasks.of([Late(data=1)]) is not None
    monkeypatch.setitem(copyreg.dispatch_table, Late, lambda task: (Task, (task.data + 1,)))
    (restored,) = InputCopies([Late(data=1)]).restore()
    assert restored == Task(data=2)


@pytest.mark.parametrize(
    "task", [Forwarding(data={"a": 1}), Connection(":memory:")], ids=lambda task: type(task).__name__
)
def test_tasks_that_do_not_unpickle_are_not_copied(task, caplog):
    assert InputCopies.of([task], "decode") is None
    assert "stage 'decode' cannot be retried" in caplog.text


def test_attempts_do_not_see_changes_of_earlier_ones():
    task = Clip(data="a", labels=["cat"])
    task.metadata["path"] = "a.mp4"
    copies = InputCopies([task])
    for _ in range(3):
        (restored,) = copies.restore()
        assert (restored.labels, restored.metadata) == (["cat"], {"path": "a.mp4"})
        restored.labels.append("dog")
        restored.metadata.clear()
    assert (task.labels, task.metadata) == (["cat"], {"path": "a.mp4"})


def test_later_changes_of_a_flat_collection_are_not_seen():
    task = Task(data={"text": "a"})
    copies = InputCopies([task])
    task.data["text"] = "b"
    task.dataset_name = "other"
    (restored,) = copies.restore()
    assert (restored.data, restored.dataset_name) == ({"text": "a"}, "")


def test_tasks_that_share_a_collection_still_share_it():
    shared = [1]
    first, second = InputCopies([Task(data=shared), Task(data=shared)]).restore()
    assert first.data is second.data
    assert first.data is not shared
    (both,) = InputCopies([task_of(shared, more=shared)]).restore()
    assert both.data is both.more


def test_local_classes_are_copied():
    class Local(Task[int]):
        pass

    (restored,) = InputCopies([Local(data=1)]).restore()
    assert type(restored) is Local
