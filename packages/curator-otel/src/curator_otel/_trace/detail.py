# SPDX-License-Identifier: Apache-2.0
"""Every batch of a run, in separate traces.

Back ends would reject a trace of a whole run, or their pages would choke on it. Each window of a stage therefore has a
separate trace, with links to the stage in the run's trace and between the batches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.trace import Link

from curator_otel import conventions as names
from curator_otel._trace.attributes import cut
from curator_otel._trace.writer import NO_PARENT, below

if TYPE_CHECKING:
    from opentelemetry.trace import Span, SpanContext

    from curator_core import BatchReport
    from curator_core.observers import BatchOutcome, RunInfo, StageInfo
    from curator_otel._trace.attributes import Attributes
    from curator_otel._trace.writer import SpanWriter

__all__ = ["DetailTraces"]

SPANS_LIMIT = 4_998  # per trace, without its first span; a window with more batches has several traces
_LINKABLE = 20_000  # batches that later ones can link to: 6 MB


class DetailTraces:
    """Writes all batches of a run.

    Args:
        writer: The writer of the run's spans.
        run: The run.
    """

    def __init__(self, writer: SpanWriter, run: RunInfo) -> None:
        self._writer = writer
        self._run = run
        self._open: list[_Trace | None] = [None] * len(run.stages)
        self._written: dict[str, SpanContext] = {}

    def batch(self, stage: Span, window: int, report: BatchReport, outcome: BatchOutcome) -> None:
        """Write a batch.

        Args:
            stage: The span of its stage.
            window: The number of the window in which it arrived.
            report: The report of the batch.
            outcome: The outcome of the batch.
        """
        index = report.stage_index
        found = self._open[index]
        if found is not None and found.spans == SPANS_LIMIT:
            self.close(index)
            found = None
        if found is None:
            found = self._open[index] = self._begin(self._run.stages[index], stage, window, report.start_unix_ns)
        name = names.BATCH_SPAN.format(stage=found.stage_name)
        span = self._writer.write_batch(name, found.below, report, outcome, self._written)
        found.spans += 1
        found.end_unix_ns = max(found.end_unix_ns, report.end_unix_ns)
        context = span.get_span_context()
        if context.trace_flags.sampled:  # the sampler decides for each of these traces
            self._written[report.batch_id] = context
        if len(self._written) > _LINKABLE:
            del self._written[next(iter(self._written))]

    def close(self, index: int) -> None:
        """End the trace of a stage's window."""
        found, self._open[index] = self._open[index], None
        if found is not None:
            found.root.end(end_time=found.end_unix_ns)

    def state(self) -> list[dict[str, Any]]:
        """Return the traces whose first span is open, for `write_again`."""
        return [found.state(index) for index, found in enumerate(self._open) if found is not None]

    def write_again(self, stage: Span, index: int, window: int, ids: tuple[int, int], times: tuple[int, int]) -> None:
        """Write the first span of a trace that a killed driver had begun.

        Args:
            stage: The span of its stage.
            index: The index of the stage.
            window: The number of its window.
            ids: The ids of the trace and the span.
            times: When the span began, and when its last batch ended, in Unix nanoseconds.
        """
        self._begin(self._run.stages[index], stage, window, times[0], ids).root.end(end_time=max(times))

    def _begin(
        self, stage: StageInfo, span: Span, window: int, start_unix_ns: int, ids: tuple[int, int] = (0, 0)
    ) -> _Trace:
        name = cut(stage.name)
        attributes: Attributes = {
            names.RUN_ID: self._run.run_id,
            names.PIPELINE_NAME: cut(self._run.pipeline_name),
            names.STAGE_NAME: name,
            names.STAGE_INDEX: stage.index,
            names.WINDOW_NUMBER: window,
        }
        links = [Link(span.get_span_context())]
        title = names.DETAIL_SPAN.format(stage=name)
        root = self._writer.begin(title, NO_PARENT, start_unix_ns, attributes, links, ids=ids)
        return _Trace(root, name, window, start_unix_ns)


class _Trace:
    """An open trace."""

    __slots__ = ("below", "end_unix_ns", "root", "spans", "stage_name", "start_unix_ns", "window")

    def __init__(self, root: Span, stage_name: str, window: int, start_unix_ns: int) -> None:
        self.root = root
        self.stage_name = stage_name
        self.window = window
        self.below = below(root)
        self.start_unix_ns = self.end_unix_ns = start_unix_ns
        self.spans = 0

    def state(self, index: int) -> dict[str, Any]:
        context = self.root.get_span_context()
        return {
            "stage": index,
            "window": self.window,
            "ids": [context.trace_id, context.span_id],
            "times": [self.start_unix_ns, self.end_unix_ns],
        }
