# SPDX-License-Identifier: Apache-2.0
"""Wrappers between the SDK and its exporters.

They count delivered and lost spans, keep the exporters quiet, and limit how long the end of a program waits for a dead
endpoint.

Nothing here imports the SDK: the classes wrap objects of the SDK that `setup` creates.
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

_REASON_LIMIT = 300  # characters of an exporter's message that are shown


class _Quiet(logging.Filter):
    """Drops the log records of an exporter during our calls, and keeps the first message as the reason.

    An exporter logs a line for every retry, and stack traces. Losses are reported once, at the end, and the exporter's
    own messages go to our logger at DEBUG. Records of the application's other exporters pass.
    """

    def __init__(self) -> None:
        super().__init__()
        self.inside = threading.local()  # exporters run in threads of the SDK, with one call at a time in each thread

    def filter(self, record: logging.LogRecord) -> bool:
        watched: WatchedExporter | None = getattr(self.inside, "exporter", None)
        if watched is None:
            return True
        said = record.getMessage()
        watched.reason = watched.reason or said[:_REASON_LIMIT]
        logger.debug("%s: %s", record.name, said)
        return False


_QUIET = _Quiet()  # one per process: adding it to a logger again changes nothing


class WatchedExporter:
    """An exporter of spans or metrics that never raises, logs nothing, and counts.

    Args:
        exporter: The wrapped exporter. Attributes that this class does not define are passed to it.
        failure: The value that ``export`` returns if the exporter raised.

    Attributes:
        sent: The number of delivered spans.
        lost: The number of spans that could not be delivered.
        last_failed: Whether the last delivery failed or has not ended. For metrics, only the last delivery matters,
            because they are sums since the start.
        reason: Why the first failed delivery failed, in the exporter's words.
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
        self.last_failed = True  # until the receiver has answered, which may be after the shutdown
        _QUIET.inside.exporter = self
        try:
            if not self._closed:
                result = self._exporter.export(batch, *args, **kwargs)
        except Exception as exc:  # a broken exporter only loses its own data
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
        """Shut the exporter down, which also ends its wait for the next retry. A second call changes nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            self._exporter.shutdown(*args, **kwargs)
        except Exception:
            logger.debug("an exporter raised during its shutdown", exc_info=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._exporter, name)


class CountedProcessor:
    """A span processor that counts its spans and passes everything on to another processor.

    A span that is counted here and never arrives at the exporter was dropped in between: because of a full queue, or
    because the shutdown timed out.

    Args:
        processor: The wrapped processor.

    Attributes:
        accepted: The number of sampled spans that ended.
    """

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._lock = threading.Lock()  # spans may end in any thread of the application
        self.accepted = 0

    def on_end(self, span: Any) -> None:
        """Count a span, and pass it on."""
        if span.context is not None and span.context.trace_flags.sampled:
            with self._lock:
                self.accepted += 1
        self._processor.on_end(span)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)


class Closer:
    """Runs a call that may hang in a thread that was started in advance.

    No thread can be started when the interpreter exits (Python 3.12).

    Args:
        call: The function to call.
    """

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self._go = threading.Event()
        self._thread = threading.Thread(target=self._run, name="curator-otel-closer", daemon=True)
        self._thread.start()

    def start(self) -> None:
        """Start the call."""
        self._go.set()

    def wait(self, until: float) -> bool:
        """Wait until the call has returned, or ``time.monotonic()`` reaches ``until``; return whether it has."""
        self._thread.join(max(0.0, until - time.monotonic()))
        return not self._thread.is_alive()

    def _run(self) -> None:
        self._go.wait()
        try:
            self._call()
        except Exception:  # losses are counted where they occur
            logger.debug("shutting down or flushing failed", exc_info=True)
