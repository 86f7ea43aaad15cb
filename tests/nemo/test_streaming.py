# SPDX-License-Identifier: Apache-2.0
"""A pipeline that reads, fans out, waits, and writes: what it leaves, and what its result and its trace say."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from nemo_curator.pipeline import Pipeline
from nemo_curator.stages.base import ProcessingStage
from nemo_curator.stages.text.io.reader import JsonlReader
from nemo_curator.stages.text.io.writer import JsonlWriter
from nemo_curator.tasks import DocumentBatch
from nemo_curator.tasks.utils import TaskPerfUtils
from tests.nemo.conftest import EXECUTORS, executor_of
from tests.telemetry import Memory

from curator_core import RunResult
from curator_core.testing import Recorder
from curator_otel import replay

FILES, ROWS = 4, 6  # per file
WAIT_S = 0.2  # several seconds of work in all, without which a run has no bottleneck
STAGES = ["file_partitioning", "jsonl_reader", "length", "rows", "waits", "length_again", "jsonl_writer"]


class Length(ProcessingStage[DocumentBatch, DocumentBatch]):
    """Adds a column."""

    name = "length"

    def __init__(self, column: str = "length") -> None:
        self.column = column

    def inputs(self) -> tuple[list[str], list[str]]:
        return ["data"], ["text"]

    def outputs(self) -> tuple[list[str], list[str]]:
        return ["data"], ["text", self.column]

    def process(self, task: DocumentBatch) -> DocumentBatch:
        frame = task.to_pandas().copy()
        frame[self.column] = frame["text"].str.len()
        return DocumentBatch(dataset_name=task.dataset_name, data=frame, _stage_perf=task._stage_perf)


class Rows(ProcessingStage[DocumentBatch, DocumentBatch]):
    """Makes a task of each row; all tasks share the list of records."""

    name = "rows"

    def process(self, task: DocumentBatch) -> list[DocumentBatch]:
        frame = task.to_pandas()
        return [
            DocumentBatch(dataset_name=task.dataset_name, data=frame.iloc[[n]], _stage_perf=task._stage_perf)
            for n in range(len(frame))
        ]


class Waits(ProcessingStage[DocumentBatch, DocumentBatch]):
    """Takes most of the time."""

    name = "waits"

    def num_workers(self) -> int | None:
        return 1

    def process(self, task: DocumentBatch) -> DocumentBatch:
        time.sleep(WAIT_S)
        self._log_metric("waited", WAIT_S)
        return task


class Ran(NamedTuple):
    """A run, and what was observed of it."""

    result: RunResult
    seen: Recorder
    memory: Memory
    written: dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("source")
    for file in range(FILES):
        lines = (json.dumps({"text": "x" * (file * ROWS + n + 1)}) for n in range(ROWS))
        (directory / f"{file}.jsonl").write_text("\n".join(lines))
    return directory


@pytest.fixture(scope="module", params=EXECUTORS)
def executor(request: pytest.FixtureRequest) -> Any:
    """Each executor, for one run that all tests look at."""
    return executor_of(request)


@pytest.fixture(scope="module")
def ran(executor: Any, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    out, seen, memory = tmp_path_factory.mktemp("out"), Recorder(), Memory()
    steps = [Length(), Rows(), Waits(), Length("again").with_(name="length_again")]
    stages = [JsonlReader(str(source), files_per_partition=1), *steps, JsonlWriter(str(out))]
    result = Pipeline("streaming", stages=stages).run(executor.with_(observers=[seen, memory.observer()]))
    assert isinstance(result, RunResult)
    written = {path.name: [json.loads(line) for line in path.read_text().splitlines()] for path in out.iterdir()}
    return Ran(result, seen, memory, written)


def test_each_row_is_written_to_a_file(ran):
    assert len(ran.written) == len(ran.result) == FILES * ROWS
    rows = sorted((row for rows in ran.written.values() for row in rows), key=lambda row: row["length"])
    assert rows == [{"text": "x" * n, "length": n, "again": n} for n in range(1, FILES * ROWS + 1)]
    assert {Path(path).name for task in ran.result for path in task.data} == ran.written.keys()


def test_files_are_named_after_unique_ids(ran):
    ids = [task.task_id for task in ran.result]
    assert len({*ids}) == len(ids)


def test_each_output_has_a_record_of_each_stage_after_partitioning(ran):
    for task in ran.result:
        assert [record.stage_name for record in task._stage_perf] == STAGES[1:]
        assert all(record.process_time > 0 for record in task._stage_perf)


def test_sums_of_records_count_each_call_once(ran):
    found = TaskPerfUtils.collect_stage_metrics([*ran.result])
    assert {name: len(values["process_time"]) for name, values in found.items()} == {
        "jsonl_reader": FILES,
        "length": FILES,
        "rows": FILES,
        "waits": FILES * ROWS,
        "length_again": FILES * ROWS,
        "jsonl_writer": FILES * ROWS,
    }
    assert found["waits"]["custom.waited"].sum() == pytest.approx(FILES * ROWS * WAIT_S)


def test_accounts_name_the_stages_and_add_up(ran):
    assert [stage.name for stage in ran.result.stages] == STAGES
    counts = [(stage.tasks_in, stage.tasks_out) for stage in ran.result.stages]
    assert counts == [(1, FILES), (FILES, FILES), (FILES, FILES), (FILES, FILES * ROWS), *[(FILES * ROWS,) * 2] * 3]
    assert ran.result.accounting.admitted == FILES
    assert list(ran.result.lost) == []


def test_verdict_names_what_takes_the_time(ran):
    verdict, in_driver = ran.result.verdict, {report.pid for report in ran.seen.workers} == {os.getpid()}
    if in_driver:
        assert (verdict.kind, verdict.stage) == ("waits", "waits")
        return
    assert ran.result.stages[1].startup_s > 0.2  # each worker imports NeMo Curator, which takes about as long
    if verdict.kind != "unclear":
        assert verdict.kind == "setup" or verdict.stage == "waits"
        assert verdict.stage in {"jsonl_reader", "waits", "length_again"}  # the first of its worker


def test_reports_have_metrics_and_durations(ran):
    of_waits = [report for report in ran.seen.batches if report.stage_name == "waits"]
    assert len(of_waits) == FILES * ROWS
    assert {report.metrics["waited"] for report in of_waits} == {WAIT_S}


def test_spans_name_the_stages(ran):
    spans = ran.memory.spans
    batches = Counter(span.attributes["curator.stage.name"] for span in spans if "curator.batch.id" in span.attributes)
    assert batches == dict(zip(STAGES, [1, FILES, FILES, FILES, *[FILES * ROWS] * 3], strict=True))
    run = ran.memory.one("run streaming")
    assert run.attributes.get("curator.bottleneck.stage", "") == ran.result.verdict.stage
    (waited,) = {span.attributes["curator.metric.waited"] for span in ran.memory.named("process_batch waits")}
    assert waited == WAIT_S


def test_records_can_be_replayed_as_spans(ran):
    replayed = Memory()
    _, num_batches, _ = replay(ran.result, replayed.tracer_provider)
    assert num_batches == 3 * FILES + 3 * FILES * ROWS
    assert {*replayed.names()} == {"run replay", *(f"{number:02d} {name}" for number, name in enumerate(STAGES[1:]))}


def test_partitioning_runs_in_the_driver(ran):
    """It asks for half a CPU, but only what the driver lists can be skipped in a resumed run."""
    (listed,) = [report for report in ran.seen.workers if (report.stage_name, report.event) == (STAGES[0], "ready")]
    assert listed.pid == os.getpid()


def test_instruments_name_the_stages(ran):
    tasks = ran.memory.points()["curator.task.count"]
    assert tasks["waits", "out"] == FILES * ROWS
    assert {stage for stage, _ in tasks} == {*STAGES}


def test_default_number_of_workers_is_at_most_that_of_the_cores(ran):
    """Each worker imports NeMo Curator, which takes a core several seconds."""
    workers = {(report.stage_name, report.worker_id) for report in ran.seen.batches}
    assert max(Counter(stage for stage, _ in workers).values()) <= len(os.sched_getaffinity(0))
