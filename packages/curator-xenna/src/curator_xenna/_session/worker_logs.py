# SPDX-License-Identifier: Apache-2.0
"""Relays warnings that stages log on workers to the driver. They travel with the reports, so they are few and short."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, Any, TypeAlias

from curator_core.backends import RecordBuffer

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["WorkerLogs", "log_buffer"]

_SHOWN = 5  # different messages from one line of code; further ones are only counted
_ENGINES = ("ray", "cosmos_xenna")  # loggers with their own way to the driver

_Line: TypeAlias = tuple[str, str, int]  # a line of code: logger, file, line number


def log_buffer() -> RecordBuffer:
    """Return a handler that keeps a worker's records until the next delivery, except those of Ray and Xenna."""
    buffer = RecordBuffer()
    buffer.addFilter(_is_not_of_engines)
    return buffer


def _is_not_of_engines(record: logging.LogRecord) -> bool:
    return record.name.partition(".")[0] not in _ENGINES


class WorkerLogs:
    """Logs the records of workers in the driver: the first few from each line of code, then only their number.

    Args:
        is_shown_already: Whether Ray already shows everything that workers print, so that nothing is logged here.
    """

    def __init__(self, *, is_shown_already: bool = False) -> None:
        self._is_shown_already = is_shown_already
        self._shown: dict[_Line, set[str]] = {}
        self._hidden = Counter[_Line]()
        self._templates: dict[_Line, str] = {}

    def show(self, records: Iterable[logging.LogRecord], worker_id: str) -> None:
        """Log the records of a delivery, which come from a `RecordBuffer`."""
        record: Any  # with the attributes that RecordBuffer adds
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
        """Log how many records were not shown."""
        for key, count in self._hidden.items():
            logging.getLogger(key[0]).warning("%d more like this from workers: %s", count, self._templates[key])
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
