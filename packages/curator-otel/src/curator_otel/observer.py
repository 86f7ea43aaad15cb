# SPDX-License-Identifier: Apache-2.0
"""Turns the reports of a run into OpenTelemetry spans and metrics, in the driver process.

This uses only the OpenTelemetry API. The SDK, which the application sets up with `curator_otel.configure` or in
any other way, exports the spans and metrics; without an SDK, nothing is written. Workers run no OpenTelemetry code: all
data comes from the reports that they send anyway.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING, Any, Literal

from opentelemetry import context as otel_context
from opentelemetry import metrics, trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from curator_core import ConfigurationError, RunObserver, RunStopped
from curator_otel.__about__ import __version__
from curator_otel._run_watcher import RunWatcher
from curator_otel._state_file import StateFile, check_directory
from curator_otel._trace.spans import TraceSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from os import PathLike

    from opentelemetry.context import Context

    from curator_core import BatchReport, RunResult
    from curator_core.observers import RunInfo, WorkerReport

__all__ = ["SCOPE", "OTelObserver", "check_max_spans", "parent_context"]

logger = logging.getLogger(__name__)

_FLUSH_S = 1.0  # out of a scheduler's grace period
SCOPE = "curator_otel"  # the instrumentation scope of all spans and metrics


class OTelObserver(RunObserver):
    """Writes a trace and metrics of each run that it watches.

        pipeline.run(observers=[OTelObserver()])

    The run's span is a child of the span that is current when the run starts. If there is none, it is a child of the
    span that the environment variables ``TRACEPARENT`` and ``TRACESTATE`` name, or else the root of a new trace. One
    observer can watch several runs, even at the same time.

    Args:
        tracer_provider: The provider that creates the spans; None for the global one.
        meter_provider: The provider that creates the metrics; None for the global one.
        max_spans: The maximum number of spans of a run. The spans of the run and its stages are always written, and
            say how many other spans were omitted.
        exception_messages: Whether to write the messages of exceptions (cut at 1 kB), or only their types.
        detail: ``"sample"`` keeps the limit. ``"full"`` also writes every batch, in a separate trace for each window of
            a stage, with at most 5,000 spans and a link to the run's trace.
        snapshots: A directory for a small file that is written every two seconds during a run and removed at its end.
            If the driver is killed, `recover` closes the trace from this file. None reads the directory from the
            environment variable ``CURATOR_OTEL_SNAPSHOTS``; if that is not set, no file is written.

    Raises:
        ConfigurationError: A setting is invalid.
    """

    def __init__(
        self,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
        *,
        max_spans: int = 1500,
        exception_messages: bool = True,
        detail: Literal["sample", "full"] = "sample",
        snapshots: str | PathLike[str] | None = None,
    ) -> None:
        check_max_spans(max_spans)
        self._settings = TraceSettings(max_spans, exception_messages, _is_full(detail))
        self._snapshots = check_directory(snapshots or os.environ.get("CURATOR_OTEL_SNAPSHOTS") or None)
        self._tracer_provider = tracer_provider
        self._meter_provider = meter_provider
        self._runs: dict[str, RunWatcher] = {}
        self._complained = False

    def on_run_start(self, run: RunInfo) -> None:
        """Begin the run's span."""
        self._guarded(lambda: self._begin(run))

    def _begin(self, run: RunInfo) -> None:
        if run.run_id in self._runs:
            return
        if self._tracer_provider is None:
            _warn_without_sdk()
        self._runs[run.run_id] = RunWatcher(
            run,
            trace.get_tracer(SCOPE, __version__, self._tracer_provider),
            metrics.get_meter(SCOPE, __version__, self._meter_provider),
            parent_context(os.environ),
            self._settings,
            None if self._snapshots is None else StateFile(self._snapshots),
            self._guarded,
        )

    def on_batch(self, report: BatchReport) -> None:
        """Count the batch, and write its span if the budget admits it."""
        run = self._runs.get(report.run_id)
        if run is None:
            return
        try:
            run.batch(report)
        except Exception as exc:  # noqa: BLE001 - telemetry never breaks a run
            self._complain(exc)

    def on_worker(self, report: WorkerReport) -> None:
        """Write a worker's setup, or a teardown that failed."""
        run = self._runs.get(report.run_id)
        if run is not None:
            self._guarded(lambda: run.worker(report))

    def trace_of(self, run_id: str) -> str:
        """Return the id of a run's trace while the run is in progress; otherwise an empty string."""
        run = self._runs.get(run_id)
        return "" if run is None else run.trace.trace_id

    def on_run_end(self, result: RunResult, error: BaseException | None) -> None:
        """End the spans of the stages and of the run, and set the result's trace id."""
        run = self._runs.pop(result.run_id, None)
        if run is not None:
            result.trace_id = run.trace.trace_id or result.trace_id
            self._guarded(lambda: run.end(result, error))
            if isinstance(error, RunStopped):  # the process may be killed before `atexit` runs
                self._guarded(self._flush)

    def _flush(self) -> None:
        """Send the pending spans if there is an SDK; wait for the receiver for a limited time."""
        provider: Any = self._tracer_provider or trace.get_tracer_provider()
        if hasattr(provider, "force_flush"):
            flush = threading.Thread(target=provider.force_flush, name="curator-telemetry-flush", daemon=True)
            flush.start()
            flush.join(_FLUSH_S)

    def _guarded(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as exc:  # noqa: BLE001 - telemetry never breaks a run
            self._complain(exc)

    def _complain(self, exc: Exception) -> None:
        if not self._complained:
            self._complained = True
            logger.warning("telemetry failed and may be incomplete; runs are unaffected", exc_info=exc)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


def _is_full(detail: Any) -> bool:
    if detail not in ("sample", "full"):
        raise ConfigurationError(
            "unknown level of detail",
            field="detail",
            given=detail,
            expected="'sample' or 'full'",
            hint="omit detail to use 'sample'",
        )
    return bool(detail == "full")


def check_max_spans(given: Any) -> None:
    """Check a limit of spans.

    Raises:
        ConfigurationError: The limit is not a whole number, or is below 1.
    """
    if not isinstance(given, int) or isinstance(given, bool) or given < 1:
        raise ConfigurationError(
            "invalid limit of spans",
            field="max_spans",
            given=given,
            expected="a whole number, 1 or more",
            hint="omit max_spans to use 1500; to write no spans at all, omit the observer",
        )


def parent_context(environ: Mapping[str, str]) -> Context:
    """Return the parent context of a run's span: the current one, or else the one that the environment names."""
    current = otel_context.get_current()
    if trace.get_current_span(current).get_span_context().is_valid:
        return current
    carrier = {key.lower(): environ[key] for key in ("TRACEPARENT", "TRACESTATE") if key in environ}
    return TraceContextTextMapPropagator().extract(carrier, context=current)


def _warn_without_sdk() -> None:
    """Warn that nothing will be traced if no SDK is set up."""
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if not disabled and isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        logger.warning("no OpenTelemetry SDK is set up, so nothing is traced: call curator_otel.configure() first")
