# SPDX-License-Identifier: Apache-2.0
"""All names that this package emits, with their types and units.

OpenTelemetry has no convention for batch data pipelines, so this package defines its own names, under ``curator.``.
Where OpenTelemetry has a stable name (``error.type``, ``exception.*``, ``process.pid``), that one is used. The
constants are the names, and the tables `SPANS`, `EVENTS`, `ATTRIBUTES`, and `METRICS` describe them. Attributes are
only set with these constants, so the tables are an allowlist that keeps payloads out of telemetry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from curator_core.observers import VerdictKind

AttributeType = Literal["string", "int", "double", "boolean", "string[]", "number or string"]
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
        name: Its name.
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


def _attribute(
    name: str,
    type_: AttributeType,
    on: tuple[str, ...],
    description: str,
    *,
    unit: str = "",
    stability: Stability = "development",
) -> str:
    ATTRIBUTES[name] = Attribute(name, type_, unit, on, description, stability)
    return name


def _metric(metric: Metric) -> Metric:
    METRICS[metric.name] = metric
    return metric


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

_RUN, _STAGE, _WINDOW, _BATCH = ("run",), ("stage",), ("window",), ("batch",)
_ANY_RUN = ("run", "started", "detail")
_WORKER = ("setup", "teardown")
_BELOW_RUN = ("stage", "window", "detail", "batch", *_WORKER)
_BELOW_STAGE = ("batch", *_WORKER)

# --- attributes: the run ------------------------------------------------------------------------------------

RUN_ID = _attribute("curator.run.id", "string", _ANY_RUN, "The id of the run, as in `RunResult.run_id`.")
PIPELINE_NAME = _attribute("curator.pipeline.name", "string", _ANY_RUN, "Name of the pipeline.")
EXECUTOR_NAME = _attribute("curator.executor.name", "string", ("run", "started"), "Class of the executor.")
RUN_STAGES = _attribute("curator.run.stages", "int", _RUN, "Number of stages in the plan.", unit="{stage}")
RUN_STARTED = _attribute(
    "curator.run.started", "boolean", ("started",), "Always true: distinguishes this span from a run's span."
)
RUN_SOURCE_TASKS = _attribute(
    "curator.run.source_tasks", "int", _RUN, "Source tasks, if known in advance.", unit="{task}"
)
RUN_COMPLETE = _attribute("curator.run.complete", "boolean", _RUN, "Whether the run completed.")
RUN_TASKS_OUT = _attribute("curator.run.tasks_out", "int", _RUN, "Output tasks of the run.", unit="{task}")
RUN_TASKS_FILTERED = _attribute(
    "curator.run.tasks_filtered", "int", _RUN, "Tasks that stages dropped on purpose.", unit="{task}"
)
RUN_TASKS_FAILED = _attribute("curator.run.tasks_failed", "int", _RUN, "Tasks lost to errors.", unit="{task}")
RUN_BATCHES = _attribute("curator.run.batches", "int", _RUN, "Batches that ended, in all stages.", unit="{batch}")
RUN_UNACCOUNTED = _attribute(
    "curator.run.unaccounted", "string[]", _RUN, "Descriptions of counts that do not add up; at most 16."
)
RUN_UNREPORTED = _attribute(
    "curator.run.tasks_unreported",
    "int",
    _RUN,
    "Tasks that no stage reported: not started or in flight when the run ended early, or lost with a worker.",
    unit="{task}",
)
RUN_REPLAYED = _attribute(
    "curator.run.replayed",
    "boolean",
    _RUN,
    "True if the trace was written after the run, from the statistics of its tasks.",
)
RUN_RECOVERED = _attribute(
    "curator.run.recovered", "boolean", _RUN, "True if the driver was killed and `recover` closed the trace."
)
CLOCK_OFFSETS = _attribute(
    "curator.clock.offsets",
    "string[]",
    _RUN,
    "Corrections of nodes' clocks to the driver's clock, such as `node +0.012 s`; at most 16.",
)
SLOWEST_STAGE = _attribute("curator.slowest.stage", "string", _RUN, "The stage that spent the most time in its code.")
BOTTLENECK_KIND = _attribute(
    "curator.bottleneck.kind",
    "string",
    _RUN,
    f"The kind of bottleneck: {', '.join(get_args(VerdictKind))}.",
)
BOTTLENECK_STAGE = _attribute("curator.bottleneck.stage", "string", _RUN, "The stage that is the bottleneck, if any.")
BOTTLENECK_BUSY_RATIO = _attribute(
    "curator.bottleneck.busy_ratio",
    "double",
    _RUN,
    "Share of the run's time in which that stage's workers were busy.",
    unit="1",
)
BOTTLENECK_REASON = _attribute("curator.bottleneck.reason", "string", _RUN, "The reason for the verdict.")
BOTTLENECK_ADVICE = _attribute("curator.bottleneck.advice", "string", _RUN, "What to change, if known.")
SLOWEST_TIME = _attribute(
    "curator.slowest.process_time", "double", _RUN, "Time in the code of the slowest stage, over all workers.", unit="s"
)
ERROR_STAGE = _attribute("curator.error.stage", "string", _RUN, "The stage named by the error that ended the run.")
SPANS_LIMIT = _attribute("curator.spans.limit", "int", _RUN, "Maximum number of spans of the run.", unit="{span}")
SPANS_LEFT_OUT = _attribute(
    "curator.spans.left_out",
    "int",
    (*_RUN, *_STAGE),
    "Spans that were omitted to keep the limit.",
    unit="{span}",
)
WITHOUT_START = _attribute(
    "curator.batches_without_start",
    "int",
    (*_RUN, *_STAGE),
    "Replayed batches without a start time, which have no span.",
    unit="{batch}",
)

# --- attributes: stages and workers -------------------------------------------------------------------------

STAGE_NAME = _attribute("curator.stage.name", "string", (*_BELOW_RUN, "metric"), "Name of the stage.")
STAGE_INDEX = _attribute("curator.stage.index", "int", _BELOW_RUN, "Position of the stage in the plan, from 0.")
STAGE_CLASS = _attribute("curator.stage.class", "string", _STAGE, "Class of the stage.")
STAGE_BATCHES = _attribute(
    "curator.stage.batches",
    "int",
    _STAGE,
    "Batches that ended, not counting retried attempts.",
    unit="{batch}",
)
STAGE_RETRIED = _attribute(
    "curator.stage.attempts_retried",
    "int",
    _STAGE,
    "Attempts that raised and were retried.",
    unit="{batch}",
)
STAGE_IN = _attribute("curator.stage.tasks_in", "int", _STAGE, "Input tasks.", unit="{task}")
STAGE_OUT = _attribute("curator.stage.tasks_out", "int", _STAGE, "Output tasks.", unit="{task}")
STAGE_FILTERED = _attribute("curator.stage.tasks_filtered", "int", _STAGE, "Tasks dropped on purpose.", unit="{task}")
STAGE_FAILED = _attribute("curator.stage.tasks_failed", "int", _STAGE, "Tasks lost to errors.", unit="{task}")
STAGE_ITEMS = _attribute("curator.stage.items", "int", _STAGE, "Items in the input tasks.", unit="{item}")
STAGE_PROCESS_TIME = _attribute(
    "curator.stage.process_time", "double", _STAGE, "Time in the stage's code, over all workers.", unit="s"
)
STAGE_CPU_TIME = _attribute("curator.stage.cpu_time", "double", _STAGE, "CPU time of the working threads.", unit="s")
STAGE_IDLE_TIME = _attribute(
    "curator.stage.idle_time", "double", _STAGE, "Time that workers waited for batches.", unit="s"
)
STAGE_STARTUP_TIME = _attribute(
    "curator.stage.startup_time", "double", _STAGE, "Setup time, over all workers.", unit="s"
)
STAGE_WORKERS = _attribute("curator.stage.workers", "int", _STAGE, "Workers that were set up.", unit="{worker}")

# --- attributes: windows ------------------------------------------------------------------------------------

WINDOW_NUMBER = _attribute(
    "curator.window.number", "int", ("window", "detail"), "Number of the window in its stage, from 0."
)
WINDOW_WORKERS = _attribute(
    "curator.window.workers", "int", _WINDOW, "Workers that the batches ran on.", unit="{worker}"
)
WINDOW_SLOWEST = _attribute(
    "curator.window.slowest_batch", "double", _WINDOW, "Duration of the longest batch.", unit="s"
)
WINDOW_BATCHES = _attribute("curator.window.batches", "int", _WINDOW, "Batches that ended.", unit="{batch}")
WINDOW_RETRIED = _attribute(
    "curator.window.attempts_retried", "int", _WINDOW, "Attempts that will be retried.", unit="{batch}"
)
WINDOW_IN = _attribute("curator.window.tasks_in", "int", _WINDOW, "Input tasks.", unit="{task}")
WINDOW_OUT = _attribute("curator.window.tasks_out", "int", _WINDOW, "Output tasks.", unit="{task}")
WINDOW_FILTERED = _attribute(
    "curator.window.tasks_filtered", "int", _WINDOW, "Tasks dropped on purpose.", unit="{task}"
)
WINDOW_FAILED = _attribute("curator.window.tasks_failed", "int", _WINDOW, "Tasks lost to errors.", unit="{task}")
WINDOW_ITEMS = _attribute("curator.window.items", "int", _WINDOW, "Items in the input tasks.", unit="{item}")
WINDOW_PROCESS_TIME = _attribute(
    "curator.window.process_time", "double", _WINDOW, "Time in the stage's code, over all workers.", unit="s"
)
WINDOW_CPU_TIME = _attribute("curator.window.cpu_time", "double", _WINDOW, "CPU time of the working threads.", unit="s")
WINDOW_IDLE_TIME = _attribute(
    "curator.window.idle_time", "double", _WINDOW, "Time that workers waited for batches.", unit="s"
)

# --- attributes: workers ------------------------------------------------------------------------------------

WORKER_ID = _attribute("curator.worker.id", "string", _BELOW_STAGE, "The engine's id of the worker.")
NODE_ID = _attribute("curator.node.id", "string", _BELOW_STAGE, "The engine's id of the node.")
PROCESS_PID = _attribute("process.pid", "int", _BELOW_STAGE, "Process id of the worker.", stability="stable")
EPOCH = _attribute(
    "curator.run.epoch", "int", _BELOW_STAGE, "Number of restarts of the engine before this; omitted if 0."
)

# --- attributes: batches ------------------------------------------------------------------------------------

BATCH_ID = _attribute(
    "curator.batch.id", "string", _BATCH, "The id of the batch: the same in every run on the same input."
)
BATCH_KEPT_AS = _attribute(
    "curator.batch.kept_as",
    "string",
    _BATCH,
    "Why the batch is in the sample: `error`, the `first` of its worker, the `slowest` of its window, or `lineage`.",
)
BATCH_SEQUENCE = _attribute(
    "curator.batch.sequence", "int", _BATCH, "Number of the batch on its worker and stage, from 0."
)
BATCH_ATTEMPT = _attribute("curator.batch.attempt", "int", _BATCH, "Number of the attempt, from 1.")
BATCH_GROUP = _attribute("curator.batch.group", "int", _BATCH, "Index of the group of stages that it ran in.")
BUNDLE_ID = _attribute("curator.bundle.id", "string", _BATCH, "The id of the bundle that the inputs were sent in.")
OUTCOME = _attribute(
    "curator.outcome",
    "string",
    ("batch", "setup", "metric"),
    "`ok`, `failed`, or `retried` for a batch or a setup; `out`, `filtered`, or `failed` for a task.",
)
BATCH_IN = _attribute("curator.batch.tasks_in", "int", _BATCH, "Input tasks.", unit="{task}")
BATCH_OUT = _attribute("curator.batch.tasks_out", "int", _BATCH, "Output tasks.", unit="{task}")
BATCH_FILTERED = _attribute("curator.batch.tasks_filtered", "int", _BATCH, "Tasks dropped on purpose.", unit="{task}")
BATCH_FAILED = _attribute("curator.batch.tasks_failed", "int", _BATCH, "Tasks lost to an error.", unit="{task}")
BATCH_ITEMS = _attribute("curator.batch.items", "int", _BATCH, "Items in the input tasks.", unit="{item}")
BATCH_BYTES_IN = _attribute(
    "curator.batch.bytes_in", "int", _BATCH, "Payload of the input tasks, if they know their size.", unit="By"
)
BATCH_BYTES_OUT = _attribute(
    "curator.batch.bytes_out", "int", _BATCH, "Payload of the output tasks, if they know their size.", unit="By"
)
BATCH_CPU_TIME = _attribute("curator.batch.cpu_time", "double", _BATCH, "CPU time of the working thread.", unit="s")
BATCH_IDLE_TIME = _attribute(
    "curator.batch.idle_time", "double", _BATCH, "Time that the worker waited for the batch.", unit="s"
)
BATCH_WAIT_TIME = _attribute(
    "curator.batch.wait_time",
    "double",
    _BATCH,
    "Time that the inputs waited, if measured by a single node's clock.",
    unit="s",
)
BATCH_STARTUP_TIME = _attribute(
    "curator.batch.startup_time",
    "double",
    _BATCH,
    "Setup time of the worker, on the worker's first batch.",
    unit="s",
)
BATCH_PARENTS = _attribute(
    "curator.batch.parents",
    "int",
    _BATCH,
    "Batches that produced the inputs; at most 16 are linked.",
    unit="{batch}",
)
CUSTOM_METRIC = "curator.metric."
_attribute(
    f"{CUSTOM_METRIC}*",
    "number or string",
    _BATCH,
    "Metrics that the stage recorded in `self.metrics`; at most 32.",
)

# --- attributes: errors -------------------------------------------------------------------------------------

_FAILING = ("run", "stage", "batch", *_WORKER)
ERROR_TYPE = _attribute("error.type", "string", _FAILING, "Qualified class of the exception.", stability="stable")
EXCEPTION_TYPE = _attribute(
    "exception.type", "string", (EXCEPTION_EVENT,), "Qualified class of the exception.", stability="stable"
)
EXCEPTION_MESSAGE = _attribute(
    "exception.message",
    "string",
    (EXCEPTION_EVENT,),
    "Message of the exception, cut at 1,024 bytes.",
    stability="stable",
)

# --- metrics ------------------------------------------------------------------------------------------------

# OpenTelemetry's defaults are for milliseconds. These range from a step in memory to a shard that takes an hour.
SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0),
)
_BY_STAGE, _BY_OUTCOME = (STAGE_NAME,), (STAGE_NAME, OUTCOME)

RUN_COUNT = _metric(Metric("curator.run.count", "counter", "{run}", (OUTCOME,), "Runs that ended."))
BATCH_COUNT = _metric(Metric("curator.batch.count", "counter", "{batch}", _BY_OUTCOME, "Batches that ended."))
TASK_COUNT = _metric(Metric("curator.task.count", "counter", "{task}", _BY_OUTCOME, "Input tasks, by outcome."))
TASK_PRODUCED = _metric(Metric("curator.task.produced", "counter", "{task}", _BY_STAGE, "Output tasks."))
ITEM_COUNT = _metric(Metric("curator.item.count", "counter", "{item}", _BY_STAGE, "Items in the input tasks."))
PROCESS_TIME = _metric(Metric("curator.process.time", "counter", "s", _BY_STAGE, "Time in the stage's code."))
CPU_TIME = _metric(Metric("curator.cpu.time", "counter", "s", _BY_STAGE, "CPU time of the working threads."))
IDLE_TIME = _metric(Metric("curator.idle.time", "counter", "s", _BY_STAGE, "Time that workers waited for batches."))
BATCH_DURATION = _metric(
    Metric("curator.batch.duration", "histogram", "s", _BY_OUTCOME, "Duration of a batch.", SECONDS)
)
BATCH_IDLE = _metric(
    Metric("curator.batch.idle", "histogram", "s", _BY_STAGE, "Time that a worker waited for a batch.", SECONDS)
)
SETUP_DURATION = _metric(
    Metric("curator.setup.duration", "histogram", "s", _BY_OUTCOME, "Duration of a worker's setup.", SECONDS)
)
TELEMETRY_DROPPED = _metric(
    Metric(
        "curator.telemetry.dropped",
        "observable counter",
        "{span}",
        (),
        "Spans that `configure` could not deliver. Runs are not affected.",
    )
)
UNRECORDED = _metric(
    Metric(
        "curator.batch.unrecorded",
        "counter",
        "{batch}",
        _BY_STAGE,
        "Batches that are missing in the histograms because there were too many per second; all counters have them.",
    )
)
