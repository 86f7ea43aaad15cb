# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import pickle
import sys
import threading
from collections import UserDict

import pytest

from curator_core._transport.pickling import check_pickles, dumps, find_unpicklable, loads


class Holder:
    def __init__(self, **parts: object) -> None:
        self.__dict__.update(parts)


class Slotted:
    __slots__ = ("inner",)

    def __init__(self, inner: object) -> None:
        self.inner = inner


class WithoutItsLock(Holder):
    def __getstate__(self) -> dict[str, object]:
        return {name: part for name, part in vars(self).items() if name != "lock"}


class Moody:
    def __reduce__(self):
        raise RuntimeError("not today")


def closure_over(value: object):
    return lambda: value


def test_dumped_objects_are_loaded():
    value = {"a": [1, (2, b"x")], "b": None}
    assert loads(dumps(value)) == value


def test_local_functions_can_be_pickled():
    assert loads(dumps(closure_over(5)))() == 5


def test_local_classes_can_be_pickled():
    class Local:
        x = 3

    assert loads(dumps(Local())).x == 3


def test_plain_pickle_reads_it():
    assert pickle.loads(dumps([1, 2])) == [1, 2]


def test_an_open_file_is_rejected(tmp_path):
    path = tmp_path / "file"
    path.write_text("content")
    with path.open() as text, path.open("rb") as raw, path.open("w") as writing:
        for file in (text, raw, writing):
            with pytest.raises((TypeError, pickle.PicklingError)):
                dumps([file])


def test_in_memory_files_and_standard_streams_can_be_pickled(monkeypatch):
    assert loads(dumps(io.BytesIO(b"x"))).read() == b"x"
    assert loads(dumps(io.StringIO("x"))).read() == "x"
    monkeypatch.setattr(sys, "stderr", sys.__stderr__)  # pytest has replaced it with a file
    assert loads(dumps(sys.stderr)) is sys.stderr


@pytest.mark.parametrize("value", [[1], closure_over(1), b"x" * 10**6])
def test_the_check_accepts_what_can_be_dumped(value):
    check_pickles(value)


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (lambda bad: Holder(a=1, b=bad), "stage.b"),
        (lambda bad: Holder(a={"k": [0, bad]}), "stage.a['k'][1]"),
        (lambda bad: Holder(a=Holder(b=(bad,))), "stage.a.b[0]"),
        (lambda bad: Holder(a=Slotted(bad)), "stage.a.inner"),
        (lambda bad: Holder(f=closure_over(bad)), "stage.f's variable value"),
        (lambda bad: Holder(d=UserDict(x=bad)), "stage.d['x']"),
        (lambda bad: Holder(buffer=io.BytesIO(b"x"), b=bad), "stage.b"),
        (lambda bad: bad, "stage"),
    ],
)
def test_the_unpicklable_attribute_is_found(make, path):
    for bad in (threading.Lock(), (n for n in range(3)), Moody()):
        found_path, found = find_unpicklable(make(bad), "stage")
        assert found_path == path
        assert found is bad


def test_an_unpicklable_global_of_a_function_is_found():
    names = {"lock": threading.Lock()}
    exec("def work():\n    return lock", names)  # noqa: S102 - a function that is in no file
    path, _ = find_unpicklable(Holder(work=names["work"]), "stage")
    assert path == "stage.work's global lock"


def test_an_unpicklable_member_of_a_set_is_found():
    lock = threading.Lock()
    path, found = find_unpicklable({lock}, "stage")
    assert (path, found) == ("stage[0]", lock)


def test_circular_references_are_walked_once():
    holder = Holder(a=1)
    holder.itself = holder
    holder.bad = threading.Lock()
    path, found = find_unpicklable(holder, "stage")
    assert found is holder.bad
    assert path.endswith(".bad")


def test_attributes_left_out_of_the_pickle_are_not_blamed():
    bad = (n for n in range(3))
    stage = WithoutItsLock(lock=threading.Lock(), numbers=bad)
    assert find_unpicklable(stage, "stage") == ("stage.numbers", bad)
    check_pickles(WithoutItsLock(lock=threading.Lock()))
