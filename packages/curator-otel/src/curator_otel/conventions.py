# SPDX-License-Identifier: Apache-2.0
"""All names that this package emits, with their types and units.

OpenTelemetry has no convention for batch data pipelines, so this package defines its own names, under ``curator.``.
Where OpenTelemetry has a stable name (``error.type``, ``exception.*``, ``process.pid``), that one is used. The
constants are the names, and the tables `SPANS`, `EVENTS`, `ATTRIBUTES`, and `METRICS` describe them. Attributes are
only set with these constants, so the tables are an allowlist that keeps payloads out of telemetry.

A concept has one name wherever it appears: on spans of a run, a stage, a window, or a batch, the kind of the span says
whose value it is. A metric with the same name counts the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from curator_core.observers import VerdictKind

AttributeType = Literal["string", "int", "double", "string[]", "number or string"]
SpanKindName = Literal["SERVER", "INTERNAL"]
InstrumentKind = Literal["counter", "observable counter", "histogram"]
Stability = Literal["development", "stable"]


@dataclass(frozen=True, slots=True)
class Span:
    """A type of span.

    Attributes:
        key: Its key in the tables.
        name: Its name; the fields in ``{…}`` are filled in.
        kind: Its OpenTelemetry kind.
        description: Its description.
    """

    key: str
    name: str
    kind: SpanKindName
    description: str


@dataclass(frozen=True, slots=True)
class Attribute:
    """An attribute.

    Attributes:
        name: Its name; ``*`` at the end is a wildcard.
        type: The type of its value.
        unit: Its unit in UCUM; empty if it has none.
        on: The keys of the spans and events that have it; ``"metric"`` for metrics.
        description: Its description.
        stability: ``"stable"`` if it is a stable name of OpenTelemetry.
    """

    name: str
    type: AttributeType
    unit: str
    on: tuple[str, ...]
    description: str
    stability: Stability


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric.

    Attributes:
        name: Its name. An attribute may have the same name, if it has the same values.
        instrument: The instrument that records it.
        unit: Its unit in UCUM.
        labels: The attributes that distinguish its series. Only stages and outcomes, never runs, tasks, or workers,
            whose number is unbounded.
        description: Its description.
        boundaries: The bucket boundaries of a histogram.
        stability: The stability of the name.
    """

    name: str
    instrument: InstrumentKind
    unit: str
    labels: tuple[str, ...]
    description: str
    boundaries: tuple[float, ...] = ()
    stability: Stability = "development"


SPANS: dict[str, Span] = {}
EVENTS: dict[str, str] = {}
ATTRIBUTES: dict[str, Attribute] = {}
METRICS: dict[str, Metric] = {}


def _span(key: str, name: str, description: str, kind: SpanKindName = "INTERNAL") -> str:
    SPANS[key] = Span(key, name, kind, description)
    return name


def _attribute(name: str, type_: AttributeType, unit: str, on: tuple[str, ...], description: str) -> str:
    stability: Stability = "development" if name.startswith("curator.") else "stable"
    ATTRIBUTES[name] = Attribute(name, type_, unit, on, description, stability)
    return name


def _text(name: str, on: tuple[str, ...], description: str) -> str:
    return _attribute(name, "string", "", on, description)


def _texts(name: str, on: tuple[str, ...], description: str) -> str:
    return _attribute(name, "string[]", "", on, description)


def _whole(name: str, unit: str, on: tuple[str, ...], description: str) -> str:
    return _attribute(name, "int", unit, on, description)


def _seconds(name: str, on: tuple[str, ...], description: str) -> str:
    return _attribute(name, "double", "s", on, description)


def _counter(name: str, unit: str, labels: tuple[str, ...], description: str) -> str:
    METRICS[name] = Metric(name, "counter", unit, labels, description)
    return name


def _histogram(name: str, labels: tuple[str, ...], description: str) -> str:
    METRICS[name] = Metric(name, "histogram", "s", labels, description, SECONDS)
    return name


# --- spans and events ---------------------------------------------------------------------------------------

RUN_SPAN = _span("run", "run {pipeline}", "A run of a pipeline, from start to end.", kind="SERVER")
STARTED_SPAN = _span(
    "started",
    "run started {pipeline}",
    "The start of a run. Exported immediately, so that running and killed runs are in the list of traces.",
)
STAGE_SPAN = _span("stage", "{index:02d} {stage}", "A stage, from its first reported activity to its last.")
WINDOW_SPAN = _span(
    "window",
    "window {stage}",
    "A period of a stage's activity, exported when it is over. A stage that ends within its first window has none.",
)
DETAIL_SPAN = _span(
    "detail",
    "detail {stage}",
    'With `detail="full"`: all batches of a window, in a separate trace that is linked to the stage.',
)
BATCH_SPAN = _span(
    "batch", "process_batch {stage}", "One attempt at one batch. Only a sample of the batches has spans."
)
SETUP_SPAN = _span("setup", "worker setup", "A worker's setup, such as loading a model; also if it failed.")
TEARDOWN_SPAN = _span("teardown", "worker teardown", "A worker's teardown that raised; others have no span.")

EXCEPTION_EVENT = "exception"
EVENTS[EXCEPTION_EVENT] = "An exception, on the span of the batch, worker, or run that it ended."

_RUN, _STAGE, _BATCH, _EXCEPTION = ("run",), ("stage",), ("batch",), (EXCEPTION_EVENT,)
_ANY_RUN = ("run", "started", "detail")
_WORKER = ("setup", "teardown")
_BELOW_RUN = ("stage", "window", "detail", "batch", *_WORKER)
_BELOW_STAGE = ("batch", *_WORKER)
_SUMMED = ("run", "stage", "window")

# --- attributes: the run ------------------------------------------------------------------------------------

RUN_ID = _text("curator.run.id", _ANY_RUN, "The id of the run, as in `RunResult.run_id`.")
PIPELINE_NAME = _text("curator.pipeline.name", _ANY_RUN, "Name of the pipeline.")
EXECUTOR_NAME = _text("curator.executor.name", ("run", "started"), "Class of the executor.")
RUN_STATE = _text(
    "curator.run.state",
    ("run", "started"),
    "`started` on the span that says so; otherwise `complete`, `incomplete`, `recovered` if the driver was killed and "
    "`recover` closed the trace, or `replayed` if the trace was written from the statistics of the run's tasks.",
)
RUN_UNACCOUNTED = _texts("curator.run.unaccounted", _RUN, "Descriptions of counts that do not add up; at most 16.")
STAGES = _whole("curator.stage.count", "{stage}", _RUN, "Number of stages in the plan.")
CLOCK_OFFSETS = _texts(
    "curator.clock.offsets",
    _RUN,
    "Corrections of nodes' clocks to the driver's clock, such as `node +0.012 s`; at most 16.",
)
SLOWEST_STAGE = _text("curator.slowest.stage", _RUN, "The stage that spent the most time in its code.")
BOTTLENECK_KIND = _text("curator.bottleneck.kind", _RUN, f"The kind of bottleneck: {', '.join(get_args(VerdictKind))}.")
BOTTLENECK_STAGE = _text("curator.bottleneck.stage", _RUN, "The stage that is the bottleneck, if any.")
BOTTLENECK_BUSY_RATIO = _attribute(
    "curator.bottleneck.busy_ratio",
    "double",
    "1",
    _RUN,
    "Share of the run's time in which that stage's workers were busy.",
)
BOTTLENECK_REASON = _text("curator.bottleneck.reason", _RUN, "The reason for the verdict.")
BOTTLENECK_ADVICE = _text("curator.bottleneck.advice", _RUN, "What to change, if known.")
SPANS_LIMIT = _whole("curator.span.limit", "{span}", _RUN, "Maximum number of spans of the run.")
SPANS_LEFT_OUT = _whole(
    "curator.span.left_out", "{span}", ("run", "stage"), "Spans that were omitted to keep the limit."
)

# --- attributes: totals -------------------------------------------------------------------------------------

# The kind of span says whose total it is: of a run, a stage, a window, or a single batch.
TASKS_IN = _whole(
    "curator.task.in", "{task}", (*_SUMMED, "batch"), "Input tasks; of a run, its source tasks, if known in advance."
)
TASKS_OUT = _whole("curator.task.out", "{task}", (*_SUMMED, "batch"), "Output tasks.")
TASKS_FILTERED = _whole("curator.task.filtered", "{task}", (*_SUMMED, "batch"), "Tasks dropped on purpose.")
TASKS_FAILED = _whole("curator.task.failed", "{task}", (*_SUMMED, "batch"), "Tasks lost to errors.")
TASKS_MERGED = _whole(
    "curator.task.merged", "{task}", (*_SUMMED, "batch"), "Input tasks that went into the tasks of another input."
)
TASKS_UNREPORTED = _whole(
    "curator.task.unreported",
    "{task}",
    _RUN,
    "Tasks that no stage reported: not started or in flight when the run ended early, or lost with a worker.",
)
ITEMS = _whole("curator.item.count", "{item}", ("stage", "window", "batch"), "Items in the input tasks.")
INPUT_SIZE = _whole("curator.input.size", "By", _BATCH, "Payload of the input tasks, if they know their size.")
OUTPUT_SIZE = _whole("curator.output.size", "By", _BATCH, "Payload of the output tasks, if they know their size.")
BATCHES = _whole("curator.batch.ended", "{batch}", _SUMMED, "Batches that ended, not counting retried attempts.")
BATCHES_RETRIED = _whole("curator.batch.retried", "{batch}", _SUMMED, "Attempts that raised and were retried.")
BATCHES_WITHOUT_START = _whole(
    "curator.batch.without_start",
    "{batch}",
    ("run", "stage"),
    "Replayed batches without a start time, which have no span.",
)
WORKERS = _whole(
    "curator.worker.count",
    "{worker}",
    ("stage", "window"),
    "Workers: of a stage, those that were set up; of a window, those that the batches ran on.",
)
PROCESS_TIME = _seconds("curator.process.time", _SUMMED, "Time in the stages' code, over all workers.")
CPU_TIME = _seconds("curator.cpu.time", (*_SUMMED, "batch"), "CPU time of the working threads.")
IDLE_TIME = _seconds("curator.idle.time", (*_SUMMED, "batch"), "Time that workers waited for batches.")
WAIT_TIME = _seconds("curator.wait.time", _BATCH, "Time that the inputs waited, if measured by a single node's clock.")
SETUP_TIME = _seconds(
    "curator.setup.time",
    ("stage", "batch"),
    "Time of the workers' setup and imports; of a batch, if it is its worker's first.",
)

# --- attributes: stages, windows, and workers ---------------------------------------------------------------

STAGE_NAME = _text("curator.stage.name", (*_BELOW_RUN, "metric"), "Name of the stage.")
STAGE_INDEX = _whole("curator.stage.index", "", _BELOW_RUN, "Position of the stage in the plan, from 0.")
STAGE_CLASS = _text("curator.stage.class", _STAGE, "Class of the stage.")
WINDOW_NUMBER = _whole("curator.window.number", "", ("window", "detail"), "Number of the window in its stage, from 0.")
SLOWEST_BATCH = _seconds("curator.window.slowest_batch", ("window",), "Duration of the longest batch.")
WORKER_ID = _text("curator.worker.id", _BELOW_STAGE, "The engine's id of the worker.")
NODE_ID = _text("curator.node.id", _BELOW_STAGE, "The engine's id of the node.")
PROCESS_PID = _whole("process.pid", "", _BELOW_STAGE, "Process id of the worker.")
EPOCH = _whole("curator.run.epoch", "", _BELOW_STAGE, "Number of restarts of the engine before this; omitted if 0.")

# --- attributes: batches ------------------------------------------------------------------------------------

BATCH_ID = _text("curator.batch.id", _BATCH, "The id of the batch: the same in every run on the same input.")
BATCH_KEPT_AS = _text(
    "curator.batch.kept_as",
    _BATCH,
    "Why the batch is in the sample: `error`, the `first` of its worker, the `slowest` of its window, or `lineage`.",
)
BATCH_SEQUENCE = _whole("curator.batch.sequence", "", _BATCH, "Number of the batch on its worker and stage, from 0.")
BATCH_ATTEMPT = _whole("curator.batch.attempt", "", _BATCH, "Number of the attempt, from 1.")
BATCH_GROUP = _whole("curator.batch.group", "", _BATCH, "Index of the group of stages that it ran in.")
BATCH_PARENTS = _whole(
    "curator.batch.parents", "{batch}", _BATCH, "Batches that produced the inputs; at most 16 are linked."
)
BUNDLE_ID = _text("curator.bundle.id", _BATCH, "The id of the bundle that the inputs were sent in.")
OUTCOME = _text(
    "curator.outcome",
    ("batch", "setup", "metric"),
    "`ok`, `failed`, or `retried` for a batch or a setup; `out`, `filtered`, or `failed` for a task.",
)
CUSTOM_METRIC = "curator.metric."
_attribute(
    f"{CUSTOM_METRIC}*",
    "number or string",
    "",
    _BATCH,
    "Metrics that the stage recorded in `self.metrics`; at most 32.",
)

# --- attributes: errors -------------------------------------------------------------------------------------

ERROR_STAGE = _text("curator.error.stage", _RUN, "The stage named by the error that ended the run.")
ERROR_TYPE = _text("error.type", ("run", "stage", "batch", *_WORKER), "Qualified class of the exception.")
EXCEPTION_TYPE = _text("exception.type", _EXCEPTION, "Qualified class of the exception.")
EXCEPTION_MESSAGE = _text("exception.message", _EXCEPTION, "Message of the exception, cut at 1,024 bytes.")

# --- metrics ------------------------------------------------------------------------------------------------

# OpenTelemetry's defaults are for milliseconds. These range from a step in memory to a shard that takes an hour.
SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0),
)
_BY_STAGE, _BY_OUTCOME = (STAGE_NAME,), (STAGE_NAME, OUTCOME)

RUN_COUNT = _counter("curator.run.count", "{run}", (OUTCOME,), "Runs that ended.")
BATCH_COUNT = _counter("curator.batch.count", "{batch}", _BY_OUTCOME, "Batches that ended.")
TASK_COUNT = _counter("curator.task.count", "{task}", _BY_OUTCOME, "Input tasks, by outcome.")
for _total in (TASKS_OUT, ITEMS, PROCESS_TIME, CPU_TIME, IDLE_TIME):
    _counter(_total, ATTRIBUTES[_total].unit, _BY_STAGE, ATTRIBUTES[_total].description)
BATCH_DURATION = _histogram("curator.batch.duration", _BY_OUTCOME, "Duration of a batch.")
BATCH_IDLE = _histogram("curator.batch.idle", _BY_STAGE, "Time that a worker waited for a batch.")
SETUP_DURATION = _histogram("curator.setup.duration", _BY_OUTCOME, "Duration of a worker's setup and imports.")
UNRECORDED = _counter(
    "curator.batch.unrecorded",
    "{batch}",
    _BY_STAGE,
    "Batches that are missing in the histograms because there were too many per second; all counters have them.",
)
TELEMETRY_DROPPED = "curator.telemetry.dropped"
METRICS[TELEMETRY_DROPPED] = Metric(
    TELEMETRY_DROPPED,
    "observable counter",
    "{span}",
    (),
    "Spans that `configure` could not deliver. Runs are not affected.",
)
