# SPDX-License-Identifier: Apache-2.0
"""Telemetry of a run on Xenna is exact, to the task, the batch, and the nanosecond.

Six counts of one run are compared: the windows, the spans of stages, the spans of all batches, the metrics,
`RunResult.stages`, and a count that the stages keep in files, independently of reports. A worker is killed halfway. Its
work at that moment is not in any report and is never guessed.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from curator_core import Pipeline, ProcessingStage, Resources, RunResult, Task, WorkerDiedError
from curator_otel import OTelObserver, configure

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest.importorskip("curator_xenna")

TASKS = 150
LAST_WORDS = 8  # batches that the workers of an aborted run may have finished but not reported


class Counts(ProcessingStage[Task[int], Task[int]]):
    """Writes a line for each batch, fails once on every tenth task, and drops every seventh task."""

    resources = Resources(cpus=0.25)
    num_workers = 1
    fusible = False
    batch_size = 3
    max_attempts = 2

    def __init__(self, directory: Path, killed: Path | None = None) -> None:
        self.directory = directory
        self.killed = killed
        self.tried: set[int] = set()

    def process_batch(self, tasks: list[Task[int]]) -> list[Task[int] | None]:
        first = tasks[0].data
        if self.killed is not None and first > TASKS // 2 and not self.killed.exists():
            self.killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        # Several seconds in total, for more than one window: later windows are longer, and the workers start first.
        time.sleep(0.1)
        fails = first % 10 == 0 and first not in self.tried
        self.tried.add(first)
        with (self.directory / f"{self.name}-{os.getpid()}").open("a") as file:
            file.write(f"{first} {len(tasks)} {'retried' if fails else 'done'}\n")
        if fails:
            raise ValueError("once")
        return [task if task.data % 7 else None for task in tasks]


def lines(directory: Path, stage: str) -> tuple[dict[str, int], int]:
    """Return the batches that a stage recorded as finished, with their tasks, and the number of retries and repeats.

    Xenna repeats the last batch of a worker that dies if it had not received its outputs yet.
    """
    finished: Counter[str] = Counter()
    tasks, failed = dict[str, int](), 0
    for path in directory.glob(f"{stage}-*"):
        for line in path.read_text().splitlines():
            first, count, how = line.split()
            failed += how == "retried"
            if how == "done":
                finished[first] += 1
                tasks[first] = int(count)
    return tasks, failed + finished.total() - len(finished)


class Told:
    """The contents of a trace file and a metrics file, by stage."""

    def __init__(self, trace: Path, metrics: Path) -> None:
        self.spans = [
            {"name": span["name"], "took": int(span["endTimeUnixNano"]) - int(span["startTimeUnixNano"])}
            | {pair["key"]: self.value(pair["value"]) for pair in span["attributes"]}
            for request in self.requests(trace)
            for resource in request["resourceSpans"]
            for scope in resource["scopeSpans"]
            for span in scope["spans"]
        ]
        (*_, last) = self.requests(metrics)
        self.metrics = {
            metric["name"]: metric["sum"]["dataPoints"]
            for resource in last["resourceMetrics"]
            for scope in resource["scopeMetrics"]
            for metric in scope["metrics"]
            if "sum" in metric
        }

    @staticmethod
    def requests(path: Path) -> Iterator[dict[str, Any]]:
        for line in path.read_text().splitlines():
            yield json.loads(line)

    @staticmethod
    def value(given: dict[str, Any]) -> Any:
        ((kind, value),) = given.items()
        return int(value) if kind == "intValue" else value

    def spans_of(self, name: str) -> dict[str, int]:
        """Return the sums over all spans with a name."""
        found = [span for span in self.spans if span["name"] == name]
        return {
            "batches": sum(span["curator.batch.ended"] for span in found),
            "retried": sum(span["curator.batch.retried"] for span in found),
            "in": sum(span["curator.task.in"] for span in found),
            "out": sum(span["curator.task.out"] for span in found),
            "process_ns": sum(nanoseconds(span["curator.process.time"]) for span in found),
            "cpu_ns": sum(nanoseconds(span["curator.cpu.time"]) for span in found),
        }

    def batches(self, stage: str) -> dict[str, int]:
        """Return the sums over the spans of all batches, without their copies in the sample, which have `kept_as`."""
        found = [
            span
            for span in self.spans
            if span["name"] == f"process_batch {stage}" and "curator.batch.kept_as" not in span
        ]
        ended = [span for span in found if span["curator.outcome"] != "retried"]
        return {
            "batches": len(ended),
            "retried": len(found) - len(ended),
            "in": sum(span["curator.task.in"] for span in ended),
            "out": sum(span["curator.task.out"] for span in ended),
            "process_ns": sum(span["took"] for span in found),
            "cpu_ns": sum(nanoseconds(span["curator.cpu.time"]) for span in found),
        }

    def counters(self, stage: str) -> dict[str, int]:
        """Return the values of the metrics."""
        count = {outcome: self.metric("curator.batch.count", stage, outcome) for outcome in ("ok", "failed", "retried")}
        tasks = (self.metric("curator.task.count", stage, outcome) for outcome in ("out", "filtered", "failed"))
        return {
            "batches": count["ok"] + count["failed"],
            "retried": count["retried"],
            "in": sum(tasks),
            "out": self.metric("curator.task.out", stage),
            "process_ns": nanoseconds(self.metric("curator.process.time", stage)),
            "cpu_ns": nanoseconds(self.metric("curator.cpu.time", stage)),
        }

    def metric(self, name: str, stage: str, *outcome: str) -> Any:
        for point in self.metrics[name]:
            if [self.value(pair["value"]) for pair in point["attributes"]] == [stage, *outcome]:
                return int(point["asInt"]) if "asInt" in point else point["asDouble"]
        return 0


def nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def accounts(result: RunResult, stage: str) -> dict[str, int]:
    (did,) = [summary for summary in result.stages if summary.name == stage]
    return {
        "batches": did.batches,
        "retried": did.attempts_retried,
        "in": did.tasks_in,
        "out": did.tasks_out,
        "process_ns": nanoseconds(did.process_s),
        "cpu_ns": nanoseconds(did.cpu_s),
    }


@pytest.fixture
def executor(xenna: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    from curator_xenna import XennaConfig

    # Without bundles each call by Xenna is a batch, and every reported batch was returned. Without restarts nothing is
    # repeated: telemetry would count it twice, and the accounts of the run once.
    monkeypatch.setattr(xenna, "config", XennaConfig(bundle=False, max_restarts=0))
    return xenna


@pytest.mark.parametrize("kills", [False, pytest.param(True, marks=pytest.mark.everything)])
def test_all_counts_agree(executor: Any, tmp_path: Path, kills: bool) -> None:
    written = tmp_path / "lines"
    written.mkdir()
    killed = tmp_path / "killed" if kills else None
    stages = [Counts(written).with_(name="first"), Counts(written, killed).with_(name="second")]
    tasks = [Task(data=number) for number in range(TASKS)]
    trace, metrics = tmp_path / "trace.json", tmp_path / "metrics.json"
    with configure(json_file=trace, json_metrics_file=metrics, set_global=False) as telemetry:
        observer = OTelObserver(telemetry.tracer_provider, telemetry.meter_provider, detail="full")
        result: RunResult | None
        try:
            result, died = Pipeline("exact", stages).run(executor, tasks, observers=[observer]), False
        except WorkerDiedError as error:  # before 0.4, a worker that dies ends the run
            result, died = error.result, True
    assert isinstance(result, RunResult)
    assert kills or not died
    assert killed is None or killed.exists()
    told = Told(trace, metrics)
    for index, stage in enumerate(("first", "second")):
        expected = accounts(result, stage)
        assert expected["batches"]
        assert told.batches(stage) == expected
        assert told.spans_of(f"{index:02d} {stage}") == expected
        assert told.counters(stage) == expected
        # A stage that finishes within one window has no window span, and windows are longer if workers start late.
        if any(span["name"] == f"window {stage}" for span in told.spans):
            assert told.spans_of(f"window {stage}") == expected
        own, retried = lines(written, stage)
        unreported = len(own) - expected["batches"]
        if not died:
            assert unreported == 0
            assert sum(own.values()) == expected["in"]
            assert retried == expected["retried"]
        assert 0 <= unreported <= LAST_WORDS * died
    (run,) = [span for span in told.spans if span["name"] == "run exact"]
    came = [accounts(result, stage) for stage in ("first", "second")]
    assert run["curator.task.unreported"] == TASKS - came[0]["in"] + came[0]["out"] - came[1]["in"]
    assert bool(run["curator.task.unreported"]) == died
    if not died:
        assert len(result) == sum(1 for number in range(TASKS) if number % 7)
