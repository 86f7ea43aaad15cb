# SPDX-License-Identifier: Apache-2.0
"""Files of a target size: several tasks per file, and each record once, whatever dies during the run."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.waiting import DEADLINE_S

from curator_core import (
    ConfigurationError,
    DataError,
    DeadLetter,
    DocumentBatch,
    EmptyTask,
    LocalExecutor,
    Pipeline,
    PipelineError,
    ProcessingStage,
    StageError,
    WorkerMetadata,
    deadletter,
    processing_stage,
)
from curator_core._checkpoint.settings import Checkpoint
from curator_core.io import JsonlReaderStage, JsonlWriter, ParquetReader, ParquetReaderStage, ParquetWriter

pq = pytest.importorskip("pyarrow.parquet")

READERS = {JsonlWriter: JsonlReaderStage, ParquetWriter: ParquetReaderStage}
writers = pytest.mark.parametrize("writer", [JsonlWriter, ParquetWriter])
TEXT = 200  # characters per record, which compress at most to half


def records(start, count):
    return [{"id": number, "text": os.urandom(TEXT // 2).hex()} for number in range(start, start + count)]


def batches(count, size=10):
    return [DocumentBatch(records(number * size, size)) for number in range(count)]


def paths_of(result):
    return [path for task in result for path in task.data]


def visible(directory):
    return [path for path in Path(directory).rglob("*") if path.is_file() and not path.parent.name.startswith("_")]


def ids_in(directory):
    """Return the ids in JSON Lines files below a directory."""
    lines = (line for path in visible(directory) for line in path.read_text().splitlines())
    return sorted(json.loads(line)["id"] for line in lines)


def emit(parents, children, *, poison=(), record_size=TEXT):
    """Return a source and a stage that fans out each source task: files then contain parts of several source tasks."""

    class Parents(ProcessingStage):
        def process(self, task: EmptyTask):
            return (DocumentBatch([{"id": number}]) for number in range(parents))

    class Children(ProcessingStage):
        def process(self, task):
            (parent,) = task.to_records()
            numbers = (parent["id"] * children + child for child in range(children))
            return [DocumentBatch([{"id": n, "text": {1} if n in poison else "x" * record_size}]) for n in numbers]

    return [Parents(), Children()]


# --- files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("executor", [LocalExecutor(), LocalExecutor(workers=2)], ids=["here", "two"])
def test_many_small_tasks_make_few_files_of_about_the_target_size(tmp_path, executor):
    import duckdb
    import pandas as pd
    import pyarrow.dataset as ds

    writer = ParquetWriter(tmp_path, target_size="100kB").with_(batch_size=100)
    result = Pipeline("p", [writer]).run(executor, initial_tasks=batches(200))
    sizes = sorted(path.stat().st_size for path in visible(tmp_path))
    assert sum(size > 60_000 for size in sizes) >= len(sizes) - 4  # except the first and the last file of each worker
    assert max(sizes) < 130_000
    assert len(result) == result.stages[0].tasks_passed == 200
    assert sorted(paths_of(result)) == sorted(map(str, visible(tmp_path)))
    expected = [*range(2000)]
    assert sorted(ds.dataset(tmp_path).to_table()["id"].to_pylist()) == expected
    assert sorted(pd.read_parquet(tmp_path)["id"]) == expected
    assert sorted(duckdb.read_parquet(f"{tmp_path}/**/*.parquet").df()["id"]) == expected


@writers
def test_the_outputs_name_each_file_once_for_a_reader(tmp_path, writer):
    result = Pipeline("write", [writer(tmp_path, target_size="10kB")]).run(initial_tasks=batches(50))
    assert all(len(task.data) <= 1 for task in result)
    again = Pipeline("read", [READERS[writer]()]).run(initial_tasks=result)
    assert sorted(record["id"] for task in again for record in task.to_records()) == [*range(500)]
    assert again.stages[0].tasks_filtered == len(result) - len(visible(tmp_path))


@given(
    sizes=st.lists(st.integers(0, 60), max_size=30),
    limit=st.integers(50, 2000),
    batch_size=st.integers(1, 12),
)
def test_only_a_file_of_one_task_exceeds_the_target_size(sizes, limit, batch_size):
    url = f"memory://rolling-{os.urandom(6).hex()}"
    tasks = [DocumentBatch([{"id": number, "n": place} for place in range(size)]) for number, size in enumerate(sizes)]
    writer = JsonlWriter(url, target_size=limit).with_(batch_size=batch_size)
    result = Pipeline("p", [writer]).run(initial_tasks=tasks)
    fs = fsspec.filesystem("memory")
    files = {path: fs.cat(path) for path in fs.find(url)}
    assert sorted(f"memory:/{path}" for path in files) == sorted(paths_of(result))
    lines = [json.loads(line) for content in files.values() for line in content.splitlines()]
    assert Counter(line["id"] for line in lines) == {number: size for number, size in enumerate(sizes) if size}
    for content in files.values():
        assert len(content) <= limit or len({json.loads(line)["id"] for line in content.splitlines()}) == 1
    assert result.stages[0].tasks_filtered == sizes.count(0)


def test_a_large_task_has_its_own_file(tmp_path):
    tasks = [DocumentBatch(records(0, 1)), DocumentBatch(records(1, 100)), DocumentBatch(records(101, 1))]
    result = Pipeline("p", [JsonlWriter(tmp_path, target_size="10kB")]).run(initial_tasks=tasks)
    assert [len(Path(path).read_text().splitlines()) for path in paths_of(result)] == [1, 100, 1]


def test_a_file_is_named_after_its_tasks(tmp_path):
    names = []
    for directory, count in (("a", 5), ("b", 5), ("c", 4)):
        writer = JsonlWriter(tmp_path / directory, target_size="1MB", compression="gzip")
        (path,) = paths_of(Pipeline("p", [writer]).run(initial_tasks=batches(count)))
        names.append(Path(path).name)
    assert names[0] == names[1] != names[2]
    assert names[0].startswith("part-")
    assert names[0].endswith(".jsonl.gz")


def test_a_file_has_one_schema_even_if_the_schema_grows(tmp_path):
    import pyarrow.dataset as ds

    rows = [{"id": 0, "a": None}, {"id": 1, "a": None}, {"id": 2, "a": "x"}, {"id": 3, "a": None}, {"id": 4, "b": 0.5}]
    tasks = [DocumentBatch([row]) for row in rows]
    result = Pipeline("p", [ParquetWriter(tmp_path, target_size="1MB")]).run(initial_tasks=tasks)
    assert [pq.read_table(path)["id"].to_pylist() for path in paths_of(result)] == [[0, 1], [2, 3], [4]]
    schema = pq.read_schema(max((tmp_path / "_schema").iterdir()))
    table = ds.dataset(visible(tmp_path), schema=schema).to_table().sort_by("id")
    assert table.to_pylist() == [{"id": row["id"], "a": row.get("a"), "b": row.get("b")} for row in rows]


def test_a_declared_schema_and_bad_records_work_as_for_single_files(tmp_path):
    rows = [{"id": 0, "n": 1}, {"id": 1, "n": "no number"}, {"id": 2, "n": 3}]
    writer = ParquetWriter(tmp_path, target_size="1MB", schema={"id": "int32", "n": "int8"}, on_bad_record="skip")
    (path,) = paths_of(Pipeline("p", [writer]).run(initial_tasks=[DocumentBatch([row]) for row in rows]))
    assert pq.read_table(path).to_pylist() == [{"id": 0, "n": 1}, {"id": 2, "n": 3}]
    assert not (tmp_path / "_schema").exists()


def test_metrics_count_records_and_bytes_of_the_files(tmp_path):
    result = Pipeline("p", [JsonlWriter(tmp_path, target_size="4kB")]).run(initial_tasks=batches(20))
    metrics = result[0].stage_perf[0].custom_metrics
    assert metrics == {"records_written": 200, "bytes_written": sum(path.stat().st_size for path in visible(tmp_path))}


# --- failures -------------------------------------------------------------------------------------------------


@writers
def test_a_task_that_cannot_be_written_fails_alone(tmp_path, writer):
    poison = {13, 14, 37}
    stages = [*emit(10, 5, poison=poison), writer(tmp_path / "out", target_size="2kB").with_(batch_size=16)]
    policy = DeadLetter(tmp_path / "dead")
    result = Pipeline("p", stages).run(on_error=policy, max_failures=math.inf)
    assert result.stages[2].tasks_failed == len(poison)
    again = Pipeline("read", [READERS[writer]()]).run(initial_tasks=result)
    found = sorted(record["id"] for task in again for record in task.to_records())
    assert found == sorted({*range(50)} - poison)
    assert sorted(paths_of(result)) == sorted(map(str, visible(tmp_path / "out")))
    assert len(deadletter.load(tmp_path / "dead", trust=True)) == len(poison)


def test_another_attempt_writes_the_same_files(tmp_path):
    class Flaky(JsonlWriter):
        fails = True

        def process_batch(self, tasks):
            outputs = super().process_batch(tasks)
            if self.fails:
                self.fails = False
                raise OSError("temporary failure after writing the files")
            return outputs

    writer = Flaky(tmp_path, target_size="2kB").with_(max_attempts=2, retry_delay_s=0)
    result = Pipeline("p", [writer]).run(initial_tasks=batches(30))
    assert result.stages[0].attempts_retried == 1
    assert ids_in(tmp_path) == [*range(300)]
    assert sorted(paths_of(result)) == sorted(map(str, visible(tmp_path)))
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_a_failed_run_keeps_only_counted_files(tmp_path):
    stages = [*emit(10, 5, poison={33}), JsonlWriter(tmp_path, target_size="2kB").with_(batch_size=10)]
    with pytest.raises(StageError, match="has no JSON equivalent") as raised:
        Pipeline("p", stages).run()
    assert ids_in(tmp_path) == [*range(30)]
    assert sorted(paths_of(raised.value.result)) == sorted(map(str, visible(tmp_path)))
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def dies_once(mark, at=3):
    """Return a writer whose process dies once, at its third batch, after writing it and before reporting it."""

    class Dies(JsonlWriter):
        isolated = False
        calls = 0

        def process_batch(self, tasks):
            outputs = super().process_batch(tasks)
            self.calls += 1
            if self.calls == at and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return outputs

    return Dies


def test_tasks_repeated_after_a_worker_died_are_written_once(tmp_path):
    """Files have seven tasks, source tasks five: some tasks of unfinished source tasks are in files."""
    writer = dies_once(tmp_path / "mark")(tmp_path / "out", target_size="1MB").with_(batch_size=7)
    result = Pipeline("p", [*emit(40, 5), writer]).run(LocalExecutor(workers=2))
    assert ids_in(tmp_path / "out") == [*range(200)]
    assert (len(result), result.lost, result.accounting.restarts) == (200, (), 1)
    assert sorted(paths_of(result)) == sorted(map(str, visible(tmp_path / "out")))
    assert [path for path in (tmp_path / "out").iterdir() if path.is_dir()] == []


# --- the driver is killed -------------------------------------------------------------------------------------

KILLED = """if True:
    import os, signal, sys
    from pathlib import Path
    from curator_core import DocumentBatch, EmptyTask, Pipeline, ProcessingStage
    from curator_core.io import JsonlWriter, ParquetWriter

    out, checkpoint, moment, kind = sys.argv[1:]
    rename, renamed = os.replace, []


    def die():
        os.kill(os.getpid(), signal.SIGKILL)


    def replace(source, target, **directories):
        if "part-" not in str(target) or moment == "never":
            return rename(source, target, **directories)
        if len(renamed) == 3 and moment == "counted":
            die()
        rename(source, target, **directories)
        renamed.append(target)
        if len(renamed) == 4 and moment == "there":
            die()


    os.replace = replace


    class Parents(ProcessingStage):
        def process(self, task: EmptyTask):
            return (DocumentBatch([{"id": number}]) for number in range(20))


    class Children(ProcessingStage):
        def process(self, task):
            (parent,) = task.to_records()
            return [DocumentBatch([{"id": 5 * parent["id"] + child}]) for child in range(5)]


    class Writer({"json": JsonlWriter, "parquet": ParquetWriter}[kind]):
        calls = 0

        def process_batch(self, tasks):
            outputs = super().process_batch(tasks)
            self.calls += 1
            if self.calls == 4 and moment == "written":
                die()
            return outputs


    writer = Writer(out, target_size="1MB").with_(batch_size=7)
    options = {"checkpoint": checkpoint} if checkpoint else {}
    result = Pipeline("p", [Parents(), Children(), writer]).run(**options)
    for task in result:
        print(*task.data, end=" ")
"""


def run_script(out, checkpoint, moment, kind="json"):
    command = [sys.executable, "-c", KILLED, out, checkpoint, moment, kind]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)


@pytest.mark.parametrize(
    ("moment", "there"),
    [("written", 3), ("counted", 3), ("there", 4)],
)
def test_a_killed_run_resumes_with_its_checkpoint(tmp_path, moment, there):
    """Kill it when files are not counted; when they are counted but not renamed; and when the source is unfinished."""
    out, checkpoint = tmp_path / "out", tmp_path / "checkpoint"
    assert run_script(out, checkpoint, moment).returncode == -signal.SIGKILL
    assert len(visible(out)) == there
    assert len(list(out.glob("_staging-*/*"))) == 4 - there
    ended = run_script(out, checkpoint, "never")
    assert ended.returncode == 0, ended.stderr
    assert ids_in(out) == [*range(100)]
    assert sorted(ended.stdout.split()) == sorted(map(str, visible(out)))
    assert [path for path in out.iterdir() if path.is_dir()] == []


def test_files_that_are_not_counted_are_invisible_to_readers(tmp_path):
    import duckdb
    import pandas as pd
    import pyarrow.dataset as ds

    out = tmp_path / "out"
    assert run_script(out, "", "written", "parquet").returncode == -signal.SIGKILL
    assert len(list(out.glob("_staging-*/*"))) == 1
    expected = [*range(21)]
    assert sorted(ds.dataset(out).to_table()["id"].to_pylist()) == expected
    assert sorted(pd.read_parquet(out)["id"]) == expected
    assert sorted(duckdb.read_parquet(f"{out}/**/*.parquet").df()["id"]) == expected
    read = Pipeline("read", [ParquetReader(out, file_extensions=None)]).run()
    assert sorted(record["id"] for task in read for record in task.to_records()) == expected
    assert "was killed while writing" in run_script(out, "", "never", "parquet").stderr


def test_retried_failures_do_not_rewrite_their_neighbors(tmp_path):
    """A source task with a failure starts again, with another batch size, and its tasks in files stay."""
    repaired = tmp_path / "repaired"

    def pipeline(batch_size):
        @processing_stage()
        def spoil(task):
            (record,) = task.to_records()
            if record["id"] == 12 and not repaired.exists():
                raise ValueError("spoilt")
            return task

        writer = JsonlWriter(tmp_path / "out", target_size="1MB").with_(batch_size=batch_size)
        return Pipeline("p", [*emit(10, 5), spoil, writer])

    path = tmp_path / "checkpoint"
    pipeline(7).run(on_error="skip", checkpoint=path)
    assert ids_in(tmp_path / "out") == sorted({*range(50)} - {12})
    repaired.touch()
    result = pipeline(2).run(on_error="skip", checkpoint=Checkpoint(path, retry_failed=True))
    assert (len(result.accounting.resumed), result.stages[3].tasks_in) == (9, 5)
    assert ids_in(tmp_path / "out") == [*range(50)]
    assert sorted(paths_of(result)) == sorted(map(str, visible(tmp_path / "out")))


def test_a_worker_death_in_a_resumed_run_loses_nothing_of_earlier_runs(tmp_path):
    """This includes source tasks that the source has not emitted yet: here the last one, mostly in files already."""
    repaired, mark = tmp_path / "repaired", tmp_path / "mark"
    _, children = emit(0, 5)

    class Parents(ProcessingStage):
        def process(self, task: EmptyTask):
            yield from (DocumentBatch([{"id": number}]) for number in range(39))
            others = itertools.count(1000)
            while repaired.exists() and not mark.exists():  # so that the driver has work until then
                yield DocumentBatch([{"id": next(others)}])
            yield DocumentBatch([{"id": 39}])

    @processing_stage()
    def known(task):
        return task if task.data[0]["id"] < 1000 else None

    def work(task):
        (record,) = task.to_records()
        if record["id"] % 5 == 2 and not repaired.exists():
            raise ValueError("spoilt")
        return task

    writer = dies_once(mark, at=1)(tmp_path / "out", target_size="1MB").with_(batch_size=7)
    pipeline = Pipeline("p", [Parents(), known, children, processing_stage(name="work")(work), writer])
    path, options = tmp_path / "checkpoint", {"on_error": "skip", "max_failures": math.inf}
    mark.touch()
    pipeline.run(checkpoint=path, **options)
    mark.unlink()
    repaired.touch()
    result = pipeline.run(LocalExecutor(workers=2), checkpoint=Checkpoint(path, retry_failed=True), **options)
    assert (result.accounting.restarts, result.lost) == (1, ())
    assert ids_in(tmp_path / "out") == [*range(200)]


# --- other runs -----------------------------------------------------------------------------------------------


def test_a_second_run_without_a_checkpoint_is_rejected(tmp_path):
    pipeline = Pipeline("p", [JsonlWriter(tmp_path, target_size="1MB")])
    pipeline.run(initial_tasks=batches(3))
    with pytest.raises(ConfigurationError, match="files of another run") as raised:
        pipeline.run(initial_tasks=batches(3))
    assert raised.value.field == "target_size"
    assert str(tmp_path) in raised.value.given
    assert raised.value.expected
    assert "checkpoint" in raised.value.hint
    assert ids_in(tmp_path) == [*range(30)]


def test_a_directory_that_another_run_writes_to_is_rejected(tmp_path):
    (tmp_path / "_staging-part-0123").mkdir()
    with pytest.raises(ConfigurationError, match="another run is writing to the directory") as raised:
        Pipeline("p", [JsonlWriter(tmp_path, target_size="1MB")]).run(initial_tasks=batches(1))
    assert "_staging-part-0123" in raised.value.given
    assert raised.value.expected
    assert "remove" in raised.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["_staging-part-0123"]


def test_shards_can_write_to_one_directory(tmp_path):
    pipeline = Pipeline("p", [JsonlWriter(tmp_path, target_size="1MB")])
    tasks = [DocumentBatch([{"id": number}]) for number in range(20)]
    (tmp_path / "_staging-shard-1-of-2-0123").mkdir()  # of a shard that runs at the same time
    pipeline.run(initial_tasks=tasks, shard=(0, 2))
    (tmp_path / "_staging-shard-1-of-2-0123").rmdir()
    pipeline.run(initial_tasks=tasks, shard=(1, 2))
    assert ids_in(tmp_path) == [*range(20)]
    for shard in ((1, 2), (0, 3), None):
        with pytest.raises(ConfigurationError, match="files of another run"):
            pipeline.run(initial_tasks=tasks, shard=shard)


def test_repeating_a_finished_run_with_a_checkpoint_writes_nothing(tmp_path):
    pipeline = Pipeline("p", [JsonlWriter(tmp_path / "out", target_size="1MB")])
    tasks = [DocumentBatch([{"id": number}]) for number in range(20)]
    first, second = (pipeline.run(initial_tasks=tasks, checkpoint=tmp_path / "checkpoint") for _ in range(2))
    assert paths_of(first) == paths_of(second) == list(map(str, visible(tmp_path / "out")))
    assert (len(second.accounting.resumed), second.stages[0].tasks_in) == (20, 0)


# --- settings -------------------------------------------------------------------------------------------------


@writers
@pytest.mark.parametrize("size", [0, -1, "much", 1.5, True])
def test_invalid_sizes_are_rejected(tmp_path, writer, size):
    with pytest.raises(ConfigurationError, match=r"invalid size|invalid count") as raised:
        writer(tmp_path, target_size=size)
    assert raised.value.field == "target_size"


def test_a_stage_after_the_writer_is_rejected(tmp_path):
    with pytest.raises(PipelineError, match="no later stage can read them") as raised:
        Pipeline("p", [JsonlWriter(tmp_path, target_size="1MB"), JsonlReaderStage()]).run(initial_tasks=batches(1))
    assert (raised.value.stage, raised.value.field) == ("JsonlWriter", "target_size")
    assert "JsonlReaderStage" in raised.value.given
    assert raised.value.hint
    assert list(tmp_path.iterdir()) == []


def test_target_size_without_a_run_is_an_error(tmp_path):
    with pytest.raises(ConfigurationError, match="but there is no run") as raised:
        JsonlWriter(tmp_path, target_size="1MB").setup(WorkerMetadata())
    assert raised.value.field == "target_size"
    assert raised.value.expected
    assert raised.value.hint


def test_a_driver_that_does_not_see_the_files_is_an_error(tmp_path):
    class Elsewhere(JsonlWriter):
        def process_batch(self, tasks):
            outputs = super().process_batch(tasks)
            for path in tmp_path.glob("_staging-*/*"):  # as if on the disk of another machine
                path.unlink()
            return outputs

    with pytest.raises(DataError, match="the driver cannot find") as raised:
        Pipeline("p", [Elsewhere(tmp_path, target_size="1MB")]).run(initial_tasks=batches(1))
    assert "part-" in raised.value.field
    assert raised.value.hint
