# SPDX-License-Identifier: Apache-2.0
"""Inputs that can be restored, and buffers that cross processes beside a pickle, without copies of arrays."""

from __future__ import annotations

import pickle
import sys
import threading
from pickle import PickleBuffer
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curator_core import DeadLetter, LocalExecutor, Pipeline, ProcessingStage, StageError, Task
from curator_core._adapter.input_copies import InputCopies
from curator_core._performance import Place
from curator_core._transport.packed import Packed
from curator_core._transport.pickling import dumps, loads, pickles
from curator_core.tasks import new_state, stamp
from curator_core.testing import Recorder

HISTORY = (Place.of("s", "w", "n"), 5, 0, 0, 1, {}, 1, 0, "0/7")


class Array:
    """Memory that travels beside the pickle, like that of a numpy array."""

    def __init__(self, memory: Any) -> None:
        self.memory = memory

    def __reduce_ex__(self, protocol):
        return Array, (PickleBuffer(self.memory),)


class Moody:
    """Raises an unusual exception when it is pickled."""

    def __reduce__(self):
        raise RuntimeError("not today")


def snapshot_of(*data: Any) -> InputCopies:
    copies = InputCopies.of([Task(data=one) for one in data], "s")
    assert copies is not None
    return copies


def address(table: pa.Table) -> int:
    return table.column(0).chunk(0).buffers()[1].address


class Forgetful(Task[int]):
    """Pickles only its data."""

    def __reduce__(self):
        return Forgetful, (self.data,)


# --- pickling with separate buffers ---------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, 5, "text", b"bytes", [1, {"a": (2,)}], bytearray(b"x")])
def test_a_pickle_without_buffers_is_one_piece(value):
    packed = Packed.of(value)
    assert packed.buffers == []
    assert packed.open() == value
    assert loads(packed.head) == value


def test_arrays_are_kept_out_of_the_pickle():
    array = Array(bytearray(10**6))
    packed = Packed.of({"array": array, "again": array})
    assert len(packed.head) < 1000
    assert [buffer.nbytes for buffer in packed.buffers] == [10**6]
    array.memory[7] = 42
    loaded = packed.open()
    assert loaded["array"] is loaded["again"]
    assert loaded["array"].memory[7] == 42


def test_several_arrays_keep_their_order():
    packed = Packed.of([Array(bytearray(bytes([n]) * n)) for n in range(1, 5)])
    assert [bytes(array.memory) for array in packed.open()] == [bytes([n]) * n for n in range(1, 5)]


def test_read_only_arrays_stay_read_only():
    packed = Packed.of([Array(bytearray(b"ab")), Array(b"ab")])
    writable, constant = packed.open()
    assert not memoryview(writable.memory).readonly
    assert memoryview(constant.memory).readonly
    (frozen,) = Packed.of([Array(bytearray(2))]).with_buffers(memoryview.toreadonly).open()
    assert memoryview(frozen.memory).readonly


def test_a_packed_value_that_is_pickled_keeps_its_buffers_as_they_are():
    packed = Packed.of([Array(bytearray(b"ab")), Array(b"ab")])
    for again in (loads(dumps(packed)), Packed.of(packed).open()):
        assert again.nbytes == packed.nbytes
        writable, constant = again.open()
        assert [memoryview(each.memory).readonly for each in (writable, constant)] == [False, True]


def test_in_band_pickles_include_arrays():
    array = Array(bytearray(b"abc"))
    data = dumps(array)
    array.memory[0] = 0
    assert bytes(loads(data).memory) == b"abc"


def test_arrow_tables_are_not_copied():
    table = pa.table({"a": list(range(1000))})
    packed = Packed.of(table)
    assert len(packed.head) < 1000
    again = packed.open()
    assert again == table
    assert address(again) == address(table)


def test_local_functions_can_be_pickled_with_buffers():
    assert Packed.of(lambda: 5).open()() == 5


@pytest.mark.parametrize("value", [threading.Lock(), Moody(), (n for n in range(3))], ids=lambda v: type(v).__name__)
def test_unpicklable_objects_are_rejected_with_buffers_too(value):
    assert not pickles(value)
    assert not pickles([1, {"a": value}])
    with pytest.raises((TypeError, RuntimeError)):
        Packed.of([value])


def test_noncontiguous_memory_is_not_pickled():
    # Arrays with such memory, such as numpy's, handle it themselves.
    gaps = Array(memoryview(bytearray(10))[::2])
    with pytest.raises(pickle.PicklingError, match="non-contiguous"):
        Packed.of(gaps)


@pytest.mark.parametrize("value", [None, [1], lambda x: x, Array(bytearray(5)), Task(data=b"x"), Moody])
def test_pickles_is_true_for_picklable_objects(value):
    assert pickles(value)


# --- snapshots ------------------------------------------------------------------------------------------


def test_arrow_tables_are_views_of_the_same_memory():
    table = pa.table({"a": list(range(1000))})
    copies = snapshot_of(table)
    for _ in range(2):
        (task,) = copies.restore()
        assert task.data == table
        assert address(task.data) == address(table)


# --- attempts -------------------------------------------------------------------------------------------


class Changing(ProcessingStage):
    """Changes its inputs in place; fails for a number of calls."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.calls = 0

    def process_batch(self, tasks):
        self.calls += 1
        for task in tasks:
            self.change(task)
            task.metadata["calls"] = self.calls
        if self.calls <= self.failures:
            raise ValueError("failed on purpose")
        return tasks

    def change(self, task):
        task.data.append(self.calls)


class Reading(Changing):
    def change(self, task):
        assert bytes(task.data.memory) == b"abc"


def test_changes_of_one_attempt_are_not_seen_by_the_next():
    stage = Changing(failures=2).with_(max_attempts=3, batch_size=2)
    given = [Task(data=[0]), Task(data=[1]), Task(data=[2])]
    recorder = Recorder()
    result = Pipeline("p", [stage]).run(initial_tasks=given, observers=[recorder])
    assert [task.data for task in result] == [[0, 3], [1, 3], [2, 4]]
    assert [task.metadata for task in result] == [{"calls": 3}, {"calls": 3}, {"calls": 4}]
    assert [(report.attempt, report.is_retried) for report in recorder.batches] == [
        (1, True),
        (2, True),
        (3, False),
        (1, False),
    ]
    assert [task.data for task in given] == [[0], [1], [2]]


class Doubling(ProcessingStage):
    """Changes arrays in place, as numpy code often does; the first calls fail after that."""

    batch_size = 2

    def __init__(self, failures: int = 0) -> None:
        self.left = failures

    def process_batch(self, tasks):
        for task in tasks:
            task.data *= 2
        if self.left:
            self.left -= 1
            raise ConnectionError
        return [Task(data=task.data) for task in tasks]


@pytest.mark.parametrize("executor", [LocalExecutor(), LocalExecutor(workers=2)], ids=["here", "workers"])
@pytest.mark.parametrize("isolated", [None, True], ids=["", "isolated"])
@pytest.mark.parametrize("mode", ["raise", "skip", "letters", "attempts"])
def test_arrays_are_equally_writable_for_every_failure_setting(executor, isolated, mode, tmp_path):
    stage = Doubling(failures=2 if mode == "attempts" else 0).with_(isolated=isolated, num_workers=1)
    policy = {"raise": "raise", "skip": "skip", "letters": DeadLetter(tmp_path), "attempts": "raise"}[mode]
    stage = stage.with_(max_attempts=3, retry_delay_s=0.0) if mode == "attempts" else stage
    given = [Task(data=np.arange(4) + number) for number in range(4)]
    result = Pipeline("p", [stage]).run(executor, given, on_error=policy)
    assert [task.data.tolist() for task in result] == [[2 * (n + number) for n in range(4)] for number in range(4)]


@pytest.mark.parametrize("isolated", [None, True], ids=["", "isolated"])
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_read_only_arrays_are_read_only_for_every_failure_setting(isolated, on_error):
    frozen = np.arange(4)
    frozen.flags.writeable = False
    run = Pipeline("p", [Doubling().with_(isolated=isolated)]).run
    given = [Task(data=frozen), Task(data=frozen)]
    if on_error == "skip":
        assert run(initial_tasks=given, on_error="skip").stages[0].tasks_failed == 2
        return
    with pytest.raises(StageError, match="read-only") as raised:
        run(initial_tasks=given)
    assert "array.copy()" in raised.value.hint


def arrays(directory):
    """Return arrays of each kind, writable and read-only."""
    whole = np.arange(12).reshape(3, 4)
    mapped = np.memmap(directory / "mapped", dtype="i8", mode="w+", shape=4)
    kinds = {
        "contiguous": whole.copy(),
        "fortran": np.asfortranarray(whole),
        "strided": np.arange(12)[::2],
        "reversed": np.arange(12)[::-1],
        "broadcast": np.broadcast_to(np.arange(3), (2, 3)),  # read-only in any case
        "structured": np.zeros(3, dtype=[("a", "i4"), ("b", "f8")]),
        "one field": np.zeros(3, dtype=[("a", "i4"), ("b", "f8")])["b"],
        "records": np.zeros(3, dtype=[("a", "i4")]).view(np.recarray),
        "0-d": np.array(5),
        "empty": np.empty((0, 3)),
        "objects": np.array([{"a": 1}, None], dtype=object),
        "dates": np.array(["2024-01-01"], dtype="datetime64[D]"),
        "masked": np.ma.masked_array([1, 2], [True, False]),
        "mapped": mapped,
    }
    made = {}
    for name, array in kinds.items():
        made[name] = array
        made[f"{name}, read-only"] = view = array.view()
        view.flags.writeable = False
    return made


class Looking(ProcessingStage):
    """Records which inputs are writable, in each call; the first calls fail after that."""

    def __init__(self, failures: int) -> None:
        self.left = failures
        self.seen = []

    def process_batch(self, tasks):
        self.seen.append([task.data.flags.writeable for task in tasks])
        if len(self.seen) <= self.left:
            raise ConnectionError
        return [
            Task(data=(type(task.data), task.data.tolist(), [call[number] for call in self.seen]))
            for number, task in enumerate(tasks)
        ]


@pytest.mark.parametrize(
    ("executor", "isolated"),
    [(LocalExecutor(), None), (LocalExecutor(), True), (LocalExecutor(workers=2), None)],
    ids=["here", "isolated", "workers"],
)
@pytest.mark.parametrize("mode", ["raise", "skip", "letters", "attempts"])
def test_arrays_of_every_kind_keep_their_writability(executor, isolated, mode, tmp_path):
    given = arrays(tmp_path)
    failures = 2 if mode == "attempts" else 0
    stage = Looking(failures).with_(batch_size=len(given), isolated=isolated, num_workers=1)
    stage = stage.with_(max_attempts=failures + 1, retry_delay_s=0.0)
    policy = {"skip": "skip", "letters": DeadLetter(tmp_path / "dead")}.get(mode, "raise")
    result = Pipeline("p", [stage]).run(executor, [Task(data=array) for array in given.values()], on_error=policy)
    assert {name: task.data for name, task in zip(given, result, strict=True)} == {
        name: (type(array), array.tolist(), [array.flags.writeable] * (failures + 1)) for name, array in given.items()
    }


def test_attempts_read_the_same_memory():
    (task,) = Pipeline("p", [Reading(1).with_(max_attempts=2)]).run(initial_tasks=[Task(data=Array(bytearray(b"abc")))])
    assert task.metadata == {"calls": 2}


@pytest.mark.parametrize("bad", [threading.Lock(), Moody(), Array(memoryview(bytearray(4))[::2])])
def test_unpicklable_tasks_have_one_attempt(caplog, bad):
    recorder = Recorder()
    with pytest.raises(StageError, match="failed on purpose"):
        Pipeline("p", [Changing(1).with_(max_attempts=3)]).run(initial_tasks=[Task(data=[bad])], observers=[recorder])
    assert [(report.attempt, report.is_retried) for report in recorder.batches] == [(1, False)]
    assert "stage 'Changing' cannot be retried: its inputs do not pickle" in caplog.text


def test_without_retries_inputs_are_not_pickled():
    lock = threading.Lock()
    (task,) = Pipeline("p", [Changing(0)]).run(initial_tasks=[Task(data=[lock])])
    assert task.data == [lock, 1]


# --- the framework's state ------------------------------------------------------------------------------


@pytest.mark.parametrize("task_class", [Task, Forgetful])
def test_restored_tasks_have_their_state(task_class):
    task = task_class(data=5)
    stamp(task, new_state("7.1", (HISTORY,), {"notes": [1]}))
    copies = InputCopies([task])
    for _ in range(2):
        (restored,) = copies.restore()
        assert restored is not task
        assert restored == task
        assert (restored.task_id, restored.stage_perf, restored.metadata) == ("7.1", task.stage_perf, {"notes": [1]})
        restored.metadata["notes"].append(2)  # changes by one attempt are not visible in the next
    assert task.metadata == {"notes": [1]}


def test_tasks_that_do_not_pickle_keep_their_state():
    tasks = [Task(data=1), Task(data=Moody())]
    for number, task in enumerate(tasks):
        stamp(task, new_state(str(number)))
    assert InputCopies.of(tasks, "s") is None
    assert [task.task_id for task in tasks] == ["0", "1"]


def test_restored_tasks_of_local_classes_keep_their_class():
    class Local:
        pass

    (restored,) = snapshot_of(Local()).restore()
    assert type(restored.data) is Local


class Named(Task[str]):
    """Uses its id and metadata when it is pickled."""

    def __reduce__(self):
        return Named, (f"{self.task_id} {self.metadata['path']} {len(self.stage_perf)}",)


def test_custom_pickling_keeps_the_state_of_the_framework():
    task = Named(data="")
    stamp(task, new_state("7", (HISTORY,), {"path": "a.mp4"}))
    (restored,) = InputCopies([task]).restore()
    assert restored.data == "7 a.mp4 1"


def test_a_task_that_occurs_twice_is_restored_as_one():
    task = Task(data=[1])
    first, second = InputCopies([task, task]).restore()
    assert first is second


def test_a_copy_within_the_process_refers_to_functions(monkeypatch):
    def found(): ...

    assert Packed.of_copy(found).open() is not found  # it cannot be found by its name
    found.__module__, found.__qualname__ = "__main__", "found"
    monkeypatch.setattr(sys.modules["__main__"], "found", found, raising=False)
    assert Packed.of_copy(found).open() is found
