# SPDX-License-Identifier: Apache-2.0
"""A real OpenTelemetry SDK that keeps everything in memory."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from curator_otel import OTelObserver

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan


class Memory:
    """A real SDK whose exporters keep what they receive."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracer_provider = TracerProvider(shutdown_on_exit=False)
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.meter_provider = MeterProvider([self.reader], shutdown_on_exit=False)

    def observer(self, **settings: Any) -> OTelObserver:
        return OTelObserver(self.tracer_provider, self.meter_provider, **settings)

    @property
    def spans(self) -> list[ReadableSpan]:
        """All spans, in the order in which they were exported."""
        return list(self.exporter.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span

    def names(self) -> Counter[str]:
        """Return the number of spans by name, without the span for the start of a run."""
        return Counter(span.name for span in self.spans if not span.name.startswith("run started "))

    def instruments(self) -> dict[str, Any]:
        """Return the metrics by name, as the SDK exports them."""
        data = self.reader.get_metrics_data()
        if data is None:
            return {}
        scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics]
        return {metric.name: metric for scope in scopes for metric in scope.metrics}

    def points(self) -> dict[str, dict[tuple[str, ...], Any]]:
        """Return the values of each metric by its labels: sums of counters, counts of histograms."""
        return {
            name: {
                tuple(point.attributes.values()): getattr(point, "value", None) or getattr(point, "count", 0)
                for point in metric.data.data_points
            }
            for name, metric in self.instruments().items()
        }
