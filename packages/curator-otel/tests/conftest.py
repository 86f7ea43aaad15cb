# SPDX-License-Identifier: Apache-2.0
"""What the tests share: an SDK that keeps everything in memory, reports made by hand, and how to read a trace file."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from importlib.metadata import PackageNotFoundError, distribution
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from curator_core import Pipeline, ProcessingStage, RunResult, StagePerfStats, Task, processing_stage
from curator_core.report import BatchReport, ErrorInfo, InputOutcome, Outcomes, RunInfo, StageInfo, WorkerReport
from curator_otel import OTelObserver, watch

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from opentelemetry.sdk.trace import ReadableSpan

# A busy machine is no failure: no test here has a time limit of its own.
settings.register_profile("curator", deadline=None)
settings.load_profile("curator")

SECOND = 1_000_000_000
T0 = 1_700_000_000 * SECOND


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the machine that runs the tests has a say in them."""
    for name in list(os.environ):
        if name.startswith(("OTEL_", "CURATOR_")) or name in ("TRACEPARENT", "TRACESTATE"):
            monkeypatch.delenv(name)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of runs stands still, unless a test is marked to need it; `Script.turn_clock` turns it."""
    if not request.node.get_closest_marker("real_clock"):
        monkeypatch.setattr(watch, "TICK_S", 3600.0)


@pytest.fixture
def installed() -> None:
    """The package is found by its names where it is installed: one that is missing there is a fault."""
    try:
        distribution("curator-otel")
    except PackageNotFoundError:
        pytest.skip("found by its name only where it is installed")


class Memory:
    """A real SDK whose exporters keep what they get."""

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
        """In the order in which they were exported."""
        return list(self.exporter.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span

    def names(self) -> Counter[str]:
        """How many spans there are of each name, but for that which says that a run has started."""
        return Counter(span.name for span in self.spans if not span.name.startswith("run started "))

    def instruments(self) -> dict[str, Any]:
        """The metrics by name, as the SDK exports them."""
        data = self.reader.get_metrics_data()
        if data is None:
            return {}
        scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics]
        return {metric.name: metric for scope in scopes for metric in scope.metrics}

    def points(self) -> dict[str, dict[tuple[str, ...], Any]]:
        """The values of each metric by its labels: sums of counters, counts of histograms."""
        return {
            name: {
                tuple(point.attributes.values()): getattr(point, "value", None) or getattr(point, "count", 0)
                for point in metric.data.data_points
            }
            for name, metric in self.instruments().items()
        }


@pytest.fixture
def memory() -> Iterator[Memory]:
    kept = Memory()
    yield kept
    kept.tracer_provider.shutdown()
    kept.meter_provider.shutdown()


class Script:
    """A run whose reports are written by hand, for what no small pipeline does by itself."""

    run_id = "0af7651916cd43dd8448eb211c80319c"

    def __init__(self, *stages: str) -> None:
        self.stages = stages or ("read", "write")
        infos = tuple(StageInfo(index, name, name.title()) for index, name in enumerate(self.stages))
        self.info = RunInfo(self.run_id, "by_hand", "HandExecutor", infos, T0, 7)

    def batch(self, stage: int = 0, number: int = 0, *, at: float = 1, took: float = 1, **fields: Any) -> BatchReport:
        kinds = fields.pop("kinds", ("out",))
        given: dict[str, Any] = {
            "run_id": self.run_id,
            "stage_index": stage,
            "stage_name": self.stages[stage],
            "batch_id": f"{stage}/{number}",
            "worker_id": "w1",
            "node_id": "n1",
            "pid": 4711,
            "sequence": number,
            "start_unix_ns": T0 + round(at * SECOND),
            "duration_ns": round(took * SECOND),
            "inputs": Outcomes.of(
                InputOutcome(f"{number}.{i}", kind, int(kind == "out")) for i, kind in enumerate(kinds)
            ),
        }
        return BatchReport(**given | fields)

    def worker(
        self, stage: int = 0, event: Any = "ready", *, at: float = 0, took: float = 1, error: Any = None
    ) -> WorkerReport:
        start, name = T0 + round(at * SECOND), self.stages[stage]
        return WorkerReport(self.run_id, stage, name, "w1", "n1", 4711, event, start, round(took * SECOND), error)

    def result(self, **fields: Any) -> RunResult:
        return RunResult(run_id=self.run_id, pipeline_name="by_hand", **fields)

    def play(self, observer: OTelObserver, *reports: Any, error: Any = None, **result: Any) -> None:
        observer.on_run_start(self.info)
        self.report(observer, *reports)
        observer.on_run_end(self.result(complete=error is None, **result), error)

    def turn_clock(self, observer: OTelObserver, seconds: float) -> None:
        """Let the run be so old, as the observer's own clock does once a second."""
        run = observer._runs[self.run_id]
        run.tick(run.trace.start_ns + round(seconds * SECOND))

    def report(self, observer: OTelObserver, *reports: Any) -> None:
        for report in reports:
            (observer.on_batch if isinstance(report, BatchReport) else observer.on_worker)(report)


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture(scope="session")
def make_script() -> type[Script]:
    return Script


@pytest.fixture(scope="session")
def make_memory() -> type[Memory]:
    return Memory


@pytest.fixture
def boom() -> ErrorInfo:
    return ErrorInfo("ValueError", "boom", "Traceback …")


class FinishedTask:
    """A task as somebody else's code might hold it: all that is looked at."""

    def __init__(self, *perf: StagePerfStats) -> None:
        self.stage_perf = perf


@pytest.fixture(scope="session")
def finished() -> type[FinishedTask]:
    return FinishedTask


# --- a run --------------------------------------------------------------------------------------------


@processing_stage()
def fan_out(task):
    return [Task(data=number) for number in range(5)]


class Pairs(ProcessingStage[Any, Any]):
    batch_size = 2

    def process(self, task):
        self.metrics.add("seen")
        return task


def run_pairs(*observers, executor=None, name="p"):
    tasks = [Task(data="a"), Task(data="b")]
    return Pipeline(name, [fan_out, Pairs()]).run(executor, initial_tasks=tasks, observers=observers)


@pytest.fixture
def run():
    return run_pairs


# --- what is waited for, and what is read back --------------------------------------------------------------


def wait(true: Callable[[], object], process: subprocess.Popen[bytes] | None = None) -> None:
    """Until something is true, for a minute at most, and only while the process that sees to it is there."""
    deadline = time.monotonic() + 60
    while not true():
        assert process is None or process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    return wait


def spans_in(path: Path) -> list[dict[str, Any]]:
    """The spans of a trace file, in its order, by no code of ours: OTLP as JSON, a request a line."""
    requests = [json.loads(line) for line in path.read_text().splitlines()]
    scopes = [scope for request in requests for given in request["resourceSpans"] for scope in given["scopeSpans"]]
    return [span for scope in scopes for span in scope["spans"]]


@pytest.fixture(scope="session")
def spans_of() -> Callable[[Path], list[dict[str, Any]]]:
    return spans_in
