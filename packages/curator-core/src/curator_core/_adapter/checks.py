# SPDX-License-Identifier: Apache-2.0
"""Checks of the inputs and outputs of stages. Each check raises an error that says how to fix the problem."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from curator_core.errors import ContractError, InputError
from curator_core.tasks import Task, state_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from curator_core._performance import PerfRow
    from curator_core._plan.compiled import CompiledStage

__all__ = ["are_always_valid", "check_count", "check_output", "check_task"]


def check_task(task: Any, task_id: str, compiled: CompiledStage) -> None:
    """Raise if a task is not valid, or lacks what the stage declares in ``inputs()``."""
    if compiled.needs is not None:
        for name in compiled.needs.attributes:
            if not hasattr(task, name):
                have = sorted(key for key in vars(task) if not key.startswith("_"))
                raise _lacks(f"task '{task_id}' has no attribute '{name}'", name, have, compiled)
        if compiled.needs.columns:
            have = list(getattr(task, "columns", ()))
            for name in compiled.needs.columns:
                if name not in have:
                    raise _lacks(f"task '{task_id}' has no column '{name}'", name, have, compiled)
    if not task.validate():
        raise InputError(
            f"task '{task_id}' is not valid",
            stage=compiled.name,
            field="validate()",
            given=type(task),
            expected=f"a task whose {type(task).__name__}.validate() returns True",
            hint="fix the stage that made it, or drop such tasks there",
        )


def are_always_valid(tasks: Sequence[Any]) -> bool:
    """Whether no class of these tasks overrides ``validate``, so that it need not be called."""
    if len(tasks) == 1:  # the usual batch, as in `measure`
        return _is_always_valid(tasks[0].__class__)
    return all(map(_is_always_valid, {task.__class__ for task in tasks}))


@lru_cache(256)
def _is_always_valid(task_class: type) -> bool:
    return getattr(task_class, "validate", None) is Task.validate


def _lacks(message: str, name: str, have: list[str], compiled: CompiledStage) -> InputError:
    return InputError(
        message,
        stage=compiled.name,
        field=name,
        given=have,
        expected="the attributes and columns that the stage declares in inputs()",
        hint="add it in an earlier stage, or remove it from inputs() if the stage does not need it",
    )


def check_count(entries: Any, expected: int, compiled: CompiledStage) -> None:
    """Raise unless ``process_batch`` returned a list with one entry for each input."""
    is_list = isinstance(entries, list | tuple)
    if is_list and len(entries) == expected:
        return
    kinds = ", ".join(type(entry).__name__ for entry in entries[:8]) if is_list else ""
    returned = f"{len(entries)} entr{'y' if len(entries) == 1 else 'ies'}" if is_list else f"a {type(entries).__name__}"
    raise ContractError(
        f"process_batch returned {returned} for {expected} task{'s' * (expected != 1)}",
        stage=compiled.name,
        field="process_batch",
        given=f"[{kinds}{', …' * (len(entries) > 8)}]" if is_list else type(entries),
        expected=f"a list of {expected}, one entry for each input: a task, a list of tasks, or None",
        hint="return None for a task to drop, and a list for a task that becomes several",
    )


def check_output(task: Any, parent_id: str, row: PerfRow, compiled: CompiledStage) -> None:
    """Raise unless this is a task that was made from its input, in this batch, and returned only once.

    Args:
        task: The object that the stage returned.
        parent_id: Id of the input; empty for a source, whose tasks may come from anywhere.
        row: The row of this batch in the history of the tasks that the stage already returned.
        compiled: The stage.
    """
    field = "process_batch" if compiled.batched else "process"
    if not isinstance(task, Task):
        raise ContractError(
            f"returned an object of type '{type(task).__name__}' where a task was expected",
            stage=compiled.name,
            field=field,
            given=task,
            expected="a task, a list of tasks, or None for each input",
            hint="wrap the data: Task(data=…)",
        )
    known_id, perf, _ = state_of(task)
    if known_id in ("", parent_id) and not (perf and perf[-1] is row):
        return
    # Outputs of a source may have passed through later stages; their history then begins with this batch.
    if perf and (perf[-1] is row or perf[0] is row):
        raise ContractError(
            "returned the same task object twice",
            stage=compiled.name,
            field=field,
            given=f"task '{known_id}'",
            expected="a separate object for each output",
            hint="copy the task with dataclasses.replace(task)",
        )
    if parent_id:
        raise ContractError(
            f"returned task '{known_id}' as the output of task '{parent_id}'",
            stage=compiled.name,
            field=field,
            given=f"task '{known_id}'",
            expected="an entry i made from input i, not from another input or in an earlier call",
            hint="keep the order of the inputs, and create a new task from data that you keep between calls",
        )
