# SPDX-License-Identifier: Apache-2.0
"""Every name that this package emits, with its type and unit: one table.

There is no OpenTelemetry convention for batch data pipelines, so the names are our own, under ``curator.``;
what OpenTelemetry has a stable name for (``error.type``, ``exception.*``, ``process.pid``) keeps it. The
constants are the names; the tables `SPANS`, `EVENTS`, `ATTRIBUTES` and `METRICS` describe them. Attributes
are set from these constants and from nothing else, so that the tables are the allow-list: payloads have no
way into telemetry.
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
    """A kind of span.

    Attributes:
        key: What the tables call it.
        name: Its name; ``{…}`` is filled in.
        kind: Its OpenTelemetry kind.
        description: What it stands for.
    """

    key: str
    name: str
    kind: SpanKindName
    description: str


@dataclass(frozen=True, slots=True)
class Attribute:
    """An attribute.

    Attributes:
        name: Its name; ``*`` at the end stands for any further text.
        type: The type of its value.
        unit: In UCUM; empty where it has none.
        on: Keys of the spans, events and metrics that it appears on.
        description: What it says.
        stability: ``"stable"`` where it is OpenTelemetry's own and stable.
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
        instrument: What makes it.
        unit: In UCUM.
        labels: The attributes that tell its series apart. Stages and outcomes only: never a run, a task or
            a worker, of which there is no end.
        description: What it counts or measures.
        boundaries: Of a histogram's buckets.
        stability: Of the name.
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
    "That a run has begun: exported at once, so that a run that goes on, or was killed, is on the list of traces.",
)
STAGE_SPAN = _span("stage", "{index:02d} {stage}", "A stage, from the activity that was reported first to its last.")
WINDOW_SPAN = _span(
    "window",
    "window {stage}",
    "A part of a stage's activity, exported when it is over. A stage that is done within its first has none.",
)
DETAIL_SPAN = _span(
    "detail",
    "detail {stage}",
    'With `detail="full"`: all batches of a window, in a trace of its own, linked to the stage.',
)
BATCH_SPAN = _span("batch", "process_batch {stage}", "One attempt at one batch. A sample: see `sampling`.")
SETUP_SPAN = _span("setup", "worker setup", "A worker's set-up, good or failed: cold start, model load.")
TEARDOWN_SPAN = _span("teardown", "worker teardown", "A worker's teardown that raised; good ones leave no span.")

EXCEPTION_EVENT = "exception"
EVENTS[EXCEPTION_EVENT] = "What was raised, on the span of the batch, worker or run that it ended."

_RUN, _STAGE, _WINDOW, _BATCH = ("run",), ("stage",), ("window",), ("batch",)
_ANY_RUN = ("run", "started", "detail")
_WORKER = ("setup", "teardown")
_BELOW_RUN = ("stage", "window", "detail", "batch", *_WORKER)
_BELOW_STAGE = ("batch", *_WORKER)

# --- attributes: the run ------------------------------------------------------------------------------------

RUN_ID = _attribute("curator.run.id", "string", _ANY_RUN, "The run's id, as on `RunResult.run_id`.")
PIPELINE_NAME = _attribute("curator.pipeline.name", "string", _ANY_RUN, "Name of the pipeline.")
EXECUTOR_NAME = _attribute("curator.executor.name", "string", ("run", "started"), "Class of the executor.")
RUN_STAGES = _attribute("curator.run.stages", "int", _RUN, "Stages of the plan.", unit="{stage}")
RUN_STARTED = _attribute("curator.run.started", "boolean", ("started",), "True: what tells this span from a run's.")
RUN_SOURCE_TASKS = _attribute(
    "curator.run.source_tasks", "int", _RUN, "Source tasks, where known beforehand.", unit="{task}"
)
RUN_COMPLETE = _attribute("curator.run.complete", "boolean", _RUN, "Whether the run came to its end.")
RUN_TASKS_OUT = _attribute("curator.run.tasks_out", "int", _RUN, "Tasks that the run gave.", unit="{task}")
RUN_TASKS_FILTERED = _attribute(
    "curator.run.tasks_filtered", "int", _RUN, "Tasks that stages dropped on purpose.", unit="{task}"
)
RUN_TASKS_FAILED = _attribute("curator.run.tasks_failed", "int", _RUN, "Tasks lost to errors.", unit="{task}")
RUN_BATCHES = _attribute("curator.run.batches", "int", _RUN, "Batches that ended, in all stages.", unit="{batch}")
RUN_UNACCOUNTED = _attribute(
    "curator.run.unaccounted", "string[]", _RUN, "Where the counts do not add up, in words; at most 16."
)
RUN_UNREPORTED = _attribute(
    "curator.run.tasks_unreported",
    "int",
    _RUN,
    "Tasks that no stage reported on: not begun or in flight when the run ended early, or lost with a worker.",
    unit="{task}",
)
RUN_REPLAYED = _attribute(
    "curator.run.replayed",
    "boolean",
    _RUN,
    "True where the trace was made afterwards, from the tasks' statistics.",
)
RUN_RECOVERED = _attribute(
    "curator.run.recovered", "boolean", _RUN, "True where the driver was killed, and `recover` closed the trace."
)
CLOCK_OFFSETS = _attribute(
    "curator.clock.offsets",
    "string[]",
    _RUN,
    "By how much nodes' clocks were corrected to the driver's, as `node +0.012 s`; at most 16.",
)
SLOWEST_STAGE = _attribute("curator.slowest.stage", "string", _RUN, "The stage that spent most time in its code.")
BOTTLENECK_KIND = _attribute(
    "curator.bottleneck.kind",
    "string",
    _RUN,
    f"What held the run up: {', '.join(get_args(VerdictKind))}.",
)
BOTTLENECK_STAGE = _attribute("curator.bottleneck.stage", "string", _RUN, "The stage to look at, where there is one.")
BOTTLENECK_BUSY_RATIO = _attribute(
    "curator.bottleneck.busy_ratio",
    "double",
    _RUN,
    "Share of the run's time in which its workers were at work.",
    unit="1",
)
BOTTLENECK_REASON = _attribute("curator.bottleneck.reason", "string", _RUN, "Why, in words.")
BOTTLENECK_ADVICE = _attribute("curator.bottleneck.advice", "string", _RUN, "What to change, where that is known.")
SLOWEST_TIME = _attribute("curator.slowest.process_time", "double", _RUN, "That time, over all workers.", unit="s")
ERROR_STAGE = _attribute("curator.error.stage", "string", _RUN, "The stage that the error which ended the run names.")
SPANS_LIMIT = _attribute("curator.spans.limit", "int", _RUN, "How many spans the run might make.", unit="{span}")
SPANS_LEFT_OUT = _attribute(
    "curator.spans.left_out",
    "int",
    (*_RUN, *_STAGE),
    "Spans that were not made, to keep that limit.",
    unit="{span}",
)
WITHOUT_START = _attribute(
    "curator.batches_without_start",
    "int",
    (*_RUN, *_STAGE),
    "Replayed batches without a start time; they have no span.",
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
    "Batches that ended, retried attempts not counted.",
    unit="{batch}",
)
STAGE_RETRIED = _attribute(
    "curator.stage.attempts_retried",
    "int",
    _STAGE,
    "Attempts that raised and were tried again.",
    unit="{batch}",
)
STAGE_IN = _attribute("curator.stage.tasks_in", "int", _STAGE, "Tasks that came in.", unit="{task}")
STAGE_OUT = _attribute("curator.stage.tasks_out", "int", _STAGE, "Tasks that came out.", unit="{task}")
STAGE_FILTERED = _attribute("curator.stage.tasks_filtered", "int", _STAGE, "Tasks dropped on purpose.", unit="{task}")
STAGE_FAILED = _attribute("curator.stage.tasks_failed", "int", _STAGE, "Tasks lost to errors.", unit="{task}")
STAGE_ITEMS = _attribute("curator.stage.items", "int", _STAGE, "Items in the tasks that came in.", unit="{item}")
STAGE_PROCESS_TIME = _attribute(
    "curator.stage.process_time", "double", _STAGE, "Time in the stage's code, over all workers.", unit="s"
)
STAGE_CPU_TIME = _attribute("curator.stage.cpu_time", "double", _STAGE, "CPU time of the working threads.", unit="s")
STAGE_IDLE_TIME = _attribute(
    "curator.stage.idle_time", "double", _STAGE, "Time that workers waited for batches.", unit="s"
)
STAGE_STARTUP_TIME = _attribute("curator.stage.startup_time", "double", _STAGE, "Set-up time, all workers.", unit="s")
STAGE_WORKERS = _attribute("curator.stage.workers", "int", _STAGE, "Workers that were set up.", unit="{worker}")

# --- attributes: windows ------------------------------------------------------------------------------------

WINDOW_NUMBER = _attribute("curator.window.number", "int", ("window", "detail"), "Position in its stage, from 0.")
WINDOW_WORKERS = _attribute(
    "curator.window.workers", "int", _WINDOW, "Workers that the batches ran on.", unit="{worker}"
)
WINDOW_SLOWEST = _attribute("curator.window.slowest_batch", "double", _WINDOW, "Its longest batch.", unit="s")
WINDOW_BATCHES = _attribute("curator.window.batches", "int", _WINDOW, "Batches that ended.", unit="{batch}")
WINDOW_RETRIED = _attribute(
    "curator.window.attempts_retried", "int", _WINDOW, "Attempts that will be tried again.", unit="{batch}"
)
WINDOW_IN = _attribute("curator.window.tasks_in", "int", _WINDOW, "Tasks that came in.", unit="{task}")
WINDOW_OUT = _attribute("curator.window.tasks_out", "int", _WINDOW, "Tasks that came out.", unit="{task}")
WINDOW_FILTERED = _attribute("curator.window.tasks_filtered", "int", _WINDOW, "Dropped on purpose.", unit="{task}")
WINDOW_FAILED = _attribute("curator.window.tasks_failed", "int", _WINDOW, "Tasks lost to errors.", unit="{task}")
WINDOW_ITEMS = _attribute("curator.window.items", "int", _WINDOW, "Items in the tasks.", unit="{item}")
WINDOW_PROCESS_TIME = _attribute("curator.window.process_time", "double", _WINDOW, "In the stage's code.", unit="s")
WINDOW_CPU_TIME = _attribute("curator.window.cpu_time", "double", _WINDOW, "CPU time of it.", unit="s")
WINDOW_IDLE_TIME = _attribute("curator.window.idle_time", "double", _WINDOW, "Waited for batches.", unit="s")

# --- attributes: workers ------------------------------------------------------------------------------------

WORKER_ID = _attribute("curator.worker.id", "string", _BELOW_STAGE, "The worker, by the engine's name.")
NODE_ID = _attribute("curator.node.id", "string", _BELOW_STAGE, "The node, by the engine's name.")
PROCESS_PID = _attribute("process.pid", "int", _BELOW_STAGE, "The worker's process.", stability="stable")
EPOCH = _attribute("curator.run.epoch", "int", _BELOW_STAGE, "Restarts of the engine before this; 0 is left out.")

# --- attributes: batches ------------------------------------------------------------------------------------

BATCH_ID = _attribute("curator.batch.id", "string", _BATCH, "The batch: the same in every run on the same input.")
BATCH_KEPT_AS = _attribute(
    "curator.batch.kept_as",
    "string",
    _BATCH,
    "Why it is in the sample: `error`, its worker's `first`, the `slowest` of its window, or of a chosen `lineage`.",
)
BATCH_SEQUENCE = _attribute("curator.batch.sequence", "int", _BATCH, "Its number on its worker and stage, from 0.")
BATCH_ATTEMPT = _attribute("curator.batch.attempt", "int", _BATCH, "The attempt, from 1.")
BATCH_GROUP = _attribute("curator.batch.group", "int", _BATCH, "The group of stages that it ran in.")
BUNDLE_ID = _attribute("curator.bundle.id", "string", _BATCH, "The bundle that the inputs travelled in.")
OUTCOME = _attribute(
    "curator.outcome",
    "string",
    ("batch", "setup", "metric"),
    "Of a batch or a set-up `ok`, `failed` or `retried`; of a task `out`, `filtered` or `failed`.",
)
BATCH_IN = _attribute("curator.batch.tasks_in", "int", _BATCH, "Tasks that came in.", unit="{task}")
BATCH_OUT = _attribute("curator.batch.tasks_out", "int", _BATCH, "Tasks that came out.", unit="{task}")
BATCH_FILTERED = _attribute("curator.batch.tasks_filtered", "int", _BATCH, "Tasks dropped on purpose.", unit="{task}")
BATCH_FAILED = _attribute("curator.batch.tasks_failed", "int", _BATCH, "Tasks lost to an error.", unit="{task}")
BATCH_ITEMS = _attribute("curator.batch.items", "int", _BATCH, "Items in the tasks that came in.", unit="{item}")
BATCH_BYTES_IN = _attribute("curator.batch.bytes_in", "int", _BATCH, "Payload in, where tasks know it.", unit="By")
BATCH_BYTES_OUT = _attribute("curator.batch.bytes_out", "int", _BATCH, "Payload out, where tasks know it.", unit="By")
BATCH_CPU_TIME = _attribute("curator.batch.cpu_time", "double", _BATCH, "CPU time of the working thread.", unit="s")
BATCH_IDLE_TIME = _attribute(
    "curator.batch.idle_time", "double", _BATCH, "How long the worker had waited for it.", unit="s"
)
BATCH_WAIT_TIME = _attribute(
    "curator.batch.wait_time",
    "double",
    _BATCH,
    "How long its inputs had waited, by one node's clock.",
    unit="s",
)
BATCH_STARTUP_TIME = _attribute(
    "curator.batch.startup_time",
    "double",
    _BATCH,
    "Set-up time of its worker, on the worker's first.",
    unit="s",
)
BATCH_PARENTS = _attribute(
    "curator.batch.parents",
    "int",
    _BATCH,
    "Batches that made its inputs; at most 16 are linked.",
    unit="{batch}",
)
CUSTOM_METRIC = "curator.metric."
_attribute(
    f"{CUSTOM_METRIC}*",
    "number or string",
    _BATCH,
    "What the stage recorded through `self.metrics`; at most 32.",
)

# --- attributes: errors -------------------------------------------------------------------------------------

_FAILING = ("run", "stage", "batch", *_WORKER)
ERROR_TYPE = _attribute("error.type", "string", _FAILING, "Qualified class of the exception.", stability="stable")
EXCEPTION_TYPE = _attribute(
    "exception.type", "string", (EXCEPTION_EVENT,), "Qualified class of the exception.", stability="stable"
)
EXCEPTION_MESSAGE = _attribute(
    "exception.message", "string", (EXCEPTION_EVENT,), "Its message, cut at 1,024 bytes.", stability="stable"
)

# --- metrics ------------------------------------------------------------------------------------------------

# OpenTelemetry's defaults are for milliseconds. From a step in memory to a shard that takes an hour.
SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0),
)
_BY_STAGE, _BY_OUTCOME = (STAGE_NAME,), (STAGE_NAME, OUTCOME)

RUN_COUNT = _metric(Metric("curator.run.count", "counter", "{run}", (OUTCOME,), "Runs that ended."))
BATCH_COUNT = _metric(Metric("curator.batch.count", "counter", "{batch}", _BY_OUTCOME, "Batches that ended."))
TASK_COUNT = _metric(
    Metric("curator.task.count", "counter", "{task}", _BY_OUTCOME, "Input tasks, by what became of them.")
)
TASK_PRODUCED = _metric(Metric("curator.task.produced", "counter", "{task}", _BY_STAGE, "Tasks that came out."))
ITEM_COUNT = _metric(Metric("curator.item.count", "counter", "{item}", _BY_STAGE, "Items in the input tasks."))
PROCESS_TIME = _metric(Metric("curator.process.time", "counter", "s", _BY_STAGE, "Time in the stage's code."))
CPU_TIME = _metric(Metric("curator.cpu.time", "counter", "s", _BY_STAGE, "CPU time of the working threads."))
IDLE_TIME = _metric(Metric("curator.idle.time", "counter", "s", _BY_STAGE, "Time that workers waited for batches."))
BATCH_DURATION = _metric(
    Metric("curator.batch.duration", "histogram", "s", _BY_OUTCOME, "Time that a batch took.", SECONDS)
)
BATCH_IDLE = _metric(
    Metric("curator.batch.idle", "histogram", "s", _BY_STAGE, "Time that a worker waited for a batch.", SECONDS)
)
SETUP_DURATION = _metric(
    Metric("curator.setup.duration", "histogram", "s", _BY_OUTCOME, "Time that a worker's set-up took.", SECONDS)
)
TELEMETRY_DROPPED = _metric(
    Metric(
        "curator.telemetry.dropped",
        "observable counter",
        "{span}",
        (),
        "Spans that `configure` could not deliver: runs are unaffected.",
    )
)
UNRECORDED = _metric(
    Metric(
        "curator.batch.unrecorded",
        "counter",
        "{batch}",
        _BY_STAGE,
        "Batches that the histograms leave out, where there are too many a second; every counter has them.",
    )
)
