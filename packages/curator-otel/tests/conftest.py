# SPDX-License-Identifier: Apache-2.0
"""Shared fixtures: an SDK that keeps everything in memory, handmade reports, and a reader of trace files."""

from __future__ import annotations

import json
import os
from importlib.metadata import PackageNotFoundError, distribution
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import metrics, trace
from opentelemetry.util._once import Once
from tests.telemetry import Memory
from tests.waiting import DEADLINE_S

from curator_core import Pipeline, ProcessingStage, RunResult, StagePerfStats, Task, processing_stage
from curator_core._reports.batch import (
    BatchReport,
    ErrorInfo,
    InputOutcome,
    RunInfo,
    StageInfo,
    WorkerReport,
    input_fields,
)
from curator_otel import OTelObserver, configure
from curator_otel import _run_watcher as watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from curator_otel import Telemetry

SECOND = 1_000_000_000
T0 = 1_700_000_000 * SECOND


@pytest.fixture(scope="session", autouse=True)
def plain_environment() -> Iterator[None]:
    """Remove every variable that affects what is sent, the destination, or trusted certificates."""
    proxies = {f"{scheme}_proxy" for scheme in ("http", "https", "all")}
    others = {"TRACEPARENT", "TRACESTATE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"}
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("OTEL_", "CURATOR_OTEL_")) or name in others or name.lower() in proxies:
                patch.delenv(name)
        yield


@pytest.fixture(scope="session", autouse=True)
def stopped_clock() -> Iterator[float]:
    """Stop the clock of runs, including in shared fixtures; `Script.turn_clock` moves it."""
    with pytest.MonkeyPatch.context() as patch:
        tick_s = watch.TICK_S
        patch.setattr(watch, "TICK_S", 3600.0)
        yield tick_s


@pytest.fixture(autouse=True)
def real_clock(request: pytest.FixtureRequest, stopped_clock: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the clock run in tests marked `real_clock`."""
    if request.node.get_closest_marker("real_clock"):
        monkeypatch.setattr(watch, "TICK_S", stopped_clock)


@pytest.fixture
def installed() -> None:
    """Skip if the package is only on the path: its entry points exist only if it is installed."""
    try:
        distribution("curator-otel")
    except PackageNotFoundError:
        pytest.skip("curator-otel is not installed, so it cannot be found by name")


@pytest.fixture
def no_global_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test set the global providers, which a process can set once, and reset them afterward."""
    for module, kind in ((trace, "TRACER"), (metrics._internal, "METER")):
        monkeypatch.setattr(module, f"_{kind}_PROVIDER", None)
        monkeypatch.setattr(module, f"_{kind}_PROVIDER_SET_ONCE", Once())
    monkeypatch.setattr(trace, "_PROXY_TRACER_PROVIDER", trace.ProxyTracerProvider())
    monkeypatch.setattr(metrics._internal, "_PROXY_METER_PROVIDER", metrics._internal._ProxyMeterProvider())


@pytest.fixture
def memory() -> Iterator[Memory]:
    kept = Memory()
    yield kept
    kept.tracer_provider.shutdown()
    kept.meter_provider.shutdown()


class Script:
    """A run with handmade reports, for cases that small pipelines do not produce."""

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
            **input_fields(InputOutcome(f"{number}.{i}", kind, int(kind == "out")) for i, kind in enumerate(kinds)),
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
        """Set the age of the run, as the observer's clock does once a second."""
        run = observer._runs[self.run_id]
        run.tick(run.trace.start_ns + round(seconds * SECOND))

    def write_snapshot(self, observer: OTelObserver, directory: Path) -> Path:
        """Write the run's snapshot now, as the observer's clock does every two seconds."""
        run = observer._runs[self.run_id]
        run.write_snapshot()
        return next(directory.glob(f"*{run.trace.root.get_span_context().span_id:016x}*"))

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
    """A task from other code, with only the attributes that are used."""

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


def configured(path: Path, **settings: Any) -> Telemetry:
    """Set up the SDK to write to a file, with a shutdown timeout that is long enough for a busy machine."""
    return configure(json_file=path, set_global=False, shutdown_timeout_s=DEADLINE_S, **settings)


@pytest.fixture(scope="session")
def to_file() -> Callable[..., Telemetry]:
    return configured


@pytest.fixture
def traced(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that calls others with an observer, and returns the file of its traces."""

    def trace_to_file(*actions: Callable[[OTelObserver], object], **settings: Any) -> Path:
        path = tmp_path / "trace.json"
        with configured(path) as telemetry:
            observer = OTelObserver(telemetry.tracer_provider, telemetry.meter_provider, **settings)
            for action in actions:
                action(observer)
        return path

    return trace_to_file


def spans_in(path: Path) -> list[dict[str, Any]]:
    """Read the spans of a trace file in order, without our reader: OTLP as JSON, one request per line."""
    requests = [json.loads(line) for line in path.read_text().splitlines()]
    scopes = [scope for request in requests for given in request["resourceSpans"] for scope in given["scopeSpans"]]
    return [span for scope in scopes for span in scope["spans"]]


@pytest.fixture(scope="session")
def spans_of() -> Callable[[Path], list[dict[str, Any]]]:
    return spans_in
