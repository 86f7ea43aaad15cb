# SPDX-License-Identifier: Apache-2.0
"""Tasks as bytes and back: as JSON if nothing is lost, otherwise pickled."""

from __future__ import annotations

import pickle
import threading
from dataclasses import dataclass
from enum import IntEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator_core import DocumentBatch, EmptyTask, FileGroupTask, Pipeline, Task, processing_stage
from curator_core.deadletter.payload import pack_task, unpack
from curator_core.tasks import new_state, stamp

LIMIT = 1 << 20

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@dataclass
class VideoTask(Task[bytes]):
    fps: float = 0.0


@dataclass
class Forgetful(Task):
    """Pickles only its data, without the framework's state."""

    def __reduce__(self):
        return Forgetful, (self.data,)


@dataclass
class MyBatch(DocumentBatch):
    pass


class Text(str):
    __slots__ = ()


class Level(IntEnum):
    LOW = 1


class Moody:
    def __reduce__(self):
        raise RuntimeError("not today")


class MuteError(Exception):
    def __str__(self):
        raise ValueError


class MoodyAndMute:
    def __reduce__(self):
        raise MuteError


def round_trip(task, limit=LIMIT):
    payload = pack_task(task, limit)
    return payload, unpack(pickle.loads(pickle.dumps(payload)))


def same(a, b):
    """Whether two values and their types are equal at all levels; NaN equals NaN."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return repr(a) == repr(b)  # distinguishes 0.0 from -0.0, and NaN from none


# --- JSON -----------------------------------------------------------------------------------------------


@given(data=json_values, name=st.text(), notes=st.none() | st.dictionaries(st.text(), json_values))
def test_json_values_are_restored_exactly(data, name, notes):
    task = Task(data=data, dataset_name=name)
    stamp(task, new_state("3.1", metadata=notes))
    payload, again = round_trip(task)
    assert payload.kind == "json"
    assert payload.size == len(payload.head)
    assert type(again) is Task
    assert same(again.data, data)
    assert same(again.dataset_name, name)
    assert again.task_id == "3.1"
    assert same(again.metadata, notes or {})


@pytest.mark.parametrize(
    "task",
    [
        EmptyTask(),
        FileGroupTask(["a.jsonl", "s3://b/ü"], "d"),
        FileGroupTask(["a.jsonl"], "d", byte_range=(5, 9)),
        DocumentBatch([{"a": 1.5}, {"b": [None]}], "d"),
        Task[int](data=5),
        Task(data=10**4000),
    ],
)
def test_plain_tasks_are_stored_as_json(task):
    payload, again = round_trip(task)
    assert payload.kind == "json"
    assert type(again) is type(task)
    assert again == task


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def sharing(depth):
    """Return nested lists that as JSON would grow with two to the depth."""
    value = []
    for _ in range(depth):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    "data",
    [
        (1, 2),
        [{"a": (1,)}],
        {1: "a"},
        {None: 1},
        {1, 2},
        b"bytes",
        Text("x"),
        {Text("x"): 1},
        Level.LOW,
        1j,
        "\ud800",
        "\ud83d\ude00",  # two surrogates, which JSON would join
        10**5000,
        nested(150),
        sharing(60),
    ],
    ids=lambda data: repr(type(data)),
)
def test_values_that_json_would_change_are_pickled(data):
    payload, again = round_trip(Task(data=data))
    assert payload.kind == "pickle"
    assert type(again.data) is type(data)
    if len(payload.head) > 1000 or not isinstance(data, list):  # comparing shared lists takes as long as JSON would
        assert again.data == data


def test_circular_values_are_pickled():
    ring = []
    ring.append(ring)
    payload, again = round_trip(Task(data=ring))
    assert payload.kind == "pickle"
    assert again.data[0] is again.data


@pytest.mark.parametrize("notes", [{"a": (1,)}, {1: 2}, {"a": b"x"}])
def test_tasks_with_notes_that_json_would_change_are_pickled(notes):
    task = Task(data=1)
    task.metadata.update(notes)
    payload, again = round_trip(task)
    assert payload.kind == "pickle"
    assert again.metadata == notes


def test_tasks_with_additional_attributes_are_pickled():
    task = Task(data=1)
    task.extra = 5
    payload, again = round_trip(task)
    assert payload.kind == "pickle"
    assert again.extra == 5


# --- pickles --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [VideoTask(b"abc", "d", fps=25.0), MyBatch([{"a": 1}]), Task(data=VideoTask(b""))])
def test_tasks_of_custom_classes_are_pickled(task):
    payload, again = round_trip(task)
    assert payload.kind == "pickle"
    assert again == task
    assert type(again) is type(task)


def test_the_class_is_named():
    assert pack_task(VideoTask(b""), LIMIT).task_class.endswith("test_payload.VideoTask")
    assert pack_task(Task(data=1), LIMIT).task_class == "curator_core.tasks.Task"


def test_id_and_notes_are_restored_even_if_the_class_omits_them():
    task = Forgetful([1])
    stamp(task, new_state("7", metadata={"note": 1}))
    _, again = round_trip(task)
    assert (again.task_id, again.metadata) == ("7", {"note": 1})


def test_the_history_is_omitted_and_the_task_not_modified():
    @processing_stage()
    def note(task):
        task.metadata["seen"] = 1
        return task

    for given_task in (Task(data=[1]), VideoTask(b"x")):
        (task,) = Pipeline("p", [note]).run(initial_tasks=[given_task])
        state = task._state
        assert state[1]
        payload, again = round_trip(task)
        assert task._state is state
        assert again._state == ("0", (), {"seen": 1})
        stamp(task, new_state("0", metadata={"seen": 1}))
        assert pack_task(task, LIMIT) == payload


def test_arrays_are_kept_out_of_the_pickle():
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(10**5, dtype="float32").reshape(10, -1)
    payload, again = round_trip(Task(data={"a": array, "b": array}))
    assert len(payload.head) < 2000
    assert [len(buffer) for buffer in payload.buffers] == [array.nbytes]
    assert payload.size == len(payload.head) + array.nbytes
    assert (again.data["a"] == array).all()
    assert again.data["a"] is again.data["b"]


def test_arrow_tables():
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"a": list(range(10000)), "b": ["x", None] * 5000})
    payload, again = round_trip(DocumentBatch(table))
    assert payload.kind == "pickle"
    assert payload.buffers
    assert again.data == table
    assert pack_task(DocumentBatch(table.slice(0, 1)), 20_000).kind == "pickle"  # not the whole table


# --- tasks that are not stored --------------------------------------------------------------------------


@pytest.mark.parametrize("task", [Task(data="x" * 1000), Task(data=("x" * 1000,)), VideoTask(b"x" * 1000)])
def test_a_task_that_is_too_large_is_not_stored(task):
    stamp(task, new_state("5"))
    size = pack_task(task, LIMIT).size
    assert pack_task(task, size).kind != "none"
    payload = pack_task(task, 900)
    assert (payload.kind, payload.head, payload.buffers, payload.task_id) == ("none", b"", (), "5")
    assert payload.size >= 1000
    assert f"takes {payload.size:,} bytes, but max_bytes is 900" in payload.note


def test_a_much_too_large_task_is_not_pickled():
    @dataclass
    class Refusing(Task):
        def __reduce__(self):
            raise AssertionError

    payload = pack_task(Refusing(b"x" * 1001), 1000)
    assert (payload.kind, payload.size) == ("none", 1001)
    assert "max_bytes" in payload.note


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (threading.Lock(), "TypeError: cannot pickle"),
        ([Moody()], "RuntimeError: not today"),
        (MoodyAndMute(), "MuteError: <its __str__ raised ValueError>"),
    ],
    ids=["lock", "moody", "mute"],
)
def test_an_unpicklable_task_is_not_stored(data, reason):
    task = Task(data=data)
    stamp(task, new_state("5"))
    payload = pack_task(task, LIMIT)
    assert (payload.kind, payload.task_id, payload.head) == ("none", "5", b"")
    assert f"cannot be pickled: {reason}" in payload.note
    assert task.task_id == "5"


def test_a_task_without_data_is_not_stored():
    payload = pack_task(Task.__new__(Task), LIMIT)
    assert payload.kind == "none"
    assert "AttributeError" in payload.note
