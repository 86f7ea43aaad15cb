# SPDX-License-Identifier: Apache-2.0
"""The trace of one run, written from its reports as they arrive."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry import trace
from opentelemetry.trace import SpanKind

from curator_otel import conventions as names
from curator_otel._trace.attributes import (
    cut,
    result_attributes,
    run_attributes,
    run_totals,
    stage_totals,
    started_attributes,
    window_attributes,
    worker_attributes,
)
from curator_otel._trace.detail import DetailTraces
from curator_otel._trace.sampling import SpanBudget
from curator_otel._trace.stage_span import StageSpan
from curator_otel._trace.totals import outcome_of
from curator_otel._trace.windows import SHORTEST_S, StageWindow
from curator_otel._trace.writer import NO_PARENT, SpanWriter, below

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from opentelemetry.context import Context
    from opentelemetry.trace import Span, SpanContext, Tracer

    from curator_core import BatchReport, RunResult
    from curator_core.observers import BatchOutcome, RunInfo, WorkerReport
    from curator_otel._trace.sampling import SpanReason
    from curator_otel._trace.totals import StageActivity
    from curator_otel._trace.windows import Window

__all__ = ["RunTrace", "SpanIds", "TraceSettings"]

_AFTER_ROOT_NS = 1_000  # `run started` begins this much after the run's span, so that back ends take that for the root


class TraceSettings(NamedTuple):
    """How to trace a run.

    Attributes:
        max_spans: The maximum number of spans; see `SpanBudget`.
        messages: Whether to write the messages of exceptions, or only their types.
        full: Whether to write every batch, in separate traces.
    """

    max_spans: int = 1500
    messages: bool = True
    full: bool = False


class SpanIds(NamedTuple):
    """Ids of the spans that a killed driver had begun.

    Attributes:
        root: The ids of the run's trace and span.
        stages: For each stage, the id of its span and when it began, in Unix nanoseconds; None if it had not begun.
        left_out: For each stage, the number of batches and setups that have no span.
    """

    root: tuple[int, int]
    stages: Sequence[tuple[int, int] | None]
    left_out: Sequence[int]


class RunTrace:
    """Writes the spans of one run.

    Batches and setups are written when their reports arrive, and windows when they are over. The spans of the run and
    its stages begin early, because the other spans need a parent, and end last. The span of a stage begins with the
    first activity that is reported.

    Args:
        tracer: The tracer that creates the spans.
        run: The run.
        totals: The totals of each stage. The caller updates them before it passes a batch to this class.
        parent: The parent context of the run's span.
        settings: How to trace the run.
        resumed: The ids of the spans that a killed driver had begun, to write these spans now.
        unknown: Attributes to omit, because the reports have no values for them.

    Attributes:
        root: The span of the run.
        recording: Whether spans are written.
        start_ns: When the trace began, by the monotonic clock.
    """

    def __init__(
        self,
        tracer: Tracer,
        run: RunInfo,
        totals: Sequence[StageActivity],
        parent: Context,
        settings: TraceSettings,
        resumed: SpanIds | None = None,
        unknown: Collection[str] = (),
    ) -> None:
        self._writer = SpanWriter(tracer, messages=settings.messages, unknown=unknown)
        self._infos = run.stages
        self._fed = run.num_source_tasks
        self._totals = totals
        self._budget = SpanBudget(settings.max_spans, len(run.stages))
        self._windows = [StageWindow(did) for did in totals]
        self._stages: list[StageSpan | None] = [None] * len(run.stages)
        self._kept: dict[str, SpanContext] = {}  # spans of batches, by batch id; at most as many as the budget admits
        self._details = DetailTraces(self._writer, run) if settings.full else None
        self.start_ns = time.monotonic_ns()
        for window in self._windows:
            window.due_ns = self.start_ns + round(SHORTEST_S * 1e9)
        self.root = self._writer.begin(
            names.RUN_SPAN.format(pipeline=cut(run.pipeline_name)),
            parent,
            run.start_unix_ns,
            run_attributes(run, settings.max_spans),
            kind=SpanKind.SERVER,
            ids=resumed.root if resumed else (_as_trace_id(run.run_id), 0),
        )
        # Nothing is written without an SDK, or if the sampler drops the trace.
        self.recording = self.root.is_recording()
        self._below = below(self.root)
        if resumed is not None:
            self._resume(resumed)
        elif self.recording:
            try:
                self._say_started(run, parent)
            except BaseException:
                self.root.end()  # the caller never gets this object
                raise

    @property
    def trace_id(self) -> str:
        """The id of the trace, as 32 hex digits; empty if no trace is written."""
        return f"{self.root.get_span_context().trace_id:032x}" if self.recording else ""

    @property
    def left_out(self) -> int:
        """The number of batches and setups that have no span, to keep the limit."""
        return sum(self._budget.left_out)

    # --- during the run ---------------------------------------------------------------------------------

    def batch(self, report: BatchReport, outcome: BatchOutcome) -> Span | None:
        """Enter a batch, and write its span if the budget admits it.

        Args:
            report: The report of the batch.
            outcome: The outcome of the batch.

        Returns:
            The span, or None if the batch gets none.
        """
        if not self.recording:
            return None
        index = report.stage_index
        stage = self._stages[index] or self.begin_stage(index, report.start_unix_ns)
        if report.error is not None:  # a batch that is merely repeated has no error
            stage.error_type = report.error.type
        kept_as = self._budget.admit_batch(report)
        window = self._windows[index]
        window.note(report, has_span=kept_as is not None)
        if self._details is not None:
            self._details.batch(stage.span, window.number, report, outcome)
        return None if kept_as is None else self._write_batch(stage, report, outcome, kept_as)

    def worker(self, report: WorkerReport) -> None:
        """Write a worker's setup, or a teardown that failed."""
        if not self.recording or (report.event == "ended" and report.error is None):
            return
        index = report.stage_index
        stage = self._stages[index] or self.begin_stage(index, report.start_unix_ns)
        if report.event == "setup_failed":
            stage.error_type = report.error.type if report.error else ""
        if not self._budget.admit_worker(index, failed=report.error is not None):
            return
        attributes = worker_attributes(report)
        name = names.TEARDOWN_SPAN
        if report.event != "ended":
            name = names.SETUP_SPAN
            attributes[names.OUTCOME] = "failed" if report.error else "ok"
        times = report.start_unix_ns, report.start_unix_ns + report.duration_ns
        self._writer.write(name, stage.below, times, attributes, report.error)

    def tick(self, now_ns: int) -> bool:
        """Close the windows that are over.

        Args:
            now_ns: The current time, by the monotonic clock.

        Returns:
            Whether any window was closed.
        """
        plan = self._budget.windows
        if not (plan.most and self.recording):
            return False
        closed = False
        for index, window in enumerate(self._windows):
            if now_ns < window.due_ns:
                continue
            if not window.is_empty and window.number < plan.most - 1:  # the last one closes at the end of the run
                self._close_window(index)
                closed = True
            window.due_ns = now_ns + round(plan.length_s((now_ns - self.start_ns) / 1e9) * 1e9)
        return closed

    def begin_stage(self, index: int, start_unix_ns: int, span_id: int = 0) -> StageSpan:
        """Begin the span of a stage."""
        stage = self._stages[index] = StageSpan(self._writer, self._infos[index], self._below, start_unix_ns, span_id)
        return stage

    def _write_batch(self, stage: StageSpan, report: BatchReport, outcome: BatchOutcome, kept_as: SpanReason) -> Span:
        written = self._writer.write_batch(stage.batch_name, stage.below, report, outcome, self._kept, kept_as)
        context = written.get_span_context()
        if context.trace_flags.sampled:  # otherwise a link to it would lead nowhere
            self._kept[report.batch_id] = context
        return written

    def _say_started(self, run: RunInfo, parent: Context) -> None:
        """Write the span that shows the run now: its own span is exported last, and never if the driver is killed."""
        context = self.root.get_span_context()
        above = self._below
        is_child = trace.get_current_span(parent).get_span_context().is_valid
        if not is_child and context.trace_id == _as_trace_id(run.run_id):  # ids can be chosen
            above = NO_PARENT
        when = run.start_unix_ns + _AFTER_ROOT_NS
        name = names.STARTED_SPAN.format(pipeline=cut(run.pipeline_name))
        told = started_attributes(run) | {names.RUN_STATE: "started"}
        span = self._writer.begin(name, above, when, told, ids=(context.trace_id, 0))
        span.end(end_time=when)

    # --- windows ----------------------------------------------------------------------------------------

    def _close_window(self, index: int) -> None:
        stage, window = self._stages[index], self._windows[index]
        if stage is None:
            return
        self._write_slowest(stage, index)
        closed = window.close()
        self.write_window(index, closed)
        stage.remember(closed)
        if self._details is not None:
            self._details.close(index)

    def write_window(self, index: int, window: Window) -> None:
        """Write a window of a stage that has begun."""
        stage = self._stages[index]
        if stage is None:
            return
        times = window.start_unix_ns, window.end_unix_ns
        name = names.WINDOW_SPAN.format(stage=cut(self._infos[index].name))
        attributes = window_attributes(self._infos[index], window)
        self._writer.write(name, stage.below, times, attributes, span_id=window.span_id)

    def write_detail(self, index: int, window: int, ids: tuple[int, int], times: tuple[int, int]) -> None:
        """Write the first span of a detail trace that a killed driver had begun: see `DetailTraces`."""
        stage = self._stages[index]
        if stage is not None and self._details is not None:
            self._details.write_again(stage.span, index, window, ids, times)

    def _write_slowest(self, stage: StageSpan, index: int) -> None:
        window = self._windows[index]
        report = window.slowest
        if report is not None and not window.has_slowest and self._budget.admit_slowest(index, window.number):
            self._write_batch(stage, report, outcome_of(report), "slowest")

    # --- at the end of the run --------------------------------------------------------------------------

    def end_stages(self) -> None:
        """Write the spans of the stages, with their totals. Stages that were never active have no span."""
        for index, stage in enumerate(self._stages):
            if stage is None:
                continue
            try:
                self._end_activity(stage, index)
            finally:  # end the stage's own span even if the SDK fails with a window
                did = self._totals[index]
                attributes = self._writer.known(stage_totals(did))
                stage.end(attributes | {names.SPANS_LEFT_OUT: self._budget.left_out[index]}, did)

    def _end_activity(self, stage: StageSpan, index: int) -> None:
        window = self._windows[index]
        self._write_slowest(stage, index)
        if window.number and not window.is_empty:
            self.write_window(index, window.close())
        if self._details is not None:
            self._details.close(index)

    def add_to_stage(self, index: int, attributes: Mapping[str, Any]) -> None:
        """Add to the span of a stage, if it has one."""
        stage = self._stages[index]
        if stage is not None:
            stage.span.set_attributes(attributes)

    def end(self, now_unix_ns: int, result: RunResult | None = None, error: BaseException | None = None) -> None:
        """Write the span of the run.

        Args:
            now_unix_ns: When the run ended.
            result: The result of the run, if known.
            error: The error that ended the run, if any.
        """
        root = self.root
        told = run_totals(self._infos, self._totals, self._fed, _left_out(result) if self._fed is None else 0)
        root.set_attributes(self._writer.known(told))
        root.set_attribute(names.SPANS_LEFT_OUT, self.left_out)
        if result is not None:
            root.set_attributes(result_attributes(result))
        if error is not None:
            stage = getattr(error, "stage", None)
            if isinstance(stage, str):
                root.set_attribute(names.ERROR_STAGE, cut(stage))
            self._writer.fail(root, _type_name(error), _message(error), now_unix_ns)
        elif result is not None and result.lost:
            self._writer.fail(root, "curator_core.errors.TasksLostError", "; ".join(result.lost), now_unix_ns)
        # Other nodes' clocks may be ahead; the run's span must still cover the spans of its stages.
        root.end(end_time=max(now_unix_ns, *(did.last_ns for did in self._totals), 0))

    # --- for recovery after the driver was killed -------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return, as plain values, the state from which `curator_otel.recover` can write the open spans."""
        context = self.root.get_span_context()
        return {
            "root": [context.trace_id, context.span_id],
            "details": [] if self._details is None else self._details.state(),
            "left_out": list(self._budget.left_out),
            "stages": [
                None if stage is None else stage.state(window)
                for stage, window in zip(self._stages, self._windows, strict=True)
            ],
        }

    def _resume(self, resumed: SpanIds) -> None:
        self._budget.left_out = list(resumed.left_out)
        for index, found in enumerate(resumed.stages):
            if found is not None:
                span_id, start_unix_ns = found
                self.begin_stage(index, start_unix_ns, span_id)


def _left_out(result: RunResult | None) -> int:
    """Return the number of source tasks that earlier runs finished or that belong to other shards."""
    return 0 if result is None else len(result.accounting.resumed) + result.accounting.elsewhere


def _as_trace_id(run_id: str) -> int:
    """Return the run id as a trace id of the same 128 bits; 0 if the run id has another format."""
    try:
        number = int(run_id, 16)
    except ValueError:
        return 0
    return number if 0 < number < 2**128 else 0


def _type_name(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as broken:  # noqa: BLE001 - a broken __str__ must not cost the run its span
        return f"<its __str__ raised {type(broken).__name__}>"
