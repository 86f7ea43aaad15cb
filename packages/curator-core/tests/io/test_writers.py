# SPDX-License-Identifier: Apache-2.0
"""Common properties of both writers: names, atomicity, and failures that leave nothing behind."""

from __future__ import annotations

import errno
import gc
import os
import threading
from inspect import signature
from pathlib import Path

import fsspec
import pytest
from fsspec import AbstractFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from tests.waiting import DEADLINE_S

from curator_core import DataError, DocumentBatch, Pipeline, StageError, processing_stage
from curator_core.io import JsonlReader, JsonlWriter, ParquetReader, ParquetWriter

pytest.importorskip("pyarrow")

BIG = [{"text": os.urandom(500).hex()} for _ in range(400)]  # 400 kB that compress at most to half
writers = pytest.mark.parametrize("writer", [JsonlWriter, ParquetWriter])


def run(stage, *batches, **options):
    return Pipeline("write", [stage]).run(initial_tasks=[DocumentBatch(batch) for batch in batches], **options)


def contents(root):
    """Return the data files, without the settled schema of Parquet."""
    files = [path for path in root.rglob("*") if path.is_file() and path.parent.name != "_schema"]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def found(url):
    """Return the names of the data files on a filesystem that is not local."""
    return [name for name in fsspec.filesystem(url.partition(":")[0]).find(url) if "/_schema/" not in name]


@writers
def test_files_are_named_after_tasks_and_their_paths_returned(tmp_path, writer):
    out = tmp_path / "made" / "here"
    result = run(writer(out), [{"a": 1}], [{"a": 2}])
    suffix = ".jsonl" if writer is JsonlWriter else ".parquet"
    assert [task.data for task in result] == [[f"{out}/0{suffix}"], [f"{out}/1{suffix}"]]
    assert [task.task_id for task in result] == ["0", "1"]
    assert sorted(contents(out)) == [f"0{suffix}", f"1{suffix}"]
    written = result[0].stage_perf[0].custom_metrics
    assert written == {"records_written": 1, "bytes_written": (out / f"0{suffix}").stat().st_size}


@writers
@pytest.mark.parametrize("name", ["run::1", "out [2024]", "*"])
@pytest.mark.parametrize("target_size", [None, "1kB"])
def test_directories_whose_names_look_like_urls_and_globs(tmp_path, monkeypatch, writer, name, target_size):
    monkeypatch.chdir(tmp_path)
    (task,) = run(writer(name, target_size=target_size), [{"a": 1}], checkpoint="progress::1 [2]")
    assert [path.name for path in tmp_path.iterdir() if path.name != "progress::1 [2]"] == [name]
    reader = JsonlReader if writer is JsonlWriter else ParquetReader
    (batch,) = Pipeline("read", [reader(name)]).run()
    assert batch.to_records() == [{"a": 1}]
    assert sorted(contents(tmp_path / name)) == [Path(task.data[0]).name]


@writers
@pytest.mark.skipif(
    "assume_literal" not in signature(AbstractFileSystem.expand_path).parameters,
    reason="this fsspec takes what a glob has matched for globs",
)
def test_staged_files_are_removed_below_a_remote_directory_with_brackets(memory_url, writer):
    (task,) = run(writer(f"{memory_url}/[2024]", target_size="1kB"), [{"a": 1}])
    assert [f"memory:/{name}" for name in found(memory_url)] == task.data
    listed = fsspec.filesystem("memory").ls(f"{memory_url}/[2024]", detail=False)
    assert not [name for name in listed if "_staging" in name]


@writers
def test_file_names_follow_lineage(tmp_path, writer):
    @processing_stage()
    def halve(task):
        return [DocumentBatch(task.data[:1]), DocumentBatch(task.data[1:])]

    Pipeline("write", [halve, writer(tmp_path)]).run(initial_tasks=[DocumentBatch([{"a": 1}, {"a": 2}])])
    assert [name.rpartition(".")[0] for name in sorted(contents(tmp_path))] == ["0.0", "0.1"]


@pytest.mark.parametrize(
    "make",
    [
        JsonlWriter,
        lambda path: JsonlWriter(path, compression="gzip"),
        lambda path: JsonlWriter(path, compression="bz2"),
        lambda path: JsonlWriter(path, compression="xz"),
        ParquetWriter,
        lambda path: ParquetWriter(path, compression="zstd"),
    ],
)
def test_writing_twice_gives_the_same_bytes(tmp_path, make, monkeypatch):
    run(make(tmp_path / "a"), BIG, [{"text": "x"}])
    monkeypatch.setattr("time.time", lambda: 2_000_000_000.0)  # gzip would write the time to its header
    run(make(tmp_path / "b"), BIG, [{"text": "x"}])
    run(make(tmp_path / "a"), BIG, [{"text": "x"}])  # overwrites existing files
    assert len(contents(tmp_path / "a")) == 2
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@writers
def test_a_task_without_records_writes_no_file_and_counts_as_filtered(tmp_path, writer):
    result = run(writer(tmp_path), [], [{"a": 1}])
    assert len(contents(tmp_path)) == 1
    assert (result.stages[0].tasks_filtered, result.stages[0].tasks_out) == (1, 1)


@writers
def test_a_remote_filesystem_works(memory_url, writer):
    out = f"{memory_url}/out[1]"  # its name looks like a pattern
    result = run(writer(out), [{"a": 1}], [{"a": 2}])
    reader = JsonlReader if writer is JsonlWriter else ParquetReader
    read = Pipeline("read", [reader([path for task in result for path in task.data])]).run()
    assert [batch.to_records() for batch in read] == [[{"a": 1}], [{"a": 2}]]
    assert len(found(out)) == 2  # and no temporary files
    run(writer(out), [{"a": 1}], [{"a": 2}])
    assert len(found(out)) == 2


def test_partial_files_are_never_visible(tmp_path):
    """A reader that polls the file always sees one complete version or the other."""
    path = tmp_path / "0.jsonl"
    versions = [[{"n": version, "text": "x" * 100}] * 2000 for version in (1, 2)]
    run(JsonlWriter(tmp_path), versions[0])
    whole = {path.read_bytes()}
    run(JsonlWriter(tmp_path), versions[1])
    whole.add(path.read_bytes())
    seen, looked, done = set(), threading.Event(), threading.Event()

    def look():
        while not done.is_set():
            seen.add(path.read_bytes())
            looked.set()

    thread = threading.Thread(target=look)
    thread.start()
    try:
        assert looked.wait(DEADLINE_S)
        for number in range(20):
            run(JsonlWriter(tmp_path), versions[number % 2])
    finally:
        done.set()
        thread.join()
    assert seen
    assert seen <= whole
    assert list(contents(tmp_path)) == ["0.jsonl"]


# --- failures -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [JsonlWriter, ParquetWriter, lambda path: JsonlWriter(path, compression="gzip")],
    ids=["jsonl", "parquet", "gz"],
)
def test_a_full_disk_is_an_error(tmp_path, data_error, make, room_for):
    run(make(tmp_path), [{"text": "before"}])
    before = contents(tmp_path)
    with room_for(50_000):
        error = data_error(make(tmp_path), initial_tasks=[DocumentBatch(BIG)])
    assert "errno 27, EFBIG" in error.message
    assert error.field.startswith(f"{tmp_path}/0.")
    assert "free up space" in error.hint
    assert contents(tmp_path) == before  # the earlier file is intact, and there is no other
    gc.collect()  # files that are still open must not raise warnings when they are collected


class FullFileSystem(MemoryFileSystem):
    """A remote disk that is full."""

    protocol = "full"
    store, pseudo_dirs = {}, [""]

    def cp_file(self, path1, path2, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path2)


@writers
def test_a_full_remote_filesystem_is_an_error(data_error, writer):
    fsspec.register_implementation("full", FullFileSystem, clobber=True)
    error = data_error(writer("full://bucket/out"), initial_tasks=[DocumentBatch([{"a": 1}])])
    assert "No space left on device (errno 28, ENOSPC)" in error.message
    assert error.field.startswith("full://bucket/out/")
    assert found("full://bucket") == []


@writers
def test_a_read_only_directory_is_an_error(public_path, data_error, writer, as_nobody):
    locked = public_path / "locked"
    locked.mkdir()
    locked.chmod(0o555)
    for path in (locked, locked / "below"):
        with as_nobody():
            error = data_error(writer(path), initial_tasks=[DocumentBatch([{"a": 1}])])
        assert "Permission denied (errno 13, EACCES)" in error.message
        assert error.field.startswith(str(path))
        assert "permissions" in error.hint
    assert list(locked.iterdir()) == []


@writers
def test_a_file_in_place_of_the_directory_is_an_error(tmp_path, data_error, writer):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        error = data_error(writer(path), initial_tasks=[DocumentBatch([{"a": 1}])])
        assert "EEXIST" in error.message or "ENOTDIR" in error.message
    assert (tmp_path / "file").read_text() == "mine"


@writers
def test_a_directory_in_place_of_the_file_is_an_error(tmp_path, data_error, writer):
    suffix = ".jsonl" if writer is JsonlWriter else ".parquet"
    (tmp_path / f"0{suffix}").mkdir()
    error = data_error(writer(tmp_path), initial_tasks=[DocumentBatch([{"a": 1}])])
    assert "errno 21, EISDIR" in error.message
    assert [path.name for path in tmp_path.rglob("*") if "_schema" not in str(path)] == [f"0{suffix}"]


@writers
def test_a_directory_removed_during_the_run_is_an_error(tmp_path, data_error, writer):
    @processing_stage()
    def lose(task):
        (tmp_path / "out").rmdir()
        return task

    error = data_error(lose, writer(tmp_path / "out"), initial_tasks=[DocumentBatch([{"a": 1}])])
    assert "errno 2, ENOENT" in error.message


def test_an_interrupt_leaves_no_files(tmp_path):
    class Batch(DocumentBatch):
        def to_records(self):
            yield from self.data
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Pipeline("write", [JsonlWriter(tmp_path)]).run(initial_tasks=[Batch(BIG)])
    assert list(tmp_path.iterdir()) == []


def test_a_task_that_cannot_be_written_does_not_affect_others(tmp_path):
    result = run(JsonlWriter(tmp_path), [{"a": 1}], [{"a": {1}}], [{"a": 3}], on_error="skip")
    assert sorted(contents(tmp_path)) == ["0.jsonl", "2.jsonl"]
    assert (result.stages[0].tasks_out, result.stages[0].tasks_failed) == (2, 1)


def test_a_writer_outside_a_pipeline_needs_ids(tmp_path):
    with pytest.raises(DataError, match="id cannot be a file name"):
        JsonlWriter(tmp_path).process(DocumentBatch([{"a": 1}]))


def test_declared_columns_are_checked_before_anything_is_written(tmp_path):
    with pytest.raises(StageError, match="has no column 'text'"):
        run(JsonlWriter(tmp_path / "out", fields=["text"]), [{"a": 1}])
    assert contents(tmp_path) == {}
