# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import dataclasses
import os
import pickle
import re
import uuid
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator_core import BaseStageAdapter, EmptyTask, NodeInfo, ProcessingStage, Task, WorkerMetadata
from curator_core.tasks import SourceIds, child_id, new_state, stamp, state_of


@dataclass
class Video(Task[bytes]):
    fps: float = 25.0


@dataclass
class NamedTask(Task[object]):
    name: str | None = None

    def get_deterministic_id(self) -> str | None:
        return self.name


class Sized:
    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length


class WithoutDimensions:
    def __len__(self) -> int:
        raise TypeError("len() of unsized object")


class WithBytes:
    nbytes = 12


class Pass(ProcessingStage):
    def process(self, task):
        return task


def of_type(value: object) -> str:
    return str(value) if isinstance(value, int) else type(value).__name__


# --- public attributes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "items"),
    [
        ([1, 2, 3], 3),
        ((1, 2), 2),
        ({"a": 1}, 1),
        ({1, 2}, 2),
        ([], 0),
        (Sized(7), 7),
        ("text", 1),
        ("", 1),
        (b"bytes", 1),
        (bytearray(9), 1),
        (memoryview(b"bytes"), 1),
        (None, 1),
        (object(), 1),
        (WithoutDimensions(), 1),
        (list, 1),
    ],
    ids=of_type,
)
def test_num_items(data, items):
    assert Task(data=data).num_items == items


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (b"12345", 5),
        (bytearray(9), 9),
        (memoryview(b"1234"), 4),
        (WithBytes(), 12),
        ("text", 0),
        ([1, 2], 0),
        (None, 0),
    ],
    ids=of_type,
)
def test_num_bytes_is_known_if_it_costs_nothing(data, size):
    assert Task(data=data).num_bytes == size


def test_num_items_can_be_overridden():
    class Clips(Task[list]):
        @property
        def num_items(self) -> int:
            return 99

    assert Clips(data=[1]).num_items == 99


def test_subclasses_can_have_fields():
    video = Video(b"x", "films", fps=30.0)
    assert (video.data, video.dataset_name, video.fps) == (b"x", "films", 30.0)
    assert repr(video) == "Video(data=b'x', dataset_name='films', fps=30.0)"
    assert [field.name for field in dataclasses.fields(Video)] == ["data", "dataset_name", "fps"]


def test_an_unseen_task_has_no_id_and_no_history():
    task = Task(data=1)
    assert (task.task_id, task.stage_perf, task.metadata) == ("", (), {})
    assert task.validate()
    assert task.get_deterministic_id() is None


@pytest.mark.parametrize("name", ["task_id", "stage_perf", "metadata"])
def test_the_state_is_read_only(name):
    with pytest.raises(AttributeError):
        setattr(Task(data=1), name, "x")


def test_equality_and_repr_ignore_the_state():
    seen, unseen = Task(data=1), Task(data=1)
    stamp(seen, new_state("3.1", (), {"a": 1}))
    assert seen == unseen
    assert repr(seen) == repr(unseen)


def test_tasks_do_not_share_metadata():
    a, b = Task(data=1), Task(data=1)
    a.metadata["x"] = 1
    assert a.metadata == {"x": 1}
    assert b.metadata == {}


def test_replace_makes_a_new_task():
    task = Video(b"x")
    stamp(task, new_state("3"))
    assert dataclasses.replace(task, data=b"y").task_id == ""


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda task: pickle.loads(pickle.dumps(task))])
def test_the_state_is_pickled_with_the_task(again):
    task = Video(b"x", fps=1.0)
    stamp(task, new_state("3.1", (), {"a": 1}))
    other = again(task)
    assert other == task
    assert state_of(other) == state_of(task)


def test_an_empty_task_has_no_items():
    assert (EmptyTask().data, EmptyTask().num_items) == (None, 0)


# --- ids ------------------------------------------------------------------------------------------------


def names_of(tasks) -> list[str]:
    names = SourceIds()
    return [names.name(task) for task in tasks]


def test_tasks_without_a_name_are_numbered():
    assert names_of([Task(data=1)] * 3) == ["0", "1", "2"]


def test_a_number_is_the_position_among_all():
    assert names_of([Task(1), NamedTask(1, name="a"), Task(1)]) == ["0", "a", "2"]


@pytest.mark.parametrize("name", ["a", "files-0a1b", "A_b-C", "x" * 64, "12a", "-", "h123"])
def test_a_readable_name_is_the_id(name):
    assert names_of([NamedTask(1, name=name)]) == [name]


@pytest.mark.parametrize(
    "name", ["", "12", "a.b", "a/b", "../x", "a b", "ü", "x" * 65, "a\n", "a--2", "h" + "0" * 20, "\ud800", "٣"]
)
def test_any_other_name_is_hashed(name):
    (made,) = names_of([NamedTask(1, name=name)])
    assert re.fullmatch("h[0-9a-f]{20}", made)
    assert made != name
    assert names_of([NamedTask(1, name=name)]) == [made]


def test_two_tasks_with_one_name_have_different_ids():
    assert names_of([NamedTask(1, name=n) for n in ("a", "a", "a-2", "a", "a-")]) == ["a", "a--2", "a-2", "a--3", "a-"]


def test_ids_do_not_depend_on_the_order_of_other_names():
    assert set(names_of([NamedTask(1, name=n) for n in "abc"])) == set(names_of([NamedTask(1, name=n) for n in "cab"]))


def test_a_copy_of_source_ids_continues_independently():
    names = SourceIds()
    names.name(NamedTask(1, name="a"))
    dropped = names.copy()
    assert dropped.name(NamedTask(1, name="a")) == "a--2"
    assert names.name(NamedTask(1, name="a")) == "a--2"
    assert names.name(Task(1)) == "2"


tricky_names = st.one_of(
    st.none(),
    st.text(max_size=4),
    st.sampled_from(["a", "a-2", "a--2", "a-", "-", "a.0", "0", "1", "1.0", "h", "h" + "0" * 20, "", "a/0"]),
    st.text("a-.02h", max_size=5),
)


@given(st.lists(tricky_names, max_size=30))
def test_no_two_source_tasks_share_an_id(names):
    made = names_of([NamedTask(1, name=name) for name in names])
    assert len(set(made)) == len(made)
    assert all(re.fullmatch("[A-Za-z0-9_-]+", one) for one in made)


@given(st.lists(tricky_names, min_size=2, max_size=12), st.lists(st.integers(0, 11), max_size=4))
def test_ids_of_descendants_are_unique(names, path):
    def descendant(root: str) -> str:
        for index in path:
            root = child_id(root, index)
        return root

    source_ids = names_of([NamedTask(1, name=name) for name in names])
    everyone = source_ids + ([descendant(root) for root in source_ids] if path else [])
    assert len(set(everyone)) == len(everyone)


def test_hashed_names_are_the_same_in_every_release():
    # Files are named after them and must be found again.
    assert names_of([NamedTask(1, name="a/b")]) == ["ha05a73f66eddd41c20ff"]


# --- transport ------------------------------------------------------------------------------------------


def after_stages(count: int, nodes: list[str]) -> Task:
    """Return a task that has passed a number of stages, each in a separate process."""
    task = Task(data=None)
    stamp(task, new_state("123456.12.3"))
    for number in range(count):
        adapter = BaseStageAdapter(Pass().with_(name=f"VideoCaptioningStage{number}", batch_size=16))
        worker = WorkerMetadata(worker_id=str(uuid.uuid4()))
        adapter.setup_on_node(NodeInfo(nodes[number % len(nodes)]), worker)
        adapter.setup(worker)
        other = Task(data=None)
        stamp(other, new_state("7"))
        (task, _) = adapter.process_batch([pickle.loads(pickle.dumps(task)), other])
        task = pickle.loads(pickle.dumps(task))
    return task


@pytest.mark.parametrize("num_nodes", [1, 2, 10])
def test_the_state_is_small_after_ten_stages_in_ten_processes(num_nodes):
    nodes = [os.urandom(28).hex() for _ in range(num_nodes)]
    task = after_stages(10, nodes)
    assert len(task.stage_perf) == 10
    assert len(pickle.dumps(task)) - len(pickle.dumps(Task(data=None))) <= 1500


def test_worker_and_node_ids_are_unchanged_in_stats():
    nodes = [os.urandom(28).hex(), "node-1", "", "AB12", "a-b-c", "ü", "00"]
    task = after_stages(7, nodes)
    assert [stats.node_id for stats in task.stage_perf] == nodes
    assert all(str(uuid.UUID(stats.worker_id)) == stats.worker_id for stats in task.stage_perf)


@given(st.text("0123456789abcdefA-", max_size=40))
def test_any_worker_id_is_unchanged_in_stats(name):
    from curator_core._performance import Place

    place = Place.of("S", name, name)
    assert pickle.loads(pickle.dumps(place)) is place
