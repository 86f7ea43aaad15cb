# SPDX-License-Identifier: Apache-2.0
"""The inputs of a batch as they first came, for as many attempts as it takes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from curator_core.pickling import dump_parts, load_parts

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Snapshot"]

logger = logging.getLogger(__name__)


class Snapshot:
    """Tasks that can be had again and again, each time as new objects.

    Arrays and Arrow tables are not copied: all restored tasks see the same memory, read-only, so that no attempt can
    change what the next one is given.

    Args:
        head: The tasks, pickled but for their buffers.
        buffers: The buffers, read-only.
        chosen: Which of the tasks it is about.
    """

    def __init__(self, head: bytes, buffers: Sequence[memoryview], chosen: range) -> None:
        self._head = head
        self._buffers = buffers
        self._chosen = chosen

    @classmethod
    def of(cls, tasks: Sequence[Any], stage: str) -> Snapshot | None:
        """A snapshot of tasks; None where they do not pickle, and so have only one attempt.

        Args:
            tasks: The tasks.
            stage: Name of the stage, for the log.
        """
        try:
            head, buffers = dump_parts(tasks)
        except Exception as exc:  # noqa: BLE001 - pickling runs code of users
            logger.warning("stage '%s' cannot be tried again: its inputs do not pickle: %s", stage, exc)
            return None
        return cls(head, [memoryview(buffer).toreadonly() for buffer in buffers], range(len(tasks)))

    def restore(self) -> list[Any]:
        """The tasks, as they were."""
        tasks: list[Any] = load_parts(self._head, self._buffers)
        return [tasks[number] for number in self._chosen]

    def halves(self) -> tuple[Snapshot, Snapshot]:
        """The first half of the tasks, and the second."""
        middle = len(self._chosen) // 2
        first, second = self._chosen[:middle], self._chosen[middle:]
        return Snapshot(self._head, self._buffers, first), Snapshot(self._head, self._buffers, second)
