# SPDX-License-Identifier: Apache-2.0
"""The spans of one run: made from its reports, with their true times, through the OpenTelemetry API alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanKind, Status, StatusCode

from curator_otel import conventions as names
from curator_otel.attributes import (
    MESSAGE_LIMIT,
    batch_attributes,
    cut,
    run_attributes,
    stage_attributes,
    stage_totals,
    worker_attributes,
)
from curator_otel.sampling import SpanBudget

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from opentelemetry.trace import Span, SpanContext, Tracer

    from curator_core.executor import RunResult
    from curator_core.report import BatchReport, ErrorInfo, RunInfo, StageInfo, WorkerReport
    from curator_core.verdict import Verdict
    from curator_otel.attributes import Attributes
    from curator_otel.sampling import SpanReason
    from curator_otel.totals import BatchOutcome, StageTotals

__all__ = ["RunTrace"]

LINKS_LIMIT = 16  # of a batch to the batches that made its inputs
_FINDINGS_LIMIT = 16
_UNKNOWN_ERROR = "_OTHER"  # what OpenTelemetry has `error.type` say where nothing is known


class RunTrace:
    """Writes the spans of one run.

    Batches and set-ups are written when their reports arrive. The spans of the run and its stages are begun
    early, so that the others have a parent, and are ended last. A stage's begins with its first activity.

    Args:
        tracer: What makes the spans.
        run: The run.
        parent: The context that the run's span is a child in.
        max_spans: How many spans to make at the most; see `SpanBudget`.
        messages: Whether the messages of exceptions are written, or their types only.
    """

    def __init__(self, tracer: Tracer, run: RunInfo, parent: Context, *, max_spans: int, messages: bool = True) -> None:
        self._tracer = tracer
        self._infos = run.stages
        self._messages = messages
        self._budget = SpanBudget(max_spans, len(run.stages))
        self._stages: list[_Stage | None] = [None] * len(run.stages)
        self._kept: dict[str, SpanContext] = {}  # spans of batches, by batch; no more than the budget admits
        self.root = tracer.start_span(
            names.RUN_SPAN.format(pipeline=cut(run.pipeline_name)),
            context=parent,
            kind=SpanKind.SERVER,
            attributes=run_attributes(run, max_spans),
            start_time=run.start_unix_ns,
        )
        # Without an SDK, or where the sampler says no, there is nothing to be written.
        self.recording = self.root.is_recording()
        self._below = trace.set_span_in_context(self.root, Context())

    @property
    def left_out(self) -> int:
        """Spans that were not made, to keep the limit."""
        return sum(self._budget.left_out)

    # --- while the run goes on --------------------------------------------------------------------------

    def batch(self, report: BatchReport, outcome: BatchOutcome, unknown: Iterable[str] = ()) -> None:
        """Write a batch, if the budget admits it.

        Args:
            report: The batch.
            outcome: How it went.
            unknown: Attributes to leave out, because whoever made the report could not know them.
        """
        if not self.recording:
            return
        index = report.stage_index
        stage = self._stages[index] or self._begin_stage(index, report.start_unix_ns)
        reason: SpanReason = "rest"
        if report.error is not None:  # a mere repeat of a batch has none
            reason = "error"
            stage.error_type = report.error.type
        elif report.sequence == 0:
            reason = "first"
        if not self._budget.admit(index, reason):
            return
        attributes = batch_attributes(report, outcome)
        for name in unknown:
            attributes.pop(name, None)
        span = self._write(
            stage,
            stage.batch_name,
            report.start_unix_ns,
            report.end_unix_ns,
            attributes,
            report.error,
            self._links(report),
        )
        self._kept[report.batch_id] = span.get_span_context()

    def worker(self, report: WorkerReport) -> None:
        """Write a worker's set-up, and a teardown that failed."""
        if not self.recording or (report.event == "ended" and report.error is None):
            return
        index = report.stage_index
        stage = self._stages[index] or self._begin_stage(index, report.start_unix_ns)
        if report.event == "setup_failed":
            stage.error_type = report.error.type if report.error else ""
        if not self._budget.admit(index, "error" if report.error else "setup"):
            return
        attributes = worker_attributes(report)
        name = names.TEARDOWN_SPAN
        if report.event != "ended":
            name = names.SETUP_SPAN
            attributes[names.OUTCOME] = "failed" if report.error else "ok"
        self._write(
            stage,
            name,
            report.start_unix_ns,
            report.start_unix_ns + report.duration_ns,
            attributes,
            report.error,
        )

    def _begin_stage(self, index: int, start_unix_ns: int) -> _Stage:
        stage = self._stages[index] = _Stage(self._tracer, self._infos[index], self._below, start_unix_ns)
        return stage

    def _links(self, report: BatchReport) -> list[Link]:
        links = []
        for parent in report.parents:
            context = self._kept.get(parent)
            if context is not None:
                links.append(Link(context))
                if len(links) == LINKS_LIMIT:
                    break
        return links

    def _write(
        self,
        stage: _Stage,
        name: str,
        start: int,
        end: int,
        attributes: Attributes,
        error: ErrorInfo | None,
        links: Sequence[Link] = (),
    ) -> Span:
        span = self._tracer.start_span(name, context=stage.below, attributes=attributes, links=links, start_time=start)
        if error is not None:
            self._fail(span, error.type, error.message, end)
        span.end(end_time=max(start, end))
        return span

    def _fail(self, span: Span, error_type: str, message: str, when: int) -> None:
        shown = cut(message, MESSAGE_LIMIT) if self._messages else ""
        event: dict[str, str] = {names.EXCEPTION_TYPE: cut(error_type)}
        if shown:
            event[names.EXCEPTION_MESSAGE] = shown
        span.set_attribute(names.ERROR_TYPE, cut(error_type))
        span.add_event(names.EXCEPTION_EVENT, event, timestamp=when)
        span.set_status(Status(StatusCode.ERROR, shown or cut(error_type)))

    # --- at its end -------------------------------------------------------------------------------------

    def end_stages(self, totals: Sequence[StageTotals], unknown: Iterable[str] = ()) -> None:
        """Write the stages, each with what it did. Stages that were never active have no span.

        Args:
            totals: What each stage did.
            unknown: As in `batch`.
        """
        for stage, did, left_out in zip(self._stages, totals, self._budget.left_out, strict=True):
            if stage is None:
                continue
            attributes = stage_totals(did)
            for name in unknown:
                attributes.pop(name, None)
            attributes[names.SPANS_LEFT_OUT] = left_out
            stage.end(attributes, did)

    def add_to_stage(self, index: int, attributes: Mapping[str, Any]) -> None:
        """Add to the span of a stage, if it has one."""
        stage = self._stages[index]
        if stage is not None:
            stage.span.set_attributes(attributes)

    def end(
        self,
        totals: Sequence[StageTotals],
        now_unix_ns: int,
        result: RunResult | None = None,
        error: BaseException | None = None,
    ) -> None:
        """Write the run.

        Args:
            totals: What each stage did.
            now_unix_ns: When it ended.
            result: What came of it, where that is known.
            error: What ended it early.
        """
        root = self.root
        root.set_attributes(self._run_totals(totals))
        if result is not None:
            root.set_attributes(_result_attributes(result, totals))
        if error is not None:
            stage = getattr(error, "stage", None)
            if isinstance(stage, str):
                root.set_attribute(names.ERROR_STAGE, cut(stage))
            self._fail(root, _type_name(error), _message(error), now_unix_ns)
        elif result is not None and result.lost:
            self._fail(root, "curator_core.errors.TasksLostError", "; ".join(result.lost), now_unix_ns)
        # Other nodes' clocks may be ahead; the bar of the run still covers those of its stages.
        root.end(end_time=max(now_unix_ns, *(did.last_ns for did in totals), 0))

    def _run_totals(self, totals: Sequence[StageTotals]) -> Attributes:
        attributes: Attributes = {
            names.RUN_BATCHES: sum(did.batches for did in totals),
            names.SPANS_LEFT_OUT: self.left_out,
        }
        slowest = max(range(len(totals)), key=lambda index: totals[index].process_ns, default=None)
        if slowest is not None and totals[slowest].process_ns:
            attributes[names.SLOWEST_STAGE] = cut(self._infos[slowest].name)
            attributes[names.SLOWEST_TIME] = totals[slowest].process_ns / 1e9
        return attributes


class _Stage:
    """The span of a stage."""

    __slots__ = ("batch_name", "below", "error_type", "span", "start")

    def __init__(self, tracer: Tracer, info: StageInfo, above: Context, start: int) -> None:
        name = cut(info.name)
        self.start = start
        self.batch_name = names.BATCH_SPAN.format(stage=name)
        self.error_type = ""
        self.span = tracer.start_span(
            names.STAGE_SPAN.format(index=info.index, stage=name),
            context=above,
            attributes=stage_attributes(info),
            start_time=start,
        )
        self.below = trace.set_span_in_context(self.span, Context())

    def end(self, attributes: Attributes, did: StageTotals) -> None:
        self.span.set_attributes(attributes)
        if did.failed or did.setups_failed or did.batches_failed:
            self.span.set_attribute(names.ERROR_TYPE, cut(self.error_type) or _UNKNOWN_ERROR)
            came = did.passed + did.filtered + did.failed
            why = f"{did.failed} of {came} tasks failed" if did.failed else "a batch or a worker's set-up failed"
            self.span.set_status(Status(StatusCode.ERROR, why))
        self.span.end(end_time=max(self.start, did.last_ns))


def _result_attributes(result: RunResult, totals: Sequence[StageTotals]) -> Attributes:
    attributes: Attributes = {
        names.RUN_COMPLETE: result.complete,
        names.RUN_TASKS_OUT: len(result),
        names.RUN_TASKS_FILTERED: sum(did.filtered for did in totals),
        names.RUN_TASKS_FAILED: sum(did.failed for did in totals),
    }
    attributes |= _verdict_attributes(result.verdict)
    if result.lost:
        attributes[names.RUN_UNACCOUNTED] = [cut(finding) for finding in result.lost[:_FINDINGS_LIMIT]]
    return attributes


def _verdict_attributes(verdict: Verdict) -> Attributes:
    attributes: Attributes = {
        names.BOTTLENECK_KIND: verdict.kind,
        names.BOTTLENECK_REASON: cut(verdict.reason, MESSAGE_LIMIT),
    }
    if verdict.advice:
        attributes[names.BOTTLENECK_ADVICE] = cut(verdict.advice, MESSAGE_LIMIT)
    if verdict.stage:
        attributes[names.BOTTLENECK_STAGE] = cut(verdict.stage)
        attributes[names.BOTTLENECK_BUSY_RATIO] = verdict.busy_ratio
    return attributes


def _type_name(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as broken:  # noqa: BLE001 - a broken __str__ must not cost the run its span
        return f"<its __str__ raised {type(broken).__name__}>"
