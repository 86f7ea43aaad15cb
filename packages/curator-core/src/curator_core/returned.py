# SPDX-License-Identifier: Apache-2.0
"""What a stage's ``process`` gave for one task, before anything is checked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from curator_core.task import Task

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["AT_REST", "LISTS", "Failed", "as_iterable", "read_out"]

LISTS = (list, tuple)
AT_REST: set[type] = {type(None), list, tuple, Task}
"""Classes of what stages return that is no generator; `read_out` adds to them."""

_MANY_CLASSES = 256


class Failed:
    """Stands where a task's output would be."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


def read_out(entry: Any) -> Any:
    """What a stage returned for one task; a list of it where it is a generator."""
    if isinstance(entry, Iterator):
        return list(entry)
    if isinstance(entry, Task) and len(AT_REST) < _MANY_CLASSES:
        AT_REST.add(entry.__class__)
    return entry


def as_iterable(entry: Any) -> Iterable[Any]:
    """What a source returned, to be read one by one."""
    if entry is None:
        return ()
    return entry if isinstance(entry, (*LISTS, Iterator)) else (entry,)
