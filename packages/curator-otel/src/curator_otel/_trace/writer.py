# SPDX-License-Identifier: Apache-2.0
"""Writes individual spans, with the times and errors of reports, using only the OpenTelemetry API."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanKind, Status, StatusCode

from curator_otel import conventions as names
from curator_otel._trace.attributes import MESSAGE_LIMIT, batch_attributes, cut
from curator_otel._trace.ids import chosen_ids

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from opentelemetry.trace import Span, SpanContext, Tracer

    from curator_core import BatchReport
    from curator_core.observers import BatchOutcome, ErrorInfo
    from curator_otel._trace.attributes import Attributes
    from curator_otel._trace.sampling import SpanReason

__all__ = ["LINKS_LIMIT", "NO_PARENT", "SpanWriter", "below"]

LINKS_LIMIT = 16  # links from a batch to the batches that produced its inputs

NO_PARENT = trace.set_span_in_context(trace.INVALID_SPAN, Context())
"""A context outside of any span. With an empty context, the SDK's metrics would use the current one instead."""


def below(span: Span) -> Context:
    """Return the context of a span's children, with nothing from the current context."""
    return trace.set_span_in_context(span, Context())


class SpanWriter:
    """Writes spans.

    Args:
        tracer: The tracer that creates the spans.
        messages: Whether to write the messages of exceptions, or only their types.
        unknown: Attributes to omit, because the reports have no values for them.
    """

    def __init__(self, tracer: Tracer, *, messages: bool = True, unknown: Collection[str] = ()) -> None:
        self._tracer = tracer
        self._messages = messages
        self._unknown = unknown

    def known(self, attributes: Attributes) -> Attributes:
        """Return the attributes that the reports have values for."""
        if not self._unknown:
            return attributes
        return {name: value for name, value in attributes.items() if name not in self._unknown}

    def begin(
        self,
        name: str,
        above: Context,
        start_unix_ns: int,
        attributes: Attributes,
        links: Sequence[Link] = (),
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        ids: tuple[int, int] = (0, 0),
    ) -> Span:
        """Begin a span.

        Args:
            name: Its name.
            above: The context of its parent.
            start_unix_ns: When it began, in Unix nanoseconds.
            attributes: Its attributes.
            links: Its links.
            kind: Its kind.
            ids: The ids of its trace and of the span; 0 for any: see `chosen_ids`.
        """
        with chosen_ids(*ids):
            return self._tracer.start_span(
                name, context=above, kind=kind, attributes=attributes, links=links, start_time=start_unix_ns
            )

    def write(
        self,
        name: str,
        above: Context,
        times: tuple[int, int],
        attributes: Attributes,
        error: ErrorInfo | None = None,
        links: Sequence[Link] = (),
        *,
        span_id: int = 0,
    ) -> Span:
        """Write a span that has ended.

        Args:
            name: Its name.
            above: The context of its parent.
            times: When it began and ended, in Unix nanoseconds.
            attributes: Its attributes.
            error: The error that it ended with, if any.
            links: Its links.
            span_id: Its id; 0 for any.
        """
        start, end = times
        span = self.begin(name, above, start, attributes, links, ids=(0, span_id))
        if error is not None:
            self.fail(span, error.type, error.message, end)
        span.end(end_time=max(start, end))
        return span

    def write_batch(
        self,
        name: str,
        above: Context,
        report: BatchReport,
        outcome: BatchOutcome,
        known: Mapping[str, SpanContext],
        kept_as: SpanReason | None = None,
    ) -> Span:
        """Write a batch.

        Args:
            name: The name of the span.
            above: The context of its parent.
            report: The report of the batch.
            outcome: The outcome of the batch.
            known: The spans of earlier batches to link to, by batch id.
            kept_as: Why the batch has a span.
        """
        attributes = self.known(batch_attributes(report, outcome, kept_as))
        times = report.start_unix_ns, report.end_unix_ns
        return self.write(name, above, times, attributes, report.error, _links(report.parents, known))

    def fail(self, span: Span, error_type: str, message: str, when_unix_ns: int) -> None:
        """Mark a span as failed."""
        shown = cut(message, MESSAGE_LIMIT) if self._messages else ""
        event: dict[str, str] = {names.EXCEPTION_TYPE: cut(error_type)}
        if shown:
            event[names.EXCEPTION_MESSAGE] = shown
        span.set_attribute(names.ERROR_TYPE, cut(error_type))
        span.add_event(names.EXCEPTION_EVENT, event, timestamp=when_unix_ns)
        span.set_status(Status(StatusCode.ERROR, shown or cut(error_type)))


def _links(parents: Iterable[str], known: Mapping[str, SpanContext]) -> list[Link]:
    links = []
    for parent in parents:
        context = known.get(parent)
        if context is not None:
            links.append(Link(context))
            if len(links) == LINKS_LIMIT:
                break
    return links
