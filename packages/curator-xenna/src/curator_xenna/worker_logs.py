# SPDX-License-Identifier: Apache-2.0
"""Warnings that stages log on workers, on their way to the driver: they travel with the reports, so few and short."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, Any, TypeAlias

from curator_core.backends import RecordBuffer

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["WorkerLogs", "log_buffer"]

_SHOWN = 5  # different ones that one line of code makes; the others are counted
_ENGINES = ("ray", "cosmos_xenna")  # have ways of their own to the driver

_Line: TypeAlias = tuple[str, str, int]  # of code: logger, file, number


def log_buffer() -> RecordBuffer:
    """A handler that keeps what a worker logs, but for its engines, until the next delivery."""
    buffer = RecordBuffer()
    buffer.addFilter(_is_not_of_engines)
    return buffer


def _is_not_of_engines(record: logging.LogRecord) -> bool:
    return record.name.partition(".")[0] not in _ENGINES


class WorkerLogs:
    """Logs in the driver what workers have logged: of each line of code the first few records, then their number.

    Args:
        is_shown_already: Whether Ray shows all that workers print, so that there is nothing to do.
    """

    def __init__(self, *, is_shown_already: bool = False) -> None:
        self._is_shown_already = is_shown_already
        self._shown: dict[_Line, set[str]] = {}
        self._hidden = Counter[_Line]()
        self._templates: dict[_Line, str] = {}

    def show(self, records: Iterable[logging.LogRecord], worker_id: str) -> None:
        """Log what came with a delivery: records of a `RecordBuffer`."""
        record: Any  # with the attributes that it adds
        for record in () if self._is_shown_already else records:
            key = record.name, record.pathname, record.lineno
            shown = self._shown.setdefault(key, set())
            if record.msg in shown or len(shown) == _SHOWN:
                self._hidden[key] += record.curator_times
                continue
            shown.add(record.msg)
            self._templates[key] = record.curator_template
            _log(record, worker_id)

    def close(self) -> None:
        """Say how many were not shown."""
        for key, count in self._hidden.items():
            logging.getLogger(key[0]).warning("%d more of this from workers: %s", count, self._templates[key])
        self._hidden.clear()


def _log(record: Any, worker_id: str) -> None:
    logger = logging.getLogger(record.name)
    if not logger.isEnabledFor(record.levelno):
        return
    times = f", {record.curator_times} times" if record.curator_times > 1 else ""
    stage = getattr(record, "curator_stage", "")
    whose = f"stage '{stage}', " if stage else ""
    record.msg, record.args = "%s  [%sworker %s%s]", (record.msg, whose, worker_id, times)
    logger.handle(record)
