# SPDX-License-Identifier: Apache-2.0
"""The inputs of a batch as they first came, for as many attempts as it takes."""

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
    """Tasks that can be had again and again, each time as new objects.

    Arrow tables and read-only arrays are shared by all attempts. The first attempt gets writable arrays themselves,
    each further one a copy of what they held at first.

    Args:
        tasks: The tasks; let go of.

    Attributes:
        count: How many there are.

    Raises:
        Exception: They take a pickle, and do not pickle, or not unpickle.
    """

    def __init__(self, tasks: Sequence[Any]) -> None:
        self.count = len(tasks)
        self._origins = [state_of(task)[:2] for task in tasks]  # that nobody changes
        self._kept = PlainTasks.of(tasks) or _Pickle(tasks)
        self._first: list[Any] | None = self._load()  # much pickles that does not unpickle

    @classmethod
    def of(cls, tasks: Sequence[Any], stage: str) -> Snapshot | None:
        """A snapshot of tasks; None where they cannot be had again, and so have only one attempt.

        Args:
            tasks: The tasks.
            stage: Name of the stage, for the log.
        """
        try:
            return cls(tasks)
        except BaseException as exc:  # noqa: BLE001 - pickling runs code of users
            check_failure(exc)
            logger.warning("stage '%s' cannot be tried again: its inputs do not pickle: %s", stage, message_of(exc))
            return None

    def restore(self) -> list[Any]:
        """The tasks, as they were."""
        tasks, self._first = self._first, None
        return self._load() if tasks is None else tasks

    def singles(self) -> list[Snapshot]:
        """Each task by itself."""
        return [Snapshot([task]) for task in self.restore()]

    def halves(self) -> tuple[Snapshot, Snapshot]:
        """The first half of the tasks, and the second."""
        tasks, middle = self.restore(), self.count // 2
        return Snapshot(tasks[:middle]), Snapshot(tasks[middle:])

    def _load(self) -> list[Any]:
        tasks, notes = self._kept.load()
        # A class may leave the framework's state out of its pickle.
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
    """Whether memory is that of an Arrow table, which Arrow lets nobody write to, whatever the memory itself says."""
    return type(buffer.obj).__module__.partition(".")[0] == "pyarrow"
