# SPDX-License-Identifier: Apache-2.0
"""Stages that raise, outputs that break the contract, and tasks that a stage must not see."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest

from curator_core import (
    ContractError,
    EmptyTask,
    InputError,
    ProcessingStage,
    StageError,
    Task,
)
from curator_core._reports.failures import rebuild_error
from curator_core.tasks import new_state, stamp
from curator_core.testing.probe import Calling, CallingBatches, Probe, fail_at, seen


def same(task: Task) -> Task:
    return task


# --- failures -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "exc", [ValueError("bad"), SystemExit(3), MemoryError(), StopIteration("x"), NotImplementedError()]
)
def test_any_exception_is_a_failure_of_the_stage(exc):
    def work(task: Task) -> Task:
        raise exc

    run = Probe(Calling(work))
    with pytest.raises(StageError, match=f"raised {type(exc).__name__} on task '3'") as raised:
        run(seen("3"))
    assert raised.value.__cause__ is exc
    assert run.kinds() == [("failed", 0)]
    assert run.report.error.type == type(exc).__name__


class CauselessError(Exception):
    __cause__ = property(lambda self: sys.exit(1))


class UnnotedError(Exception):
    __notes__ = property(lambda self: sys.exit(1))


class SilentError(Exception):
    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__"):
            return super().__getattribute__(name)
        raise SystemExit(2)


@pytest.mark.parametrize("kind", [CauselessError, UnnotedError, SilentError])
def test_an_exception_with_raising_attributes_is_an_ordinary_failure(kind):
    def work(task: Task) -> Task:
        raise kind("no")

    run = Probe(Calling(work))
    with pytest.raises(StageError, match=f"raised {kind.__name__} on task '3': no"):
        run(seen("3"))
    assert run.kinds() == [("failed", 0)]
    assert run.report.error.traceback.endswith(f"{kind.__name__}: no\n")
    assert isinstance(rebuild_error(run.report.error, "s"), StageError)


@pytest.mark.parametrize("exc", [KeyboardInterrupt, GeneratorExit])
def test_exceptions_that_end_the_process_are_not_caught(exc):
    def work(task: Task) -> Task:
        raise exc

    with pytest.raises(exc):
        Probe(Calling(work))(seen("3"))


def test_the_failing_task_is_named():
    run = Probe(Calling(fail_at("b"), batch_size=3))
    with pytest.raises(StageError, match="on task '1': cannot work on b"):
        run(seen("0", "a"), seen("1", "b"), seen("2", "c"))
    assert run.kinds() == [("failed", 0)] * 3


def test_a_failed_batch_is_reported_as_a_whole():
    run = Probe(CallingBatches(lambda tasks: 1 / 0))
    with pytest.raises(StageError, match="raised ZeroDivisionError on a batch of 2 tasks: division by zero"):
        run(seen("0"), seen("1"))


class TestRetries:
    def stage(self, fails: int, attempts: int = 3) -> ProcessingStage:
        left = [fails]

        def work(tasks: list[Task]) -> list[Any]:
            for task in tasks:
                task.data.append("spoiled")
                task.metadata["spoiled"] = True
            if left[0]:
                left[0] -= 1
                raise ValueError("not yet")
            return [Task(data=task.data) for task in tasks]

        return CallingBatches(work).with_(max_attempts=attempts)

    @pytest.mark.parametrize("on_error", ["raise", "skip"])
    def test_outcomes_are_those_of_the_last_attempt(self, on_error):
        run = Probe(self.stage(fails=9), on_error)
        if on_error == "raise":
            with pytest.raises(StageError, match="not yet"):
                run(seen("0", []))
        else:
            assert run(seen("0", [])) == []
        assert [report.inputs[0].kind for report in run.reports] == ["retried", "retried", "failed"]


# --- the contract ---------------------------------------------------------------------------------------

BROKEN = {
    "None": (lambda tasks: None, "a NoneType for 2 tasks"),
    "a task": (lambda tasks: tasks[0], "a Task for 2 tasks"),
    "a generator": (lambda tasks: (task for task in tasks), "a generator for 2 tasks"),
    "a dict": (lambda tasks: dict.fromkeys("ab"), "a dict for 2 tasks"),
    "nothing": (lambda tasks: [], "0 entries for 2 tasks"),
    "too few": (lambda tasks: tasks[:1], "1 entry for 2 tasks"),
    "too many": (lambda tasks: [*tasks, Task(data=1)], "3 entries for 2 tasks"),
    "a number": (lambda tasks: [tasks[0], 42], "type 'int' where a task was expected"),
    "a number in a list": (lambda tasks: [tasks[0], [tasks[1], 42]], "type 'int' where a task was expected"),
    "a list in a list": (lambda tasks: [tasks[0], [[tasks[1]]]], "type 'list' where a task was expected"),
    "a generator as an entry": (lambda tasks: [tasks[0], iter(())], "where a task was expected"),
    "swapped": (lambda tasks: tasks[::-1], "returned task '1' as the output of task '0'"),
    "a copy of a neighbour": (lambda tasks: [tasks[0], copy.copy(tasks[0])], "the output of task '1'"),
    "twice": (lambda tasks: [tasks[0], tasks[0]], "the same task object twice"),
    "twice in a list": (lambda tasks: [[tasks[0], tasks[0]], None], "the same task object twice"),
    "a new one twice": (lambda tasks: [Task(data=1)] * 2, "the same task object twice"),
    "a new one twice in lists": (lambda tasks: [[n := Task(data=1)], [n]], "the same task object twice"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_outputs_that_break_the_contract_are_errors(how):
    function, says = BROKEN[how]
    ending, skipping = Probe(CallingBatches(function)), Probe(CallingBatches(function), on_error="skip")
    with pytest.raises(ContractError) as raised:
        ending(seen("0"), seen("1"))
    assert says in raised.value.message
    assert raised.value.stage == "CallingBatches"
    assert raised.value.field == "process_batch"
    assert raised.value.given
    assert raised.value.expected
    assert raised.value.hint
    skipping(seen("0"), seen("1"))
    for run in (ending, skipping):
        assert says in run.reports[0].error.message
        assert {outcome.kind for outcome in run.reports[0].inputs} & {"failed", "retried"}


def test_an_output_kept_from_an_earlier_call_is_rejected():
    kept: list[Task] = []
    run = Probe(Calling(lambda task: kept.append(task) or kept[0]))
    run(seen("0"))
    with pytest.raises(ContractError, match="returned task '0' as the output of task '1'"):
        run(seen("1"))


@pytest.mark.parametrize("entry", ["text", b"bytes", {"a": 1}, {1}, 0, False], ids=repr)
def test_an_output_that_is_not_a_task_is_rejected(entry):
    with pytest.raises(ContractError, match=f"type '{type(entry).__name__}'") as raised:
        Probe(Calling(lambda task: entry))(seen("0"))
    assert raised.value.field == "process"
    assert "Task(data=" in raised.value.hint


# --- tasks that a stage must not see --------------------------------------------------------------------


class Invalid(Task):
    def validate(self) -> bool:
        return False


class Table(Task):
    columns = ("text", "n")
    fps = 25


class Unmeasurable(Task):
    @property
    def num_items(self) -> int:
        raise RuntimeError("no idea")


def needing(attributes: list[str], columns: list[str], base: type = Calling) -> ProcessingStage:
    class Needing(base):
        def inputs(self):
            return attributes, columns

    return Needing((lambda tasks: tasks) if base is CallingBatches else same).with_(batch_size=4)


@pytest.mark.parametrize("base", [Calling, CallingBatches])
@pytest.mark.parametrize(
    ("attributes", "columns", "says"),
    [
        (["fps"], ["text"], None),
        (["codec"], [], "has no attribute 'codec'"),
        ([], ["text", "lang"], "has no column 'lang'"),
    ],
)
def test_declared_fields_are_checked_for_both_methods(base, attributes, columns, says):
    run = Probe(needing(attributes, columns, base))
    table = Table(data=1)
    stamp(table, new_state("0"))
    if says is None:
        assert len(run(table)) == 1
        return
    with pytest.raises(InputError, match=f"task '0' {says}") as raised:
        run(table)
    assert raised.value.stage == "Needing"
    assert raised.value.field in ("codec", "lang")
    assert raised.value.given
    assert "inputs()" in raised.value.hint


@pytest.mark.parametrize("base", [Calling, CallingBatches])
@pytest.mark.parametrize("bad", [Invalid, Task, Unmeasurable])
def test_neighbors_of_an_invalid_task_go_on(base, bad):
    run = Probe(needing(["fps"], [], base), on_error="skip")
    tasks = [Table(data=0), bad(data=1), Table(data=2)]
    for number, task in enumerate(tasks):
        stamp(task, new_state(str(number)))
    assert [task.data for task in run(*tasks)] == [0, 2]
    assert run.kinds() == [("out", 1), ("failed", 0), ("out", 1)]
    assert run.report.error.doing == "on task '1'"


def test_a_stage_is_not_called_without_valid_tasks():
    run = Probe(CallingBatches(lambda tasks: 1 / 0), on_error="skip")
    assert run(Invalid(data=1)) == []
    assert run.report.error.type == "curator_core.errors.InputError"


def test_an_invalid_task_ends_a_run():
    with pytest.raises(InputError, match="is not valid"):
        Probe(Calling(same))(Invalid(data=1))


@pytest.mark.parametrize("method", ["get_deterministic_id", "num_bytes"])
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_raising_method_of_an_output_is_a_failure_of_the_stage(method, on_error):
    def broken(self) -> Any:
        raise RuntimeError("no idea")

    kind = type("Odd", (Task,), {method: property(broken) if method == "num_bytes" else broken})
    run = Probe(Calling(lambda task: [kind(data=1)]), on_error)
    if on_error == "raise":
        with pytest.raises(StageError, match="no idea"):
            run(EmptyTask())
    else:
        run(EmptyTask())
    assert run.kinds() == [("failed", 0)]


def test_the_input_that_cannot_be_measured_is_named():
    run = Probe(Calling(same, batch_size=2))
    odd = Unmeasurable(data=1)
    stamp(odd, new_state("1"))
    with pytest.raises(StageError, match="raised RuntimeError on task '1': no idea"):
        run(seen("0"), odd)
