# SPDX-License-Identifier: Apache-2.0
"""Which run, stage and task a log record was made for, so that logs, results and traces can be joined.

While a run is under way, the records that a stage's code makes have four attributes more: ``curator_run_id``,
``curator_stage``, ``curator_task_id`` and ``curator_batch_id``. That holds for ``setup``, ``process``,
``process_batch``, ``teardown``, a source's generator, and every library that these call, whatever logger it uses.

It is the record factory of `logging` that adds them: nothing else sees all records. A filter on a handler reaches that
handler, one on a logger that logger's own records, and a logger class only loggers that are not there yet. So a run
wraps the factory that it finds, and puts it back at its end; runs at the same time share one wrapper. Records made
outside of stages pass as they are. Processes that a run starts are its own: there the wrapper stays.

`logging` refuses records whose ``extra`` has a name that the factory has set: inside of a stage those four are taken.

What a thread is at is looked up when a record is made. A batch costs three assignments, and a task nothing. Threads and
processes that a stage starts by itself are not covered; coroutines that it runs in its own thread are.
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
    """What a thread is at inside of a stage.

    Attributes:
        run_id: The run; empty where the adapter belongs to none.
        stage: The stage's name.
        task_id: The task that the stage is at; empty in set-up and teardown, in a source, and where a stage with
            ``process_batch`` is at several.
        batch_id: The batch, as in its `BatchReport`; empty in set-up and teardown.
        worker_id: The worker.
    """

    run_id: str = ""
    stage: str = ""
    task_id: str = ""
    batch_id: str = ""
    worker_id: str = ""


_NO_WORK = StageWork()
_MAX_KEPT = 50  # different records, until they are taken
_MAX_TEXT = 2_000  # characters of one


class Caller(Protocol):
    """Who calls a stage: an adapter, or one of its attempts."""

    def current_work(self) -> StageWork:
        """What the stage is at."""


class Post:
    """What is known of a thread that works for a run.

    Attributes:
        caller: Who calls a stage in this thread; None outside of stages. Put back what was there before.
        cpu_ns: The thread's CPU time when it was last asked for.
        cpu_read_ns: When that was, by the monotonic clock.
        elsewhere_ns: CPU time that another process has spent for this thread, and that nobody has counted yet.
    """

    __slots__ = ("caller", "cpu_ns", "cpu_read_ns", "elsewhere_ns")

    def __init__(self) -> None:
        self.caller: Caller | None = None
        self.cpu_ns = self.cpu_read_ns = self.elsewhere_ns = 0


class _ThisThread(threading.local):
    def __init__(self) -> None:
        self.post = Post()  # found once a batch: assigning to a thread-local itself takes three times as long


this_thread = _ThisThread()


def current_work() -> StageWork | None:
    """What this thread is at; None outside of a stage."""
    caller = this_thread.post.caller
    return None if caller is None else caller.current_work()


_relays: list[logging.Handler] = []


def relay_records(handler: logging.Handler) -> None:
    """Have a handler given the warnings of isolated stages, whose processes write to a stderr that nobody sees."""
    _relays[:] = [handler]


def relay(records: Iterable[logging.LogRecord]) -> None:
    """Give records of another process to the handler of `relay_records`, if there is one."""
    for handler in _relays:
        for record in records:
            handler.handle(record)


class RecordBuffer(logging.Handler):
    """Keeps records of WARNING and above, as they can be sent to another process, until they are taken.

    A record that was kept says in ``msg`` what it said, with its traceback, and has two attributes more:
    ``curator_template``, what it was made with, and ``curator_times``, how often the same was said.
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
        except Exception:  # noqa: BLE001 - of the arguments of a record, which are the user's
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
        """What was kept since the last time."""
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
    """A record that says a text, and holds nothing but plain values."""
    # The text has the traceback in it: a formatter would add what it finds as `exc_text` once more.
    own = {"msg": text, "message": text, "args": None, "exc_text": None, "stack_info": None, "curator_times": times}
    template = getattr(record, "curator_template", str(record.msg)[:_MAX_TEXT])
    plain = {name: value for name, value in vars(record).items() if isinstance(value, str | int | float)}
    return logging.makeLogRecord({**plain, **own, "curator_template": template})


def _shortened(text: str) -> str:
    """The beginning and the end of a text: a traceback says in its last line what was wrong."""
    half = _MAX_TEXT // 2
    return text if len(text) <= _MAX_TEXT else f"{text[:half]}\n…\n{text[-half:]}"


@contextmanager
def at_work(caller: Caller) -> Iterator[None]:
    """Say who calls a stage in this thread, inside the ``with`` block."""
    post = this_thread.post
    before, post.caller = post.caller, caller
    try:
        yield
    finally:
        post.caller = before


class StageLogFilter(logging.Filter):
    """Sees to it that records have the four attributes, empty outside of a stage. It drops none.

    For handlers whose format names them. Where a `logging.handlers.QueueHandler` takes the records to another thread,
    put it on that one.
    """

    def __init__(self) -> None:
        super().__init__()

    def filter(self, record: logging.LogRecord) -> bool:
        """Add what is not there yet."""
        if not hasattr(record, "curator_run_id"):
            _mark(record, current_work() or _NO_WORK)
        return True


def _mark(record: logging.LogRecord, work: StageWork) -> None:
    record.curator_run_id = work.run_id
    record.curator_stage = work.stage
    record.curator_task_id = work.task_id
    record.curator_batch_id = work.batch_id


class _MarkingFactory:
    """Makes records as the factory that it wraps, and marks those of stages."""

    def __init__(self, wrapped: Callable[..., logging.LogRecord]) -> None:
        self.wrapped = wrapped

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = self.wrapped(*args, **kwargs)
        work = current_work()
        if work is not None:
            _mark(record, work)
        return record


class _Marking:
    """Has the record factory wrapped while anybody asks for it."""

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
        """Where somebody else has wrapped ours since, theirs stays, and ours in it finds nobody at work."""
        with self._lock:
            self._asking -= 1
            there = logging.getLogRecordFactory()
            if not self._asking and isinstance(there, _MarkingFactory):
                logging.setLogRecordFactory(there.wrapped)


_marking = _Marking()


def mark_records() -> None:
    """Have the records of stages marked in this process from now on."""
    _marking.begin()


@contextmanager
def marked_records() -> Iterator[None]:
    """Have the records of stages marked inside the ``with`` block."""
    _marking.begin()
    try:
        yield
    finally:
        _marking.end()
