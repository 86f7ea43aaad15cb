# SPDX-License-Identifier: Apache-2.0
"""Stages in their own processes: objects that cannot be sent, and unusual exceptions."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import types

import pytest

from curator_core import ProcessingStage, StageError, Task
from curator_core.testing import Recorder

from .stages import Deadly, Exiting, UnfitError, Unlucky, run, unfit  # noqa: TID252 - no import can write this directory's name


@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize(("retry_on", "calls"), [(UnfitError, 3), (ConnectionError, 1)])
def test_retry_on_matches_exceptions_that_do_not_unpickle(tmp_path, isolated, retry_on, calls):
    stage = Unlucky(tmp_path / "calls", unfit).with_(isolated=isolated, retry_on=retry_on, max_attempts=3)
    recorder = Recorder()
    result = run(stage, data=["a"], on_error="skip", observers=[recorder])
    assert len((tmp_path / "calls").read_text()) == calls
    assert len(result) == (calls == 3)
    assert recorder.batches[0].error.type.endswith("processes.stages.UnfitError")
    assert recorder.batches[0].error.doing == "on task '0'"


def test_other_retries_do_not_use_up_the_repeat_after_a_kill(tmp_path):
    marks = tmp_path / "calls"
    marks.write_text("x")
    stage = Unlucky(marks, lambda: os._exit(1)).with_(isolated=True, retry_on=ConnectionError, max_attempts=3)
    assert len(run(stage, data=["a"])) == 1


def test_notes_that_cannot_be_sent_are_a_failure_and_not_a_crash():
    class Noting(ProcessingStage):
        isolated = True

        def process(self, task):
            task.metadata["lock"] = threading.Lock()
            return Task(data=1)

    with pytest.raises(StageError, match="cannot pickle"):
        run(Noting(), data=["a"])


def test_an_exception_of_a_class_that_only_the_process_knows_is_described():
    class Foreign(ProcessingStage):
        isolated = True

        def process(self, task):
            module = sys.modules["only_there"] = types.ModuleType("only_there")
            module.ForeignError = type("ForeignError", (Exception,), {"__module__": module.__name__})
            raise module.ForeignError("not here")

    with pytest.raises(StageError, match="ForeignError on task '0': not here") as raised:
        run(Foreign(), data=["a"])
    assert "only_there.ForeignError: not here" in str(raised.value.__cause__)


def test_a_task_that_exits_while_unpickling_is_a_failure():
    result = run(Deadly(), data=[Exiting(), "a"], on_error="skip")
    assert [task.data for task in result] == ["a"]


def test_a_base_exception_is_the_failure_of_its_task(monkeypatch, children):
    monkeypatch.setattr("curator_core._processes.process._EXIT_S", 0.3)  # its thread does not end on its own

    class Cancelling(ProcessingStage):
        isolated = True

        def process(self, task):
            threading.Thread(target=threading.Event().wait, daemon=False).start()
            raise asyncio.CancelledError

    before = children()
    result = run(Cancelling(), data=["a"], on_error="skip")
    assert result.stages[0].first_error == "CancelledError: "
    assert children() <= before
