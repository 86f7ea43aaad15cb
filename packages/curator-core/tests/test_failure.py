# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import traceback

import pytest

from curator_core import BaseStageAdapter, ContractError, ProcessingStage, StageError, Task
from curator_core.failure import RemoteTraceback, error_info, rebuild_error, stage_error
from curator_core.pickling import dumps, loads


class NeedsTwoError(Exception):
    """Pickles, and does not unpickle."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


class UnsayableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


class Raising(ProcessingStage):
    def process(self, task):
        raise task.data


def caught(exc: Exception) -> Exception:
    def users_function():
        raise exc

    with pytest.raises(type(exc)) as raised:
        users_function()
    return raised.value


def shown(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def test_an_exception_is_described():
    info = error_info(caught(ValueError("bad")), "on task '3'")
    assert (info.type, info.message, info.doing) == ("ValueError", "bad", "on task '3'")
    assert "users_function" in info.traceback
    assert isinstance(loads(info.pickled), ValueError)


def test_the_type_has_its_module():
    assert error_info(NeedsTwoError(1, 2)).type == f"{__name__}.NeedsTwoError"


@pytest.mark.parametrize(
    "exc",
    [NeedsTwoError(1, 2), ValueError(n for n in range(3)), ValueError(b"x" * 100_000)],
    ids=["does not unpickle", "does not pickle", "too large"],
)
def test_what_does_not_travel_is_described_only(exc):
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


def test_rebuilding_shows_the_same_as_wrapping():
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


def test_the_frames_of_the_framework_are_left_out():
    with pytest.raises(StageError) as raised:
        BaseStageAdapter(Raising()).process_batch([Task(data=ValueError("bad"))])
    frames = traceback.extract_tb(raised.value.__cause__.__traceback__)
    assert [frame.name for frame in frames] == ["process"]


def test_an_error_info_travels():
    info = error_info(caught(ValueError("bad")))
    assert loads(dumps(info)) == info
