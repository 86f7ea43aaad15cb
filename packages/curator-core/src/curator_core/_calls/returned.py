# SPDX-License-Identifier: Apache-2.0
"""Return values of a stage's ``process`` for one task, before they are checked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from curator_core.tasks import Task

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["AT_REST", "LISTS", "Failed", "as_iterable", "read_out"]

LISTS = (list, tuple)
AT_REST: set[type] = {type(None), list, tuple, Task}
"""Classes of return values that are not generators; `read_out` adds to them."""

_MANY_CLASSES = 256


class Failed:
    """An error in place of a task's output."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


def read_out(entry: Any) -> Any:
    """Return what a stage returned for one task, with a generator read into a list."""
    if isinstance(entry, Iterator):
        return list(entry)
    if isinstance(entry, Task) and len(AT_REST) < _MANY_CLASSES:
        AT_REST.add(entry.__class__)
    return entry


def as_iterable(entry: Any) -> Iterable[Any]:
    """Return what a source returned, as an iterable of its outputs."""
    if entry is None:
        return ()
    return entry if isinstance(entry, (*LISTS, Iterator)) else (entry,)
