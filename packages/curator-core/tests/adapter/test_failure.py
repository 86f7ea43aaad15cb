# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import traceback

import pytest

from curator_core import BaseStageAdapter, ContractError, ProcessingStage, StageError, Task
from curator_core._reports.failures import RemoteTraceback, error_info, rebuild_error, stage_error
from curator_core._transport.exceptions import unpack_exception
from curator_core._transport.pickling import dumps, loads


class NeedsTwoError(Exception):
    """Can be pickled, but not unpickled."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


class UnsayableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


class Raising(ProcessingStage):
    def process(self, task):
        raise task.data


def caught(exc: BaseException) -> BaseException:
    def users_function():
        raise exc

    with pytest.raises(type(exc)) as raised:
        users_function()
    return raised.value


def shown(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def test_an_exception_has_type_message_and_traceback():
    info = error_info(caught(ValueError("bad")), "on task '3'")
    assert (info.type, info.message, info.doing) == ("ValueError", "bad", "on task '3'")
    assert "users_function" in info.traceback
    assert isinstance(unpack_exception(info.pickled), ValueError)


def test_the_exception_type_includes_its_module():
    assert error_info(NeedsTwoError(1, 2)).type == f"{__name__}.NeedsTwoError"


class Deadly:
    def __reduce__(self):
        return os._exit, (1,)

    def __repr__(self):
        return "<deadly>"


@pytest.mark.parametrize(
    ("exc", "args"),
    [
        (NeedsTwoError(1, 2), ("1 and 2",)),
        (OSError(2, "no such file", "a.txt"), (2, "no such file")),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), ("utf-8", b"\xff", 0, 1, "bad")),
        (SystemExit(3), (3,)),
        (KeyError((1, [2.5, {"a": None}])), ((1, [2.5, {"a": None}]),)),
        (ValueError(Deadly()), ("<deadly>",)),
    ],
    ids=lambda given: type(given).__name__ if isinstance(given, BaseException) else "",
)
def test_an_exception_is_rebuilt_without_running_its_code(exc, args):
    exc.add_note("a note")
    exc.about, exc.dropped = {"code": 7}, Deadly()
    again = unpack_exception(error_info(caught(exc)).pickled)
    assert (type(again), again.args, again.__notes__, again.about) == (type(exc), args, ["a note"], {"code": 7})
    assert not hasattr(again, "dropped")
    if not any(isinstance(argument, Deadly) for argument in exc.args):
        assert str(again) == str(exc)


def test_exceptions_of_an_exception_group_are_sent_with_it():
    again = unpack_exception(error_info(caught(ExceptionGroup("both", [NeedsTwoError(1, 2), OSError(2, "x")]))).pickled)
    assert [type(each) for each in again.exceptions] == [NeedsTwoError, FileNotFoundError]


def test_exceptions_that_refer_to_each_other_are_sent_once():
    errors = [ValueError(number) for number in range(200)]
    for error in errors:
        error.others = errors
    again = unpack_exception(error_info(caught(errors[0])).pickled)
    assert again.args == (0,)


def test_an_exception_too_large_to_send_is_only_described():
    exc = ValueError(b"x" * 100_000)
    info = error_info(caught(exc))
    assert info.pickled is None
    assert info.message == str(exc)
    error = rebuild_error(info, "S")
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "users_function" in shown(error)


def test_a_broken_str_does_not_hide_the_error():
    assert error_info(caught(UnsayableError())).message == "<its __str__ raised RuntimeError>"


def test_the_wrapper_names_the_stage_and_keeps_the_cause():
    original = caught(ValueError("bad"))
    error = stage_error(original, "S", "on task '3'")
    assert str(error).startswith("stage 'S': raised ValueError on task '3': bad")
    assert error.__cause__ is original
    assert "users_function" in shown(error)


def test_a_rebuilt_error_looks_like_a_wrapped_one():
    info = error_info(caught(ValueError("bad")), "on task '3'")
    error = rebuild_error(info, "S")
    assert str(error) == str(stage_error(caught(ValueError("bad")), "S", "on task '3'"))
    assert isinstance(error.__cause__, ValueError)
    assert "users_function" in shown(error)


def test_our_own_error_about_the_stage_is_not_wrapped():
    original = ContractError("is wrong", stage="S")
    assert stage_error(original, "S") is original
    again = rebuild_error(error_info(original), "S")
    assert type(again) is ContractError
    assert str(again) == str(original)


def test_the_error_of_a_pipeline_inside_a_stage_is_wrapped():
    inner = StageError("raised ValueError: bad", stage="Inner")
    error = stage_error(inner, "Outer")
    assert (error.stage, error.__cause__) == ("Outer", inner)
    assert rebuild_error(error_info(inner), "Outer").stage == "Outer"


def test_tracebacks_omit_the_frames_of_the_framework():
    with pytest.raises(StageError) as raised:
        BaseStageAdapter(Raising()).process_batch([Task(data=ValueError("bad"))])
    frames = traceback.extract_tb(raised.value.__cause__.__traceback__)
    assert [frame.name for frame in frames] == ["process"]


def test_an_error_info_can_be_pickled():
    info = error_info(caught(ValueError("bad")))
    assert loads(dumps(info)) == info
