# SPDX-License-Identifier: Apache-2.0
"""The span of a stage, the parent of the spans of its windows, batches, and setups."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.trace import Status, StatusCode

from curator_otel import conventions as names
from curator_otel._trace.attributes import cut, stage_attributes
from curator_otel._trace.writer import below

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.context import Context

    from curator_core.observers import StageInfo
    from curator_otel._trace.totals import StageActivity
    from curator_otel._trace.windows import StageWindow, Window
    from curator_otel._trace.writer import SpanWriter

__all__ = ["StageSpan"]

_REMEMBERED = 8  # windows
_UNKNOWN_ERROR = "_OTHER"  # OpenTelemetry's value of `error.type` for unknown errors


class StageSpan:
    """The span of a stage, from its beginning to its end.

    Args:
        writer: The writer of the run's spans.
        info: The stage.
        above: The context of the run's span.
        start: When the span begins, in nanoseconds since the Unix epoch.
        span_id: The id of the span; 0 for any.

    Attributes:
        span: The span.
        below: The context of its children.
        batch_name: The name of the spans of its batches.
        error_type: The type of the last error; empty if there was none.
        closed: The windows that were closed last and may not have been sent yet.
    """

    __slots__ = ("batch_name", "below", "closed", "error_type", "span", "start")

    def __init__(self, writer: SpanWriter, info: StageInfo, above: Context, start: int, span_id: int = 0) -> None:
        name = cut(info.name)
        self.start = start
        self.batch_name = names.BATCH_SPAN.format(stage=name)
        self.error_type = ""
        self.closed: list[Window] = []
        title = names.STAGE_SPAN.format(index=info.index, stage=name)
        self.span = writer.begin(title, above, start, stage_attributes(info), ids=(0, span_id))
        self.below = below(self.span)

    def remember(self, window: Window) -> None:
        """Remember a window that was closed."""
        self.closed = [*self.closed, window][-_REMEMBERED:]

    def end(self, attributes: Mapping[str, Any], did: StageActivity) -> None:
        """End the span, with the stage's attributes and status."""
        self.span.set_attributes(attributes)
        if did.failed or did.setups_failed or did.batches_failed:
            self.span.set_attribute(names.ERROR_TYPE, cut(self.error_type) or _UNKNOWN_ERROR)
            why = f"{did.failed} of {did.tasks_in} tasks failed" if did.failed else "a batch or a worker's setup failed"
            self.span.set_status(Status(StatusCode.ERROR, why))
        self.span.end(end_time=max(self.start, did.last_ns))

    def state(self, window: StageWindow) -> dict[str, Any]:
        """Return the state of the span and its open window for a snapshot."""
        return {
            "span": self.span.get_span_context().span_id,
            "start": self.start,
            "closed": [list(closed) for closed in self.closed],
            "open": None if window.is_empty else list(window.read()),
        }
