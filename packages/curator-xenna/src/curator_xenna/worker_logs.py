# SPDX-License-Identifier: Apache-2.0
"""Warnings that stages log on workers, on their way to the driver: they travel with the reports, so few and short."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["LogBuffer", "LoggedRecord", "WorkerLogs"]

_MAX_RECORDS = 50  # different ones in a delivery
_MAX_TEXT = 2_000  # characters of one
_SHOWN = 5  # different ones that one line of code makes; the others are counted
_ENGINES = ("ray", "cosmos_xenna")  # have ways of their own to the driver
_FORMATTER = logging.Formatter()

_Line: TypeAlias = tuple[str, str, int]  # of code: logger, file, number


class LoggedRecord(NamedTuple):
    """A log record of a worker, in plain values.

    Attributes:
        logger: Name of its logger.
        level: Its level.
        template: What it was made with, before arguments were put in.
        text: What it says, with its traceback.
        pathname: The file that made it, on the worker.
        lineno: The line there.
        created: When, in seconds since 1970, by the clock of the worker's node.
        run_id: The run.
        stage: The stage; empty outside of one, as are the next two.
        task_id: The task.
        batch_id: The batch.
        times: How often the same was said.
    """

    logger: str
    level: int
    template: str
    text: str
    pathname: str
    lineno: int
    created: float
    run_id: str = ""
    stage: str = ""
    task_id: str = ""
    batch_id: str = ""
    times: int = 1


class LogBuffer(logging.Handler):
    """Keeps what a worker logs at WARNING and above until the next delivery."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._records: dict[tuple[str, str], LoggedRecord] = {}
        self._others = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record, or count it."""
        if record.name.partition(".")[0] in _ENGINES:
            return
        try:
            text = _shortened(_FORMATTER.format(record))
        except Exception:  # noqa: BLE001 - of the arguments of a record, which are the user's
            self.handleError(record)
            return
        key = record.name, text
        known = self._records.get(key)
        if known is not None:
            self._records[key] = known._replace(times=known.times + 1)
        elif len(self._records) == _MAX_RECORDS:
            self._others += 1
        else:
            run_id, stage, task_id, batch_id = _marks_of(record)
            self._records[key] = LoggedRecord(
                record.name,
                record.levelno,
                str(record.msg)[:_MAX_TEXT],
                text,
                record.pathname,
                record.lineno,
                record.created,
                run_id,
                stage,
                task_id,
                batch_id,
            )

    def take(self) -> tuple[LoggedRecord, ...]:
        """What was logged since the last time."""
        with self.lock:  # type: ignore[union-attr]  # each handler has one
            records, self._records = [*self._records.values()], {}
            others, self._others = self._others, 0
        if others:
            text = f"{others} more warnings of this worker are not shown"
            records.append(LoggedRecord(__name__, logging.WARNING, text, text, __file__, 0, records[-1].created))
        return tuple(records)


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

    def show(self, records: Iterable[LoggedRecord], worker_id: str) -> None:
        """Log what came with a delivery."""
        for record in () if self._is_shown_already else records:
            key = record.logger, record.pathname, record.lineno
            shown = self._shown.setdefault(key, set())
            if record.text in shown or len(shown) == _SHOWN:
                self._hidden[key] += record.times
                continue
            shown.add(record.text)
            self._templates[key] = record.template
            _log(record, worker_id)

    def close(self) -> None:
        """Say how many were not shown."""
        for key, count in self._hidden.items():
            logging.getLogger(key[0]).warning("%d more of this from workers: %s", count, self._templates[key])
        self._hidden.clear()


def _marks_of(record: logging.LogRecord) -> list[str]:
    """Run, stage, task and batch, which workers mark their records with; empty outside of a stage."""
    names = ("curator_run_id", "curator_stage", "curator_task_id", "curator_batch_id")
    return [str(getattr(record, name, "")) for name in names]


def _shortened(text: str) -> str:
    """The beginning and the end of a text: a traceback says in its last line what was wrong."""
    half = _MAX_TEXT // 2
    return text if len(text) <= _MAX_TEXT else f"{text[:half]}\n…\n{text[-half:]}"


def _log(record: LoggedRecord, worker_id: str) -> None:
    logger = logging.getLogger(record.logger)
    if not logger.isEnabledFor(record.level):
        return
    times = f", {record.times} times" if record.times > 1 else ""
    whose = f"stage '{record.stage}', " if record.stage else ""
    attributes = {
        "name": record.logger,
        "levelno": record.level,
        "levelname": logging.getLevelName(record.level),
        "msg": "%s  [%sworker %s%s]",
        "args": (record.text, whose, worker_id, times),
        "created": record.created,
        "pathname": record.pathname,
        "lineno": record.lineno,
        "curator_run_id": record.run_id,
        "curator_stage": record.stage,
        "curator_task_id": record.task_id,
        "curator_batch_id": record.batch_id,
    }
    logger.handle(logging.makeLogRecord(attributes))
