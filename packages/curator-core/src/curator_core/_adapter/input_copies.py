# SPDX-License-Identifier: Apache-2.0
"""The inputs of a batch as the stage first received them, for any number of attempts."""

from __future__ import annotations

import copyreg
import logging
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from curator_core._guard.user_code import check_failure
from curator_core._transport.exceptions import message_of
from curator_core._transport.packed import Packed
from curator_core.tasks import Task, stamp, state_of

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["InputCopies", "PlainTasks"]


logger = logging.getLogger(__name__)


class InputCopies:
    """Tasks that can be restored repeatedly, each time as new objects.

    All attempts share Arrow tables and read-only arrays. The first attempt gets the original writable arrays, and
    each later one a copy of their original contents.

    Args:
        tasks: The tasks; no reference to them is kept.

    Attributes:
        count: How many tasks there are.

    Raises:
        Exception: The tasks have to be pickled, and do not pickle or unpickle.
    """

    def __init__(self, tasks: Sequence[Any]) -> None:
        self.count = len(tasks)
        self._origins = [state_of(task)[:2] for task in tasks]  # immutable
        self._kept = PlainTasks.of(tasks) or _Pickle(tasks)
        self._first: list[Any] | None = self._load()  # now, because many objects pickle but do not unpickle

    @classmethod
    def of(cls, tasks: Sequence[Any], stage: str) -> InputCopies | None:
        """Return a snapshot of tasks; None if they cannot be restored, so that they have only one attempt.

        Args:
            tasks: The tasks.
            stage: Name of the stage, for the log.
        """
        try:
            return cls(tasks)
        except BaseException as exc:  # noqa: BLE001 - pickling runs code of users
            check_failure(exc)
            logger.warning("stage '%s' cannot be retried: its inputs do not pickle: %s", stage, message_of(exc))
            return None

    def restore(self) -> list[Any]:
        """Return the tasks, as they were."""
        tasks, self._first = self._first, None
        return self._load() if tasks is None else tasks

    def singles(self) -> list[InputCopies]:
        """Return a snapshot of each task."""
        return [InputCopies([task]) for task in self.restore()]

    def halves(self) -> tuple[InputCopies, InputCopies]:
        """Return snapshots of the first and the second half of the tasks."""
        tasks, middle = self.restore(), self.count // 2
        return InputCopies(tasks[:middle]), InputCopies(tasks[middle:])

    def _load(self) -> list[Any]:
        tasks, notes = self._kept.load()
        # The pickle of a class may omit the framework's state.
        for task, (task_id, perf), own in zip(tasks, self._origins, notes, strict=True):
            stamp(task, (task_id, perf, own))
        return tasks


class _Pickle:
    """Tasks and their notes, pickled together."""

    __slots__ = ("_kept", "_originals")

    def __init__(self, tasks: Sequence[Any]) -> None:
        packed = Packed.of_copy((tasks, [state_of(task)[2] for task in tasks]))
        self._originals: Packed | None = packed
        self._kept = packed.with_buffers(_kept)

    def load(self) -> tuple[list[Any], list[Any]]:
        originals, self._originals = self._originals, None
        tasks, notes = (originals or self._kept.with_buffers(_writable_copy)).open()
        return tasks, notes


def _kept(original: memoryview) -> memoryview | bytes:
    """Return a copy of memory that the stage may write to, and other memory as it is."""
    return original if original.readonly or _is_arrows(original) else bytes(original)


def _writable_copy(kept: memoryview | bytes) -> memoryview | bytearray:
    """Return a new copy of what was copied because it was writable, and anything else as it is."""
    return bytearray(kept) if isinstance(kept, bytes) else kept


def _is_arrows(buffer: memoryview) -> bool:
    """Whether memory belongs to an Arrow table, which Arrow makes read-only even if the memory itself is writable."""
    return type(buffer.obj).__module__.partition(".")[0] == "pyarrow"


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
        kept, collections = [], list[Any]()
        for task in tasks:
            kind: Any = type(task)
            if kind in copyreg.dispatch_table or not _pickles_by_fields(kind):
                return None
            fields = {**task.__dict__, _STATE: state_of(task)[2]}
            for value in fields.values():
                if type(value) not in _FIXED:
                    if not _is_flat(value):
                        return None
                    collections.append(value)
            kept.append((kind, fields))
        if _are_shared(tasks) or _are_shared(collections):  # a pickle keeps one object one object
            return None
        if collections:
            kept = [(kind, _copied(fields)) for kind, fields in kept]
        return cls(kept, are_fixed=not collections)

    def load(self) -> tuple[list[Any], list[Any]]:
        """Return the tasks, without the framework's state, and their notes: new objects each time."""
        tasks, notes = [], []
        for kind, kept in self._kept:
            task = object.__new__(kind)
            fields = task.__dict__
            fields.update(kept if self._are_fixed else _copied(kept))
            notes.append(fields.pop(_STATE))
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
