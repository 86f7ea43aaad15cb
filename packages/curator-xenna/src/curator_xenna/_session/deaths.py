# SPDX-License-Identifier: Apache-2.0
"""Logs one line for each worker that dies, in place of Ray's long message."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from curator_core.backends import StageGroup
    from curator_xenna._session.coordinator import WorkerEntry

__all__ = ["DeathNotices"]

logger = logging.getLogger(__name__)

_PID = re.compile(r"Worker PID: (\d+)")
_NODE = re.compile(r"Node ID: (\w+)")
_EXIT = re.compile(r"Worker exit type: (\w+) Worker exit detail: (.*?)(?= Some common causes|$)", re.DOTALL)
_NO_WORD = "connection error code 2"  # Ray's text for a process that ended without closing its connection
_MAX_TEXT = 300  # characters


class DeathNotices:
    """Receives Ray's messages about workers that died, and logs which stage each worker belonged to.

    Args:
        groups: The groups of stages.
        ask_workers: Returns the workers that have signed in.
        is_ours: Whether the run started Ray, so that it has no other workers.
    """

    _ended: ClassVar[set[tuple[int, str]]] = set()  # processes and nodes of workers whose run is over

    def __init__(
        self, groups: Sequence[StageGroup], ask_workers: Callable[[], Iterable[WorkerEntry]], *, is_ours: bool
    ) -> None:
        self._groups = groups
        self._is_ours = is_ours
        self._ask_workers = ask_workers
        self._said = set[str]()
        self._is_over = False

    def close(self, workers: Iterable[WorkerEntry]) -> None:
        """Note that the run is over and its workers were ended."""
        self._is_over = True
        self._ended.update((worker.pid, worker.node_id) for worker in workers)

    def hear(self, message: str) -> bool:
        """Handle a message from Ray, in one of Ray's threads; return False if it does not concern this run."""
        pid, node, ended = _PID.search(message), _NODE.search(message), _EXIT.search(message)
        if pid and node and (int(pid[1]), node[1]) in self._ended:
            return True
        if self._is_over:
            if not (self._is_ours and pid and ended):
                return False
            # It never signed in: the run ended while it was starting.
            logger.info("a worker (process %s) %s", pid[1], _in_words(ended[1], ended[2]))
            return True
        if pid and node and ended:
            self._log_death(int(pid[1]), node[1], _in_words(ended[1], ended[2]))
            return True
        kind = re.sub(r"[\da-f]{8,}|\d+", "#", message)
        if kind not in self._said:  # Ray repeats some, such as low memory, every few seconds
            self._said.add(kind)
            logger.warning("message from Ray: %s", message[:_MAX_TEXT])
        return True

    def _log_death(self, pid: int, node_id: str, how: str) -> None:
        for worker in self._ask_workers():
            if (worker.pid, worker.node_id) == (pid, node_id):
                stage = self._groups[worker.group].name
                text = "stage '%s': worker %s (process %d) %s; its tasks are retried"
                logger.warning(text, stage, worker.worker_id, pid, how)
                return
        # It had not signed in yet. Xenna also ends workers that are starting, and if one cannot start, Xenna raises
        # Ray's reason.
        logger.info("a starting worker (process %d) %s", pid, how)


def _in_words(kind: str, detail: str) -> str:
    if "OUT_OF_MEMORY" in kind:
        return "was killed by Ray because memory was low"
    if _NO_WORD in detail:
        return "died: it was killed, possibly by the out-of-memory killer, or crashed in native code"
    return f"died: {' '.join(detail.split())[:_MAX_TEXT]}"
