# SPDX-License-Identifier: Apache-2.0
"""Attributes of spans, from reports. The only module that passes values of reports into spans."""

from __future__ import annotations

import math
import numbers
from typing import TYPE_CHECKING, Any, TypeAlias

from curator_otel import conventions as names
from curator_otel._trace.totals import SUMS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from curator_core import BatchReport, RunResult
    from curator_core.observers import BatchOutcome, RunInfo, StageInfo, Verdict, WorkerReport
    from curator_otel._trace.sampling import SpanReason
    from curator_otel._trace.totals import StageActivity
    from curator_otel._trace.windows import Window

__all__ = [
    "Attributes",
    "batch_attributes",
    "custom_metrics",
    "cut",
    "result_attributes",
    "run_attributes",
    "run_totals",
    "stage_attributes",
    "stage_totals",
    "started_attributes",
    "window_attributes",
    "worker_attributes",
]

Attributes: TypeAlias = "dict[str, str | int | float | bool | list[str]]"

NAME_LIMIT = 256  # bytes of a name or an id
MESSAGE_LIMIT = 1024  # bytes of an exception's message
METRICS_LIMIT = 32  # custom metrics of a batch
LIST_LIMIT = 16  # strings of a list
_METRIC_NAME_LIMIT = 64
_METRIC_TEXT_LIMIT = 256
_PASSED_ON = (names.TASKS_IN, names.TASKS_OUT, names.ITEMS)  # a sum over stages would count a task at each of them
_INT64 = 2**63  # the protocol has no larger integers, and a single one would make a whole export fail


def cut(text: Any, limit: int = NAME_LIMIT) -> str:
    """Return a text of at most ``limit`` bytes of UTF-8 that every exporter can encode."""
    raw = str(text).encode("utf-8", "replace")  # a lone surrogate would make a whole export fail
    return raw[:limit].decode("utf-8", "ignore")


def started_attributes(run: RunInfo) -> Attributes:
    """Return the attributes that identify a run."""
    return {
        names.RUN_ID: run.run_id,
        names.PIPELINE_NAME: cut(run.pipeline_name),
        names.EXECUTOR_NAME: cut(run.executor_name),
    }


def run_attributes(run: RunInfo, span_limit: int) -> Attributes:
    """Return the attributes of a run that are known when it begins."""
    attributes = started_attributes(run) | {
        names.STAGES: len(run.stages),
        names.SPANS_LIMIT: span_limit,
    }
    if run.num_source_tasks is not None:
        attributes[names.TASKS_IN] = run.num_source_tasks
    return attributes


def run_totals(
    stages: Sequence[StageInfo], totals: Sequence[StageActivity], fed: int | None, left_out: int = 0
) -> Attributes:
    """Return the attributes of a run that follow from the totals of its stages.

    Args:
        stages: The stages.
        totals: The totals of each stage.
        fed: The number of tasks for the first stage, if known.
        left_out: The number of tasks of a source that are not for any stage of this run.
    """
    whole = {name: sum(getattr(did, name) for did in totals) for name in SUMS}
    attributes = {name: value for name, value in _sums(whole).items() if name not in _PASSED_ON}
    attributes[names.TASKS_UNREPORTED] = max(0, _unreported(totals, fed) - left_out)
    slowest = max(range(len(totals)), key=lambda index: totals[index].process_ns, default=None)
    if slowest is not None and totals[slowest].process_ns:
        attributes[names.SLOWEST_STAGE] = cut(stages[slowest].name)
    return attributes


def _unreported(totals: Sequence[StageActivity], fed: int | None) -> int:
    """Return how many tasks were passed on and not reported by the stage that they were passed to."""
    missing, handed_on = 0, fed
    for did in totals:
        if handed_on is not None:
            missing += max(0, handed_on - did.tasks_in)
        handed_on = did.out
    return missing


def result_attributes(result: RunResult) -> Attributes:
    """Return the attributes of a run that follow from its result."""
    attributes: Attributes = {
        names.RUN_STATE: "complete" if result.complete else "incomplete",
        names.TASKS_OUT: len(result),
    }
    attributes |= _verdict_attributes(result.verdict)
    if result.lost:
        attributes[names.RUN_UNACCOUNTED] = [cut(finding) for finding in result.lost[:LIST_LIMIT]]
    if result.clock_offsets:
        shown = [f"{cut(node)} {seconds:+.3f} s" for node, seconds in result.clock_offsets.items()]
        attributes[names.CLOCK_OFFSETS] = shown[:LIST_LIMIT]
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


def stage_attributes(stage: StageInfo) -> Attributes:
    """Return the attributes of a stage that are known before the run."""
    attributes: Attributes = {names.STAGE_NAME: cut(stage.name), names.STAGE_INDEX: stage.index}
    if stage.class_name:
        attributes[names.STAGE_CLASS] = cut(stage.class_name)
    return attributes


def stage_totals(totals: StageActivity) -> Attributes:
    """Return the attributes for the totals of a stage."""
    return _sums(totals.values()) | {names.WORKERS: totals.workers, names.SETUP_TIME: totals.startup_ns / 1e9}


def window_attributes(stage: StageInfo, window: Window) -> Attributes:
    """Return the attributes of a window."""
    return _sums(window.sums) | {
        names.STAGE_NAME: cut(stage.name),
        names.STAGE_INDEX: stage.index,
        names.WINDOW_NUMBER: window.number,
        names.WORKERS: window.workers,
        names.SLOWEST_BATCH: window.slowest_ns / 1e9,
    }


def _sums(did: Mapping[str, int]) -> Attributes:
    """Return the attributes for `SUMS`: of a run, a stage, or a window."""
    return {
        names.BATCHES: did["batches_ok"] + did["batches_failed"],
        names.BATCHES_RETRIED: did["batches_retried"],
        names.TASKS_IN: did["passed"] + did["filtered"] + did["failed"] + did["merged"],
        names.TASKS_OUT: did["out"],
        names.TASKS_FILTERED: did["filtered"],
        names.TASKS_FAILED: did["failed"],
        names.TASKS_MERGED: did["merged"],
        names.ITEMS: did["items"],
        names.PROCESS_TIME: did["process_ns"] / 1e9,
        names.CPU_TIME: did["cpu_ns"] / 1e9,
        names.IDLE_TIME: did["idle_ns"] / 1e9,
    }


def worker_attributes(report: BatchReport | WorkerReport) -> Attributes:
    """Return the attributes for the stage and worker of a report, without unknown values."""
    attributes: Attributes = {
        names.STAGE_NAME: cut(report.stage_name),
        names.STAGE_INDEX: report.stage_index,
    }
    if report.worker_id:
        attributes[names.WORKER_ID] = cut(report.worker_id)
    if report.node_id:
        attributes[names.NODE_ID] = cut(report.node_id)
    if report.pid:
        attributes[names.PROCESS_PID] = report.pid
    if report.epoch:
        attributes[names.EPOCH] = report.epoch
    return attributes


def batch_attributes(report: BatchReport, outcome: BatchOutcome, kept_as: SpanReason | None = None) -> Attributes:
    """Return the attributes of a batch, except its error."""
    attributes = custom_metrics(report.metrics)  # first, because a full span evicts its oldest attributes
    attributes |= worker_attributes(report)
    attributes |= {
        names.BATCH_ID: cut(report.batch_id),
        names.BATCH_SEQUENCE: report.sequence,
        names.BATCH_ATTEMPT: report.attempt,
        names.BATCH_GROUP: report.group,
        names.OUTCOME: outcome,
        **_tasks(report),
        names.ITEMS: report.num_items,
        names.CPU_TIME: report.cpu_ns / 1e9,
        names.IDLE_TIME: report.idle_ns / 1e9,
        names.BATCH_PARENTS: len(report.parents),
    }
    if kept_as is not None:
        attributes[names.BATCH_KEPT_AS] = kept_as
    if report.bundle_id:
        attributes[names.BUNDLE_ID] = cut(report.bundle_id)
    if report.in_bytes:
        attributes[names.INPUT_SIZE] = report.in_bytes
    if report.out_bytes:
        attributes[names.OUTPUT_SIZE] = report.out_bytes
    if report.startup_ns:
        attributes[names.SETUP_TIME] = report.startup_ns / 1e9
    if report.ready_unix_ns and report.ready_node_id == report.node_id:  # clocks of two nodes are not comparable
        attributes[names.WAIT_TIME] = max(0, report.start_unix_ns - report.ready_unix_ns) / 1e9
    return attributes


def _tasks(report: BatchReport) -> Attributes:
    tally = report.tally()
    return {
        names.TASKS_IN: report.num_in,
        names.TASKS_OUT: tally.out,
        names.TASKS_FILTERED: tally.filtered,
        names.TASKS_FAILED: tally.failed,
        names.TASKS_MERGED: tally.merged,
    }


def custom_metrics(metrics: Mapping[str, Any]) -> Attributes:
    """Return the attributes for the metrics that a stage recorded: numbers and texts, limited in number and length."""
    attributes: Attributes = {}
    for name, value in metrics.items():
        if len(attributes) == METRICS_LIMIT:
            break
        shown = _number_or_text(value)
        if shown is not None:
            attributes[names.CUSTOM_METRIC + cut(name, _METRIC_NAME_LIMIT)] = shown
    return attributes


def _number_or_text(value: Any) -> str | int | float | bool | None:
    if isinstance(value, str):
        return cut(value, _METRIC_TEXT_LIMIT)
    if isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):  # also NumPy's integers
        whole = int(value)
        return whole if -_INT64 <= whole < _INT64 else None
    if isinstance(value, numbers.Real):
        number = float(value)
        # Many back ends reject a whole export for a single NaN.
        return number if math.isfinite(number) else str(number)
    return None  # any other value could be a payload
