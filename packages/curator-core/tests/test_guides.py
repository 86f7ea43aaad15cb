# SPDX-License-Identifier: Apache-2.0
"""Statements of the guides that no other test covers."""

from __future__ import annotations

import logging
import os
import threading
from typing import Any

import pytest

from curator_core import (
    BaseExecutor,
    CompositeStage,
    DeadLetter,
    DocumentBatch,
    Pipeline,
    PipelineError,
    ProcessingStage,
    Resources,
    StageError,
    Task,
    deadletter,
    processing_stage,
)
from curator_core.io import FilePartitioningStage, JsonlReader, JsonlWriter, ParquetReader, ParquetWriter
from curator_core.testing.probe import Calling, fail_at

from .helpers import tasks  # noqa: TID252 - no import can write this directory's name


def same(task: Task[Any]) -> Task[Any]:
    return task


# --- writing stages -------------------------------------------------------------------------------------


def test_settings_of_a_composite_stay_with_it() -> None:
    class Pair(CompositeStage[Any, Any]):
        def decompose(self):
            return [Calling(same, name="a"), Calling(same, name="b")]

    plan = Pipeline("p", [Pair().with_(batch_size=7, resources=Resources(cpus=3))]).compile()
    assert [(compiled.name, compiled.batch_size, compiled.resources) for compiled in plan.stages] == [
        ("a", 1, Resources()),
        ("b", 1, Resources()),
    ]


@pytest.mark.parametrize("name", ["curator_run_id", "curator_stage", "curator_task_id", "curator_batch_id"])
def test_names_of_log_fields_are_reserved(name: str) -> None:
    def say(task: Task[Any]) -> Task[Any]:
        logging.getLogger("guides").warning("mine", extra={name: "x"})
        return task

    with pytest.raises(StageError, match=f"raised KeyError .*{name}"):
        Pipeline("p", [Calling(say)]).run(initial_tasks=tasks(1))


# --- running locally ------------------------------------------------------------------------------------


def test_in_process_stages_run_in_the_calling_thread() -> None:
    threads = []

    def note(task: Task[Any]) -> Task[Any]:
        threads.append(threading.get_ident())
        return task

    Pipeline("p", [Calling(note)]).run(initial_tasks=tasks(1, 2))
    assert threads == [threading.get_ident()] * 2


@pytest.mark.parametrize("workers", [{"num_workers": 64}, {"min_workers": 64, "initial_workers": 65}])
def test_in_process_resources_and_environments_are_ignored(workers: dict[str, int]) -> None:
    stage = Calling(lambda task: Task(data=os.environ.get("CURATOR_GUIDES"))).with_(
        resources=Resources(cpus=512, gpus=8),
        runtime_env={"env_vars": {"CURATOR_GUIDES": "set"}},
        xenna_stage_spec={"slots_per_actor": 3},
        **workers,
    )
    result = Pipeline("p", [stage]).run(initial_tasks=tasks(1))
    assert [task.data for task in result] == [None]
    assert result.stages[0].workers == 1


# --- reading and writing --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reader", "taken"),
    [
        (JsonlReader, ["a.json", "a.jsonl", "a.jsonl.gz", "a.ndjson"]),
        (ParquetReader, ["a.parquet", "a.pq"]),
    ],
)
def test_readers_select_the_files_of_their_format(tmp_path, reader, taken) -> None:
    for name in ("a.jsonl", "a.json", "a.ndjson", "a.jsonl.gz", "a.parquet", "a.pq", "a.txt", "a.gz"):
        (tmp_path / name).touch()
    result = Pipeline("p", [reader(tmp_path).decompose()[0]]).run()
    assert [os.path.basename(task.data[0]) for task in result] == taken  # noqa: PTH119 - it may be a URL


def test_files_of_earlier_runs_are_kept(tmp_path) -> None:
    for texts in (["a", "b"], ["c"]):
        batches = [DocumentBatch([{"text": text}]) for text in texts]
        Pipeline("p", [JsonlWriter(tmp_path)]).run(initial_tasks=batches)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "0.jsonl": '{"text":"c"}\n',
        "1.jsonl": '{"text":"b"}\n',
    }


@pytest.mark.parametrize("compression", ["snappy", "gzip", "brotli", "lz4", "zstd", "none"])
def test_parquet_has_the_chosen_compression(tmp_path, compression) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    Pipeline("p", [ParquetWriter(tmp_path, compression=compression)]).run(initial_tasks=[DocumentBatch([{"n": 1}])])
    column = pq.read_metadata(tmp_path / "0.parquet").row_group(0).column(0)
    assert column.compression.lower() == {"none": "uncompressed"}.get(compression, compression)
    assert Pipeline("p", [ParquetReader(tmp_path)]).run()[0].to_records() == [{"n": 1}]


# --- reliability ----------------------------------------------------------------------------------------


def test_a_hanging_call_is_not_repeated_like_a_crashing_one(tmp_path) -> None:
    class Fatal(ProcessingStage[Any, Any]):
        timeout_s = 1.0

        def process(self, task):
            with (tmp_path / task.data).open("a") as calls:
                calls.write("x")
            if task.data == "crashes":
                os._exit(1)
            threading.Event().wait()

    result = Pipeline("p", [Fatal()]).run(initial_tasks=tasks("hangs", "crashes"), on_error="skip")
    assert result.stages[0].tasks_failed == 2
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"hangs": "x", "crashes": "xx"}


def test_outputs_of_an_isolated_source_that_fails_halfway_are_dropped() -> None:
    class Emits(ProcessingStage[Any, Any]):
        isolated = True

        def process(self, task):
            yield Task(data=1)
            raise ValueError("the disk is gone")

    result = Pipeline("p", [Emits(), Calling(same)]).run(on_error="skip")
    assert list(result) == []
    source, after = result.stages
    assert (source.tasks_failed, source.tasks_out, after.tasks_in) == (1, 0, 0)


def test_letters_are_kept_if_the_task_succeeds_later(tmp_path) -> None:
    for bad in ((2,), ()):
        stage = Calling(fail_at(*bad), name="S")
        Pipeline("p", [stage]).run(initial_tasks=tasks(1, 2), on_error=DeadLetter(tmp_path))
    assert [letter.task_id for letter in deadletter.read(tmp_path)] == ["1"]


def test_with_a_checkpoint_files_keep_their_ids_and_other_tasks_have_content_ids(tmp_path) -> None:
    (tmp_path / "a.txt").touch()

    @processing_stage()
    def numbers(task):
        return [Task(data=number) for number in (1, 2)]

    for source, are_kept in ((FilePartitioningStage(tmp_path / "a.txt"), True), (numbers, False)):
        without, with_one = (
            [task.task_id for task in Pipeline("p", [source, Calling(same)]).run(**settings)]
            for settings in ({}, {"checkpoint": tmp_path / source.name})
        )
        assert (without == with_one) is are_kept
        assert are_kept or all(task_id.startswith("c") for task_id in with_one)


def test_a_checkpoint_needs_a_source_in_the_driver(tmp_path) -> None:
    class RunsItElsewhere(BaseExecutor):
        """Leaves the source to a worker."""

        def runs_source(self, plan):
            return False

        def run_plan(self, run):
            with run.source() as tasks:
                run.collect(tasks)

    with pytest.raises(PipelineError, match="the source runs on a worker") as raised:
        Pipeline("p", [Calling(same)]).run(RunsItElsewhere(), checkpoint=tmp_path)
    assert raised.value.field == "checkpoint"
