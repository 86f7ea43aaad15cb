# SPDX-License-Identifier: Apache-2.0
"""Sets the OpenTelemetry SDK up, for programs that have not done so themselves.

    from curator_otel import configure

    with configure():  # OTLP over HTTP, as the OTEL_* variables say
        pipeline.run(observers=["otel"])

It needs the extra ``curator-otel[otlp]``; the SDK and the exporters are imported when `configure` is called.
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
from curator_otel.config import SetupConfig, read_config
from curator_otel.delivery import Closer, CountedProcessor, WatchedExporter
from curator_otel.ids import ChosenIds
from curator_otel.observer import SCOPE

if TYPE_CHECKING:
    from os import PathLike
    from pathlib import Path
    from types import TracebackType
    from typing import Self, TextIO

__all__ = ["Telemetry", "configure"]

logger = logging.getLogger(__name__)

_LAST_WORD_S = 0.5  # for exporters that were told to give up


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
    """Set the SDK up: where spans and metrics go, under which name, with queues that lose nothing.

    The standard variables hold: ``OTEL_EXPORTER_OTLP_*``, ``OTEL_SERVICE_NAME``, ``OTEL_RESOURCE_ATTRIBUTES``,
    ``OTEL_BSP_*``, ``OTEL_METRIC_EXPORT_*``, ``OTEL_TRACES_SAMPLER*``. With ``OTEL_METRICS_EXPORTER=none`` metrics are
    not sent, for receivers that take traces only; with ``OTEL_SDK_DISABLED=true`` nothing is set up at all. They are
    read here, once.

    Args:
        exporter: ``"otlp"`` (over HTTP, the default), ``"console"``, or ``"json"`` (the default where a file
            is given).
        endpoint: Base URL of the receiver, as ``OTEL_EXPORTER_OTLP_ENDPOINT``, which it overrides.
        json_file: A file for the trace, for machines with no collector: OTLP as JSON, a line a request. It is
            written anew. `curator_otel.render_tree` shows it.
        json_metrics_file: A file for the metrics, likewise; without it they are not written.
        service_name: The service's name where the variables name none.
        set_global: Whether the providers become the global ones, which an `OTelObserver` without arguments
            and ``observers=["otel"]`` use. That can be done once a process.
        shutdown_timeout_s: How long the end may wait for an endpoint that does not answer.

    Returns:
        What was set up. Shut it down at the end, or use it in a ``with`` statement; when the interpreter
        exits that is done in any case.

    Raises:
        ConfigurationError: A setting makes no sense, the SDK is not installed, or OpenTelemetry has been set
            up before.
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
            "OpenTelemetry has been set up in this process before",
            field="set_global",
            given=trace.get_tracer_provider(),
            expected="one call a process, before anything else sets the global providers",
            hint="leave configure() out: OTelObserver() uses what is there; or say set_global=False and give "
            "the providers to OTelObserver",
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
            hint="pip install 'curator-otel[otlp]'",
        ) from exc
    if set_global:
        trace.set_tracer_provider(telemetry.tracer_provider)
        metrics.set_meter_provider(telemetry.meter_provider)
    return telemetry


class Telemetry:
    """What `configure` set up.

    Attributes:
        tracer_provider: Makes spans: ``OTelObserver(telemetry.tracer_provider, telemetry.meter_provider)``.
        meter_provider: Makes metrics.
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
        """Spans that were lost: not delivered until now, or, once this is shut down, at all."""
        if self._pipes is None:
            return 0
        if self._closed:
            return self._pipes.processor.accepted - self._pipes.span_exporter.sent
        return self._pipes.span_exporter.lost

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Deliver what is waiting.

        Args:
            timeout_s: How long to wait for that.

        Returns:
            Whether all of it was delivered in time.
        """
        if self._closed or self._pipes is None:
            return self.dropped == 0
        lost = self.dropped
        providers: tuple[Any, ...] = (self.tracer_provider, self.meter_provider)
        flushes = [Closer(provider.force_flush) for provider in providers]
        done = _run_all(flushes, time.monotonic() + timeout_s)
        return done and self.dropped == lost and not self._pipes.metrics_failed

    def shutdown(self, timeout_s: float | None = None) -> bool:
        """Deliver what is waiting, and end. Says once what was lost; further calls change nothing.

        Args:
            timeout_s: How long to wait; as `configure` was told where it is not given.

        Returns:
            Whether everything was delivered.
        """
        if self._closed or self._pipes is None:
            return self.dropped == 0
        self._closed = True
        atexit.unregister(self.shutdown)
        if os.getpid() != self._pid:  # a fork: what is waiting is its parent's business
            return True
        timeout_s = self._config.shutdown_timeout_s if timeout_s is None else timeout_s
        if not _run_all(self._closers, time.monotonic() + timeout_s):
            for exporter in self._pipes.exporters:
                exporter.shutdown()  # ends its wait for the next try
            _run_all(self._closers, time.monotonic() + _LAST_WORD_S)
        with suppress(OSError):  # a full disk; that spans were lost is known already
            self._pipes.files.close()
        self._report(self._pipes)
        return self.dropped == 0 and not self._pipes.metrics_failed

    def _report(self, pipes: _Pipes) -> None:
        lost = [f"{self.dropped:,} span{'s' * (self.dropped != 1)}"] if self.dropped else []
        if pipes.metrics_failed:
            lost.append("the last metrics")
        if lost:
            reason = next((exporter.reason for exporter in pipes.exporters if exporter.reason), "not done in time")
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
    """What the spans and metrics go through on their way out."""

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

    # Given as an attribute, a name would override that of the environment.
    resource = Resource.create({"service.name": config.service_name} if config.service_name else {})
    pipes = _Pipes(config)
    exporter: Any = pipes.metric_exporter
    # Ended by us and not by the SDK, which would wait for half a minute when the interpreter exits.
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
    dropped = names.TELEMETRY_DROPPED
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
    """Give the exporter randomness of its own.

    It draws a back-off from the global `random` for each request, good ones too, in a thread of its own: a
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
            expected="a path that can be written",
            hint="choose another directory, or make this one writable",
        ) from exc


def _run_all(closers: list[Closer], until: float) -> bool:
    for closer in closers:
        closer.start()
    return all(closer.wait(until) for closer in closers)
