# SPDX-License-Identifier: Apache-2.0
"""Sets up the OpenTelemetry SDK, for programs that do not do so themselves.

    from curator_otel import configure

    with configure():  # OTLP over HTTP, configured by the OTEL_* variables
        pipeline.run(observers=["otel"])

This needs the extra ``curator-otel[otlp]``; `configure` imports the SDK and the exporters when it is called.
"""

from __future__ import annotations

import atexit
import logging
import os
import random
import sys
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from opentelemetry import metrics, trace

from curator_core import ConfigurationError
from curator_otel import conventions as names
from curator_otel.__about__ import __version__
from curator_otel._trace.ids import ChosenIds
from curator_otel.observer import SCOPE
from curator_otel.sdk.config import SetupConfig, read_config
from curator_otel.sdk.exporters import Closer, CountedProcessor, WatchedExporter

if TYPE_CHECKING:
    from os import PathLike
    from pathlib import Path
    from types import TracebackType
    from typing import Self, TextIO

__all__ = ["Telemetry", "configure"]

logger = logging.getLogger(__name__)

_LAST_WORD_S = 0.5  # for exporters to return after their shutdown


def configure(
    exporter: str | None = None,
    *,
    endpoint: str | None = None,
    json_file: str | PathLike[str] | None = None,
    json_metrics_file: str | PathLike[str] | None = None,
    service_name: str = "curator",
    set_global: bool = True,
    shutdown_timeout_s: float = 5.0,
) -> Telemetry:
    """Set up the SDK: the destination of spans and metrics, the service name, and queues that lose no spans.

    The standard variables apply: ``OTEL_EXPORTER_OTLP_*``, ``OTEL_SERVICE_NAME``, ``OTEL_RESOURCE_ATTRIBUTES``,
    ``OTEL_BSP_*``, ``OTEL_METRIC_EXPORT_*``, ``OTEL_TRACES_SAMPLER*``. ``OTEL_METRICS_EXPORTER=none`` turns metrics
    off, for receivers that only accept traces; ``OTEL_SDK_DISABLED=true`` turns everything off. The variables are read
    here, once.

    Args:
        exporter: ``"otlp"`` (over HTTP, the default), ``"console"``, or ``"json"`` (the default if a file is
            given).
        endpoint: Base URL of the receiver; overrides ``OTEL_EXPORTER_OTLP_ENDPOINT``.
        json_file: A file for the trace, for machines without a collector: OTLP as JSON, one request per line. An
            existing file is overwritten. `curator_otel.render_tree` shows the trace.
        json_metrics_file: A file for the metrics, in the same format; if None, they are not written.
        service_name: The name of the service if the variables name none.
        set_global: Whether to make the providers the global ones, which an `OTelObserver` without arguments
            and ``observers=["otel"]`` use. This is possible once per process.
        shutdown_timeout_s: The maximum time in seconds that a shutdown waits for an endpoint that does not answer.

    Returns:
        The telemetry. Shut it down at the end, or use it in a ``with`` statement; otherwise this happens when the
        interpreter exits.

    Raises:
        ConfigurationError: A setting is invalid, the SDK is not installed, or OpenTelemetry has already been set up.
    """
    config = read_config(
        os.environ,
        exporter=exporter,
        endpoint=endpoint,
        json_file=json_file,
        json_metrics_file=json_metrics_file,
        service_name=service_name,
        shutdown_timeout_s=shutdown_timeout_s,
    )
    if config.disabled:
        return Telemetry(config, trace.NoOpTracerProvider(), metrics.NoOpMeterProvider())
    if set_global and not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        raise ConfigurationError(
            "OpenTelemetry is already set up in this process",
            field="set_global",
            given=trace.get_tracer_provider(),
            expected="one call per process, before anything else sets the global providers",
            hint="omit configure(), because OTelObserver() uses the global providers; or pass set_global=False, and "
            "pass the providers to OTelObserver",
        )
    try:
        telemetry = _build(config)
    except ModuleNotFoundError as exc:
        if not (exc.name or "").startswith("opentelemetry"):
            raise
        raise ConfigurationError(
            "the OpenTelemetry SDK is not installed",
            field="exporter",
            given=config.exporter,
            expected=f"the module {exc.name}",
            hint="install it with pip install 'curator-otel[otlp]'",
        ) from exc
    if set_global:
        trace.set_tracer_provider(telemetry.tracer_provider)
        metrics.set_meter_provider(telemetry.meter_provider)
    return telemetry


class Telemetry:
    """The providers and exporters that `configure` set up.

    Attributes:
        tracer_provider: Creates spans: ``OTelObserver(telemetry.tracer_provider, telemetry.meter_provider)``.
        meter_provider: Creates metrics.
    """

    def __init__(
        self,
        config: SetupConfig,
        tracer_provider: trace.TracerProvider,
        meter_provider: metrics.MeterProvider,
        pipes: _Pipes | None = None,
    ) -> None:
        self.tracer_provider = tracer_provider
        self.meter_provider = meter_provider
        self._config = config
        self._pipes = pipes
        self._closed = pipes is None
        self._closers: list[Closer] = []
        self._pid = os.getpid()
        if pipes is not None:
            providers: tuple[Any, ...] = (tracer_provider, meter_provider)
            self._closers = [Closer(provider.shutdown) for provider in providers]
            atexit.register(self.shutdown)

    @property
    def dropped(self) -> int:
        """The number of lost spans: those whose delivery failed or, after the shutdown, all that were not sent."""
        if self._pipes is None:
            return 0
        if self._closed:
            return self._pipes.processor.accepted - self._pipes.span_exporter.sent
        return self._pipes.span_exporter.lost

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Deliver the pending spans and metrics.

        Args:
            timeout_s: How long to wait for the delivery.

        Returns:
            Whether everything was delivered in time.
        """
        if self._closed or self._pipes is None:
            return self.dropped == 0
        lost = self.dropped
        providers: tuple[Any, ...] = (self.tracer_provider, self.meter_provider)
        flushes = [Closer(provider.force_flush) for provider in providers]
        done = _run_all(flushes, time.monotonic() + timeout_s)
        return done and self.dropped == lost and not self._pipes.metrics_failed

    def shutdown(self, timeout_s: float | None = None) -> bool:
        """Deliver the pending spans and metrics, and end. Logs losses once; further calls change nothing.

        Args:
            timeout_s: How long to wait; None means the timeout given to `configure`.

        Returns:
            Whether everything was delivered.
        """
        if self._closed or self._pipes is None:
            return self.dropped == 0
        self._closed = True
        atexit.unregister(self.shutdown)
        if os.getpid() != self._pid:  # a fork: the parent delivers the pending spans
            return True
        timeout_s = self._config.shutdown_timeout_s if timeout_s is None else timeout_s
        if not _run_all(self._closers, time.monotonic() + timeout_s):
            for exporter in self._pipes.exporters:
                exporter.shutdown()  # ends its wait for the next retry
            _run_all(self._closers, time.monotonic() + _LAST_WORD_S)
        with suppress(OSError):  # a full disk; the losses have already been counted
            self._pipes.files.close()
        self._report(self._pipes)
        return self.dropped == 0 and not self._pipes.metrics_failed

    def _report(self, pipes: _Pipes) -> None:
        lost = [f"{self.dropped:,} span{'s' * (self.dropped != 1)}"] if self.dropped else []
        if pipes.metrics_failed:
            lost.append("the last metrics")
        if lost:
            reason = next((exporter.reason for exporter in pipes.exporters if exporter.reason), "timed out")
            where = self._config.destination if self.dropped else self._config.metrics_destination
            logger.warning("%s did not reach %s; runs are unaffected (%s)", " and ".join(lost), where, reason)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, frames: TracebackType | None
    ) -> None:
        self.shutdown()

    def __repr__(self) -> str:
        return f"<Telemetry to {self._config.destination}{', shut down' * self._closed}>"


class _Pipes:
    """The processors and exporters of spans and metrics."""

    def __init__(self, config: SetupConfig) -> None:
        self.files = ExitStack()
        try:
            self.span_exporter = _span_exporter(config, self.files)
            self.metric_exporter = _metric_exporter(config, self.files)
        except BaseException:
            self.files.close()
            raise
        self.processor = CountedProcessor(_span_processor(config, self.span_exporter))

    @property
    def exporters(self) -> list[WatchedExporter]:
        return [self.span_exporter] if self.metric_exporter is None else [self.span_exporter, self.metric_exporter]

    @property
    def metrics_failed(self) -> bool:
        return self.metric_exporter is not None and self.metric_exporter.last_failed


# --- the SDK ------------------------------------------------------------------------------------------------


def _build(config: SetupConfig) -> Telemetry:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

    # As an attribute, the name would override the name from the environment, so it is only set if there is none.
    resource = Resource.create({"service.name": config.service_name} if config.service_name else {})
    pipes = _Pipes(config)
    exporter: Any = pipes.metric_exporter
    # No shutdown by the SDK on exit, which would wait for half a minute: `Telemetry` does that.
    ids: Any = ChosenIds()
    tracer_provider = TracerProvider(resource=resource, id_generator=ids, shutdown_on_exit=False)
    processor: Any = pipes.processor
    tracer_provider.add_span_processor(processor)
    meter_provider = MeterProvider(
        [] if exporter is None else [PeriodicExportingMetricReader(exporter)],
        resource=resource,
        shutdown_on_exit=False,
    )
    telemetry = Telemetry(config, tracer_provider, meter_provider, pipes)
    dropped = names.METRICS[names.TELEMETRY_DROPPED]
    meter_provider.get_meter(SCOPE, __version__).create_observable_counter(
        dropped.name,
        callbacks=[lambda _: [metrics.Observation(telemetry.dropped)]],
        unit=dropped.unit,
        description=dropped.description,
    )
    return telemetry


def _span_processor(config: SetupConfig, exporter: Any) -> Any:
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return BatchSpanProcessor(exporter, max_queue_size=config.queue_size, schedule_delay_millis=config.delay_ms)


def _span_exporter(config: SetupConfig, files: ExitStack) -> WatchedExporter:
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SpanExporter, SpanExportResult

    exporter: SpanExporter
    if config.exporter == "otlp":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        exporter = OTLPSpanExporter(endpoint=config.traces_endpoint)
        _leave_random_alone(exporter)
    elif config.exporter == "console":
        exporter = ConsoleSpanExporter(out=sys.stdout)
    else:
        from opentelemetry.exporter.otlp.json.file.trace_exporter import FileSpanExporter

        exporter = FileSpanExporter(stream=_open("json_file", config.json_file, files))
    return WatchedExporter(exporter, SpanExportResult.FAILURE)


def _metric_exporter(config: SetupConfig, files: ExitStack) -> WatchedExporter | None:
    from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, MetricExporter, MetricExportResult

    if not config.metrics:
        return None
    exporter: MetricExporter
    if config.exporter == "otlp":
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

        exporter = OTLPMetricExporter(endpoint=config.metrics_endpoint)
        _leave_random_alone(exporter)
    elif config.exporter == "console":
        exporter = ConsoleMetricExporter(out=sys.stdout)
    else:
        from opentelemetry.exporter.otlp.json.file.metric_exporter import FileMetricExporter

        exporter = FileMetricExporter(stream=_open("json_metrics_file", config.json_metrics_file, files))
    return WatchedExporter(exporter, MetricExportResult.FAILURE)


def _leave_random_alone(exporter: Any) -> None:
    """Give the exporter a separate source of randomness.

    It draws a back-off time from the global `random` for each request, even for successful ones, in another thread: a
    user's seeded sequence would differ from run to run.
    """
    for name in (type(exporter).__module__, "opentelemetry.exporter.otlp.common.http"):
        module: Any = sys.modules.get(name)
        if getattr(module, "random", None) is random:
            module.random = random.SystemRandom()


def _open(field: str, path: Path | None, files: ExitStack) -> TextIO:
    if path is None:
        raise ConfigurationError("no file was given", field=field, expected="a path")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return files.enter_context(path.open("w", encoding="utf-8"))
    except OSError as exc:
        raise ConfigurationError(
            f"the file cannot be written: {exc.strerror or exc}",
            field=field,
            given=str(path),
            expected="a writable path",
            hint="choose another directory, or make this one writable",
        ) from exc


def _run_all(closers: list[Closer], until: float) -> bool:
    for closer in closers:
        closer.start()
    return all(closer.wait(until) for closer in closers)
