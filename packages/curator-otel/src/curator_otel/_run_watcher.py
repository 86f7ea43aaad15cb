# SPDX-License-Identifier: Apache-2.0
"""Watches one run: enters its reports into totals, trace, and metrics, and closes windows on a clock."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from curator_otel._metrics import RunMeter
from curator_otel._trace.spans import RunTrace
from curator_otel._trace.totals import StageActivity

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.context import Context
    from opentelemetry.metrics import Meter
    from opentelemetry.trace import Tracer

    from curator_core import BatchReport, RunResult
    from curator_core.observers import RunInfo, WorkerReport
    from curator_otel._state_file import StateFile
    from curator_otel._trace.spans import TraceSettings

__all__ = ["RunWatcher"]

logger = logging.getLogger(__name__)

TICK_S = 1.0
_TICKS_A_SNAPSHOT = 2
_STOP_S = 5.0  # how long to wait for the clock's thread, which an exporter or a file system may block


class RunWatcher:
    """Enters the reports of one run.

    A separate thread feeds the metrics and closes windows, so that they are exported even while no report arrives, and
    the run's thread only does the work for each batch.

    Args:
        run: The run.
        tracer: The tracer that creates the spans.
        meter: The meter that creates the metrics.
        parent: The parent context of the run's span.
        settings: How to trace the run.
        snapshots: Writes the file from which the trace can be closed if the driver is killed; None for no file.
        guarded: Calls a function and catches its exceptions.
    """

    def __init__(
        self,
        run: RunInfo,
        tracer: Tracer,
        meter: Meter,
        parent: Context,
        settings: TraceSettings,
        snapshots: StateFile | None,
        guarded: Callable[[Callable[[], None]], None],
    ) -> None:
        self._totals = [StageActivity() for _ in run.stages]
        self._meter = RunMeter(meter, run, self._totals)
        self._lock = threading.Lock()  # the clock's thread reads what the run's thread writes
        self._guarded = guarded
        self._over = threading.Event()
        self._ticks = 0
        self._snapshots = snapshots
        self._clock = threading.Thread(target=self._run_clock, name="curator-telemetry", daemon=True)
        # Last, so that no span is left open if anything else fails.
        self.trace = RunTrace(tracer, run, self._totals, parent, settings)
        if snapshots is not None:
            snapshots.begin(run, settings, parent, self.trace.root.get_span_context().span_id)
        try:
            self._clock.start()
        except RuntimeError:  # the interpreter exits, or there are too many threads: everything is written at the end
            logger.debug("the clock of the run's telemetry did not start", exc_info=True)

    def batch(self, report: BatchReport) -> None:
        """Enter a batch."""
        with self._lock:
            outcome = self._totals[report.stage_index].add(report)
            span = self.trace.batch(report, outcome)
            self._meter.batch(report, outcome, span)

    def worker(self, report: WorkerReport) -> None:
        """Enter a worker's setup or teardown."""
        with self._lock:
            self._totals[report.stage_index].add_worker(report)
            self._meter.worker(report)
            self.trace.worker(report)

    def end(self, result: RunResult, error: BaseException | None) -> None:
        """End the spans of the stages, then the span of the run."""
        now = time.time_ns()
        self._over.set()
        has_lock = self._lock.acquire(timeout=_STOP_S)
        try:
            # Each step runs even if the one before fails.
            self._guarded(lambda: self._meter.run_ended(failed=error is not None))
            self._guarded(self.trace.end_stages)
            self._guarded(lambda: self.trace.end(now, result, error))
        finally:
            if has_lock:
                self._lock.release()
        if self._clock.is_alive():
            self._clock.join(_STOP_S)  # this thread removes the snapshot, because it might still be writing it

    def tick(self, now_ns: int) -> None:
        """Feed the metrics, close the windows that are over, and write a snapshot if one is due.

        Args:
            now_ns: The current time, by the monotonic clock.
        """
        closed = False
        with self._lock:
            if self._over.is_set():
                return
            try:
                self._meter.feed()
            finally:
                closed = self.trace.tick(now_ns)
        self._ticks += 1
        if closed or self._ticks % _TICKS_A_SNAPSHOT == 0:  # the snapshot must have a window before it is sent
            self.write_snapshot()

    def write_snapshot(self) -> None:
        """Write the state that is needed to close the trace, if snapshots are enabled."""
        if self._snapshots is None or not self.trace.recording:
            return
        with self._lock:
            state, totals = self.trace.state(), [did.values() for did in self._totals]
        self._snapshots.write(state, totals)

    def _run_clock(self) -> None:
        while not self._over.wait(TICK_S):
            self._guarded(lambda: self.tick(time.monotonic_ns()))
        if self._snapshots is not None:
            self._guarded(self._snapshots.remove)
