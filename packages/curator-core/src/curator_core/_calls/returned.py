# SPDX-License-Identifier: Apache-2.0
"""Return values of a stage's ``process`` for one task, before they are checked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from curator_core.tasks import Task

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["AT_REST", "LISTS", "MERGED", "Failed", "Merged", "as_iterable", "read_out"]

LISTS = (list, tuple)
AT_REST: set[type] = {type(None), list, tuple, Task}
"""Classes of return values that are not generators; `read_out` adds to them."""

_MANY_CLASSES = 256


class Failed:
    """An error in place of a task's output.

    Args:
        error: The error.
        outputs: What the stage made of the task nevertheless.
        ends_run: Whether the run ends if failures end it. A stage of another framework may give up on a task by
            returning a marker, which ends no run there.
    """

    __slots__ = ("ends_run", "error", "outputs")

    def __init__(self, error: BaseException, outputs: Sequence[Any] = (), *, ends_run: bool = True) -> None:
        self.error = error
        self.outputs = outputs
        self.ends_run = ends_run


class Merged:
    """In place of a task's output: it went into the outputs of the first task of its batch; see `OutcomeKind`."""

    __slots__ = ()

    def __reduce__(self) -> str:
        return "MERGED"


MERGED = Merged()


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
