# SPDX-License-Identifier: Apache-2.0
"""What stands between the SDK and its exporters.

It counts what is delivered and what is lost, keeps the exporters quiet, and sees to it that the end of a
program waits for a dead endpoint only so long.

Nothing here imports the SDK: the classes wrap objects of the SDK that `setup` makes.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Closer", "CountedProcessor", "WatchedExporter"]

logger = logging.getLogger(__name__)

_REASON_LIMIT = 300  # characters of an exporter's complaint that are shown


class _Quiet(logging.Filter):
    """Drops what an exporter logs inside one of our calls, and keeps its first words as the reason.

    An exporter logs a line for every try, and stack traces. The losses are reported once, at the end; the
    exporter's own words go to our logger, at DEBUG. What the application's other exporters log passes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.inside = threading.local()  # exporters run in threads of the SDK, one call at a time in each

    def filter(self, record: logging.LogRecord) -> bool:
        watched: WatchedExporter | None = getattr(self.inside, "exporter", None)
        if watched is None:
            return True
        said = record.getMessage()
        watched.reason = watched.reason or said[:_REASON_LIMIT]
        logger.debug("%s: %s", record.name, said)
        return False


_QUIET = _Quiet()  # one for the process: adding it to a logger again changes nothing


class WatchedExporter:
    """An exporter of spans or metrics that never raises, never chatters, and counts.

    Args:
        exporter: The exporter. What this class does not define is its business.
        failure: What ``export`` returns where the exporter raised.

    Attributes:
        sent: Spans that were delivered.
        lost: Spans that were not.
        last_failed: Whether the last delivery failed, or has not ended. Of metrics, which are sums since the
            start, the last one is all that matters.
        reason: Why the first delivery that failed did so, in the exporter's words.
    """

    def __init__(self, exporter: Any, failure: Any) -> None:
        self._exporter = exporter
        self._failure = failure
        self._closed = False
        self.sent = self.lost = 0
        self.last_failed = False
        self.reason = ""
        logging.getLogger(type(exporter).__module__).addFilter(_QUIET)

    def export(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """Export a batch of spans, or the metrics."""
        result = self._failure
        self.last_failed = True  # until it has arrived: the end may come before the receiver's answer
        _QUIET.inside.exporter = self
        try:
            if not self._closed:
                result = self._exporter.export(batch, *args, **kwargs)
        except Exception as exc:  # a broken exporter costs its data and nothing else
            self.reason = self.reason or f"{type(exc).__name__}: {exc}"[:_REASON_LIMIT]
            logger.debug("an exporter raised", exc_info=True)
        finally:
            _QUIET.inside.exporter = None
        self.last_failed = result is self._failure
        count = len(batch) if hasattr(batch, "__len__") else 0
        if self.last_failed:
            self.lost += count
        else:
            self.sent += count
        return result

    def shutdown(self, *args: Any, **kwargs: Any) -> None:
        """End the exporter; also ends its wait for the next try. A second call changes nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            self._exporter.shutdown(*args, **kwargs)
        except Exception:
            logger.debug("an exporter raised when it was shut down", exc_info=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._exporter, name)


class CountedProcessor:
    """A span processor that counts the spans handed to it. All else is the other processor's business.

    What is handed over and never arrives at the exporter was dropped in between, from a full queue or when
    the time for shutting down ran out.

    Args:
        processor: The processor.

    Attributes:
        accepted: Sampled spans that ended.
    """

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._lock = threading.Lock()  # spans may end in any thread of the application
        self.accepted = 0

    def on_end(self, span: Any) -> None:
        """Count a span, and hand it on."""
        if span.context is not None and span.context.trace_flags.sampled:
            with self._lock:
                self.accepted += 1
        self._processor.on_end(span)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)


class Closer:
    """Runs a call that may hang, later, in a thread that is there already.

    Started beforehand, because no thread can be started any more when the interpreter exits (Python 3.12).

    Args:
        call: What to run.
    """

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self._go = threading.Event()
        self._thread = threading.Thread(target=self._run, name="curator-otel-closer", daemon=True)
        self._thread.start()

    def start(self) -> None:
        """Let it run."""
        self._go.set()

    def wait(self, until: float) -> bool:
        """Wait until it is done, or ``time.monotonic()`` says ``until``; whether it is done."""
        self._thread.join(max(0.0, until - time.monotonic()))
        return not self._thread.is_alive()

    def _run(self) -> None:
        self._go.wait()
        try:
            self._call()
        except Exception:  # losses are counted where they occur
            logger.debug("shutting down or flushing failed", exc_info=True)
