# SPDX-License-Identifier: Apache-2.0
"""Which run, stage, and task a log record belongs to, so that logs, results, and traces can be joined.

During a run, the records that a stage's code makes have four more attributes: ``curator_run_id``, ``curator_stage``,
``curator_task_id``, and ``curator_batch_id``. That covers ``setup``, ``process``, ``process_batch``, ``teardown``, a
source's generator, and every library that these call, whatever logger it uses.

The record factory of `logging` adds them because nothing else sees all records: a filter on a handler sees only the
records of that handler, one on a logger only that logger's own records, and a logger class applies only to loggers
that do not exist yet. So a run wraps the factory that it finds and restores it at its end; concurrent runs share one
wrapper. Records made outside of stages pass unchanged. Processes that a run starts belong to it: there the wrapper
stays.

`logging` rejects a record whose ``extra`` has a name that the factory has set: inside a stage those four are reserved.

The current stage and task of a thread are looked up when a record is made. A batch costs three assignments, and a
task nothing. Threads and processes that a stage starts on its own are not covered; coroutines that it runs in its own
thread are.
"""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["LOG_FORMAT", "StageLogFilter", "StageWork", "at_work", "current_work", "mark_records", "marked_records"]

LOG_FORMAT = (
    "%(asctime)s %(levelname)s %(name)s "
    "[run=%(curator_run_id)s stage=%(curator_stage)s batch=%(curator_batch_id)s task=%(curator_task_id)s] %(message)s"
)
"""For a `logging.Formatter` on a handler that has a `StageLogFilter`."""


class StageWork(NamedTuple):
    """The work of a thread inside a stage.

    Attributes:
        run_id: The run; empty if the adapter does not belong to a run.
        stage: The stage's name.
        task_id: The current task; empty in setup and teardown, in a source, and if a stage with ``process_batch`` is
            working on several tasks.
        batch_id: The batch, as in its `BatchReport`; empty in setup and teardown.
        worker_id: The worker.
    """

    run_id: str = ""
    stage: str = ""
    task_id: str = ""
    batch_id: str = ""
    worker_id: str = ""


_NO_WORK = StageWork()
_MAX_KEPT = 50  # different records between two calls of `take`
_MAX_TEXT = 2_000  # characters of one record


class Caller(Protocol):
    """Code that calls a stage: an adapter, or one of its attempts."""

    def current_work(self) -> StageWork:
        """Return what the stage is working on."""


class Post:
    """State of a thread that works for a run.

    Attributes:
        caller: The code that calls a stage in this thread; None outside of stages. Restore the old value afterward.
        cpu_ns: The thread's CPU time at the last reading.
        cpu_read_ns: When that reading was taken, by the monotonic clock.
        elsewhere_ns: CPU time that another process has spent for this thread and that is not counted yet.
    """

    __slots__ = ("caller", "cpu_ns", "cpu_read_ns", "elsewhere_ns")

    def __init__(self) -> None:
        self.caller: Caller | None = None
        self.cpu_ns = self.cpu_read_ns = self.elsewhere_ns = 0


class _ThisThread(threading.local):
    def __init__(self) -> None:
        self.post = Post()  # found once per batch: assigning to the thread-local itself takes three times as long


this_thread = _ThisThread()


def current_work() -> StageWork | None:
    """Return what this thread is working on; None outside of a stage."""
    caller = this_thread.post.caller
    return None if caller is None else caller.current_work()


_relays: list[logging.Handler] = []


def relay_records(handler: logging.Handler) -> None:
    """Send the warnings of isolated stages to a handler: the stderr of their processes is not visible."""
    _relays[:] = [handler]


def relay(records: Iterable[logging.LogRecord]) -> None:
    """Pass records of another process to the handler of `relay_records`, if there is one."""
    for handler in _relays:
        for record in records:
            handler.handle(record)


class RecordBuffer(logging.Handler):
    """Keeps records of WARNING and above until they are taken, in a form that can be sent to another process.

    The ``msg`` of a kept record is its formatted text, with the traceback, and it has two more attributes:
    ``curator_template``, the message before formatting, and ``curator_times``, how often the same text was logged.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._formatter = logging.Formatter()
        self._records: dict[tuple[str, str], logging.LogRecord] = {}
        self._others = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record, or count it."""
        try:
            text = _shortened(self._formatter.format(record))
        except Exception:  # noqa: BLE001 - raised by the arguments of a record, which are the user's objects
            self.handleError(record)
            return
        times: int = getattr(record, "curator_times", 1)
        known: Any = self._records.get((record.name, text))
        if known is not None:
            known.curator_times += times
        elif len(self._records) == _MAX_KEPT:
            self._others += times
        else:
            self._records[record.name, text] = _plain(record, text, times)

    def take(self) -> list[logging.LogRecord]:
        """Return the records kept since the last call."""
        with self.lock:  # type: ignore[union-attr]  # each handler has one
            records, self._records = [*self._records.values()], {}
            others, self._others = self._others, 0
        if others:
            text = f"{others} more warnings are not shown"
            last = records[-1]
            more = logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, None, None)
            more.created = last.created
            records.append(_plain(more, text, 1))
        return records


def _plain(record: logging.LogRecord, text: str, times: int) -> logging.LogRecord:
    """Return a record with this text and only plain values."""
    # The text includes the traceback: a formatter would append `exc_text` a second time.
    own = {"msg": text, "message": text, "args": None, "exc_text": None, "stack_info": None, "curator_times": times}
    template = getattr(record, "curator_template", str(record.msg)[:_MAX_TEXT])
    plain = {name: value for name, value in vars(record).items() if isinstance(value, str | int | float)}
    return logging.makeLogRecord({**plain, **own, "curator_template": template})


def _shortened(text: str) -> str:
    """Return the beginning and the end of a text: the last line of a traceback names the error."""
    half = _MAX_TEXT // 2
    return text if len(text) <= _MAX_TEXT else f"{text[:half]}\n…\n{text[-half:]}"


@contextmanager
def at_work(caller: Caller) -> Iterator[None]:
    """Set the code that calls a stage in this thread, inside the ``with`` block."""
    post = this_thread.post
    before, post.caller = post.caller, caller
    try:
        yield
    finally:
        post.caller = before


class StageLogFilter(logging.Filter):
    """Ensures that records have the four attributes, empty outside of a stage. It drops no records.

    Use it on handlers whose format names the attributes. If a `logging.handlers.QueueHandler` passes the records to
    another thread, put the filter on the `QueueHandler`.
    """

    def __init__(self) -> None:
        super().__init__()

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the attributes that are missing."""
        if not hasattr(record, "curator_run_id"):
            _mark(record, current_work() or _NO_WORK)
        return True


def _mark(record: logging.LogRecord, work: StageWork) -> None:
    record.curator_run_id = work.run_id
    record.curator_stage = work.stage
    record.curator_task_id = work.task_id
    record.curator_batch_id = work.batch_id


class _MarkingFactory:
    """Makes records with the factory that it wraps, and marks those of stages."""

    def __init__(self, wrapped: Callable[..., logging.LogRecord]) -> None:
        self.wrapped = wrapped

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = self.wrapped(*args, **kwargs)
        work = current_work()
        if work is not None:
            _mark(record, work)
        return record


class _Marking:
    """Wraps the record factory while at least one caller asks for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asking = 0

    def begin(self) -> None:
        with self._lock:
            self._asking += 1
            there = logging.getLogRecordFactory()
            if not isinstance(there, _MarkingFactory):
                logging.setLogRecordFactory(_MarkingFactory(there))

    def end(self) -> None:
        """Unwrap the factory, unless other code has wrapped ours: that stays, and ours finds no stage to mark."""
        with self._lock:
            self._asking -= 1
            there = logging.getLogRecordFactory()
            if not self._asking and isinstance(there, _MarkingFactory):
                logging.setLogRecordFactory(there.wrapped)


_marking = _Marking()


def mark_records() -> None:
    """Mark the records of stages in this process from now on."""
    _marking.begin()


@contextmanager
def marked_records() -> Iterator[None]:
    """Mark the records of stages inside the ``with`` block."""
    _marking.begin()
    try:
        yield
    finally:
        _marking.end()
