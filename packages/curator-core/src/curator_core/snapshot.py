# SPDX-License-Identifier: Apache-2.0
"""The inputs of a batch as the stage first received them, for any number of attempts."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from curator_core.exceptions import message_of
from curator_core.guard import check_failure
from curator_core.pickling import dump_copy, load_parts
from curator_core.plain import PlainTasks
from curator_core.task import stamp, state_of

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Snapshot"]

logger = logging.getLogger(__name__)


class Snapshot:
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
    def of(cls, tasks: Sequence[Any], stage: str) -> Snapshot | None:
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

    def singles(self) -> list[Snapshot]:
        """Return a snapshot of each task."""
        return [Snapshot([task]) for task in self.restore()]

    def halves(self) -> tuple[Snapshot, Snapshot]:
        """Return snapshots of the first and the second half of the tasks."""
        tasks, middle = self.restore(), self.count // 2
        return Snapshot(tasks[:middle]), Snapshot(tasks[middle:])

    def _load(self) -> list[Any]:
        tasks, notes = self._kept.load()
        # The pickle of a class may omit the framework's state.
        for task, (task_id, perf), own in zip(tasks, self._origins, notes, strict=True):
            stamp(task, (task_id, perf, own))
        return tasks


class _Pickle:
    """Tasks and their notes, pickled together."""

    __slots__ = ("_buffers", "_head", "_is_writable", "_originals")

    def __init__(self, tasks: Sequence[Any]) -> None:
        self._head, self._originals = dump_copy((tasks, [state_of(task)[2] for task in tasks]))
        self._is_writable = [not (buffer.readonly or _is_arrows(buffer)) for buffer in self._originals]
        pairs = zip(self._originals, self._is_writable, strict=True)
        self._buffers = [bytes(buffer) if writable else buffer for buffer, writable in pairs]

    def load(self) -> tuple[list[Any], list[Any]]:
        originals, self._originals = self._originals, []
        pairs = zip(self._buffers, self._is_writable, strict=True)
        buffers = originals or [bytearray(kept) if writable else kept for kept, writable in pairs]
        tasks, notes = load_parts(self._head, buffers)
        return tasks, notes


def _is_arrows(buffer: memoryview) -> bool:
    """Whether memory belongs to an Arrow table, which Arrow makes read-only even if the memory itself is writable."""
    return type(buffer.obj).__module__.partition(".")[0] == "pyarrow"
