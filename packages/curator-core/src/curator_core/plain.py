# SPDX-License-Identifier: Apache-2.0
"""Tasks with strings, numbers, or flat lists and dicts of them, which are copied, while others are pickled."""

from __future__ import annotations

import copyreg
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from curator_core.task import Task, state_of

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PlainTasks"]

_FIXED = frozenset({type(None), bool, int, float, complex, str, bytes})
_STATE = "_state"
_HOOKS = ("__reduce_ex__", "__reduce__", "__getstate__", "__new__", "__getattribute__")  # that every class has
_MORE_HOOKS = ("__setstate__", "__getnewargs__", "__getnewargs_ex__", "__getattr__")


class PlainTasks:
    """Captured tasks that can be restored many times, as from a pickle, at a fraction of its cost.

    Args:
        kept: The class and the fields of each task, with its notes in place of the framework's state.
        are_fixed: Whether all fields are immutable, so that they need no further copies.
    """

    __slots__ = ("_are_fixed", "_kept")

    def __init__(self, kept: list[tuple[Any, dict[str, Any]]], *, are_fixed: bool) -> None:
        self._kept = kept
        self._are_fixed = are_fixed

    @classmethod
    def of(cls, tasks: Sequence[Any]) -> PlainTasks | None:
        """Capture tasks; None if they have to be pickled.

        Args:
            tasks: The tasks.
        """
        collections: list[Any] = []
        for task in tasks:
            kind: Any = type(task)
            if kind in copyreg.dispatch_table or not _pickles_by_fields(kind):
                return None
            fields = task.__dict__
            for name in fields:
                value = state_of(task)[2] if name == _STATE else fields[name]
                if type(value) not in _FIXED:
                    if not _is_flat(value):
                        return None
                    collections.append(value)
        if _are_shared(tasks) or _are_shared(collections):  # a pickle keeps one object one object
            return None
        kept = [(type(task), _copied({**task.__dict__, _STATE: state_of(task)[2]})) for task in tasks]
        return cls(kept, are_fixed=not collections)

    def load(self) -> tuple[list[Any], list[Any]]:
        """Return the tasks, without the framework's state, and their notes: new objects each time."""
        tasks, notes = [], []
        for kind, kept in self._kept:
            fields = kept.copy() if self._are_fixed else _copied(kept)
            notes.append(fields.pop(_STATE))
            task = object.__new__(kind)
            task.__dict__.update(fields)
            tasks.append(task)
        return tasks, notes


def _copied(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value if type(value) in _FIXED else value.copy() for name, value in fields.items()}


def _is_flat(value: Any) -> bool:
    """Whether a shallow copy of a value shares nothing mutable with it."""
    kind = type(value)
    if kind is dict:
        return {*map(type, value)} <= _FIXED and {*map(type, value.values())} <= _FIXED
    return kind is list and {*map(type, value)} <= _FIXED


def _are_shared(values: Sequence[Any]) -> bool:
    """Whether any of the values occurs twice."""
    return len(values) > 1 and len({*map(id, values)}) < len(values)


@lru_cache(256)
def _pickles_by_fields(task_class: type) -> bool:
    """Whether tasks of a class pickle as their fields, and nothing else."""
    return (
        issubclass(task_class, Task)
        and task_class.__basicsize__ == Task.__basicsize__  # no slots, and no state in C code
        and all(getattr(task_class, hook) is getattr(object, hook) for hook in _HOOKS)
        and not any(hasattr(task_class, hook) for hook in _MORE_HOOKS)
    )
