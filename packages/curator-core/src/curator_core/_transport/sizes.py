# SPDX-License-Identifier: Apache-2.0
"""The size of a batch. Tasks of one kind are measured together: most of them use the sizes that `Task` computes."""

from __future__ import annotations

from functools import lru_cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from curator_core._guard.user_code import check_failure
from curator_core.tasks import Task

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["bytes_of", "measure"]

_data = attrgetter("data")
_SINGLE = frozenset({type(None), bool, int, float, complex, str})  # one item of unknown size in bytes
_SIZED = frozenset({list, tuple, dict, set, frozenset})
_RAW = frozenset({bytes, bytearray})


def measure(tasks: Sequence[Any]) -> tuple[int, int]:
    """Return the items and payload bytes of tasks: the sums of ``num_items`` and ``num_bytes``, without asking each.

    Raises:
        Exception: A task's own ``num_items`` or ``num_bytes`` raised it.
    """
    if len(tasks) == 1:  # the usual batch, and most of the framework's overhead
        return _measure_one(tasks[0])
    if all(map(_counts_as_task, {task.__class__ for task in tasks})):
        payloads = [*map(_data, tasks)]
        kinds = {payload.__class__ for payload in payloads}
        if kinds <= _SINGLE:
            return len(tasks), 0
        if kinds <= _SIZED:
            return sum(map(len, payloads)), 0
        if kinds <= _RAW:
            return len(tasks), sum(map(len, payloads))
    return sum([task.num_items for task in tasks]), sum([task.num_bytes for task in tasks])


def _measure_one(task: Any) -> tuple[int, int]:
    if _counts_as_task(task.__class__):
        payload = task.data
        kind = payload.__class__
        if kind in _SINGLE:
            return 1, 0
        if kind in _SIZED:
            return len(payload), 0
        if kind in _RAW:
            return 1, len(payload)
    return task.num_items, task.num_bytes


def bytes_of(tasks: Sequence[Any]) -> int:
    """Return the payload bytes of tasks; a task that raises counts as 0. Never raises."""
    try:
        return measure(tasks)[1]
    except BaseException as exc:  # noqa: BLE001 - code of users; the stage that processes the task reports it
        check_failure(exc)
        return sum(map(_bytes_of_one, tasks))


def _bytes_of_one(task: Any) -> int:
    try:
        size = task.num_bytes
    except BaseException as exc:  # noqa: BLE001 - see `bytes_of`
        check_failure(exc)
        return 0
    return size if isinstance(size, int) else 0


@lru_cache(256)
def _counts_as_task(task_class: type) -> bool:
    if not issubclass(task_class, Task):
        return False
    return task_class.num_items is Task.num_items and task_class.num_bytes is Task.num_bytes
