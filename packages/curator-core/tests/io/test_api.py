# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

import curator_core.io
from curator_core import CompositeStage, ConfigurationError, EmptyTask, FileGroupTask, Pipeline, Plan, StageError
from curator_core.io import (
    FilePartitioningStage,
    JsonlReader,
    JsonlReaderStage,
    JsonlWriter,
    ParquetReader,
    ParquetReaderStage,
    ParquetWriter,
)


def test_public_names_are_pinned():
    assert curator_core.io.__all__ == [
        "FilePartitioningStage",
        "JsonlReader",
        "JsonlReaderStage",
        "JsonlWriter",
        "ParquetReader",
        "ParquetReaderStage",
        "ParquetWriter",
    ]
    assert all(getattr(curator_core.io, name) for name in curator_core.io.__all__)


def test_importing_loads_neither_fsspec_nor_pyarrow_and_core_does_not_load_io():
    code = (
        "import sys, curator_core; assert 'curator_core.io' not in sys.modules; import curator_core.io as io;"
        "io.JsonlReader('s3://bucket/x'); io.ParquetWriter('out');"
        "loaded = {'fsspec', 'pyarrow', 'numpy'} & set(sys.modules); assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_readers_are_composites_of_a_source_and_a_reader():
    for reader, stage in ((JsonlReader, JsonlReaderStage), (ParquetReader, ParquetReaderStage)):
        composite = reader("x", fields=["text"])
        assert isinstance(composite, CompositeStage)
        source, reading = composite.decompose()
        assert isinstance(source, FilePartitioningStage)
        assert isinstance(reading, stage)
        assert reading.outputs() == (["data"], ["text"])


def test_relative_paths_refer_to_where_the_stage_was_created(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").touch()
    source = FilePartitioningStage("a.txt")
    monkeypatch.chdir("/")  # a worker may have another working directory
    assert [task.data for task in source.process(EmptyTask())] == [[str(tmp_path / "a.txt")]]


@pytest.mark.parametrize(
    "path", ["a\0b", Path("a\0b"), "s3://a\0b", "~no-such-user/x", "\ud800", b"a", None, 5, "file://"]
)
def test_invalid_paths_are_rejected_when_the_stage_is_created(path):
    makes = (JsonlReader, ParquetReader, JsonlWriter, ParquetWriter, lambda path: JsonlReader(["a", path]))
    for make, field in zip(makes, ["file_paths[0]", "file_paths[0]", "path", "path", "file_paths[1]"], strict=True):
        with pytest.raises(ConfigurationError) as caught:
            make(path)
        error = caught.value
        assert (error.field, error.given) == (field, repr(path))
        assert error.expected
        assert error.hint


@pytest.mark.parametrize("path", ["a\0b", "~no-such-user/x", "\ud800"])
def test_paths_in_tasks_are_checked(path):
    for stage in (JsonlReaderStage(), ParquetReaderStage()):
        with pytest.raises(StageError) as caught:
            Pipeline("read", [stage]).run(initial_tasks=[FileGroupTask([path])])
        cause = caught.value.__cause__
        assert isinstance(cause, ConfigurationError)
        assert (cause.field, cause.given) == ("path", repr(path))


def test_names_that_are_not_utf_8_can_be_read(tmp_path):
    name = os.fsdecode(b"\xff.jsonl")
    (tmp_path / name).write_text('{"a": 1}\n')
    (batch,) = Pipeline("read", [JsonlReader(tmp_path / name)]).run()
    assert batch.data == [{"a": 1}]


def test_a_leading_tilde_is_a_home_directory_and_others_are_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("home/a.txt", "~a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for path, found in (("~/a.txt", "home/a.txt"), ("./~a.txt", "~a.txt")):
        assert [task.data for task in FilePartitioningStage(path).process(EmptyTask())] == [[str(tmp_path / found)]]


def test_a_relative_path_in_a_removed_directory_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(ConfigurationError, match="the working directory has been removed") as caught:
        JsonlReader("a.jsonl")
    assert caught.value.field == "file_paths[0]"


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: FilePartitioningStage([]), "file_paths"),
        (lambda: FilePartitioningStage(["a", 3]), "file_paths[1]"),
        (lambda: FilePartitioningStage(""), "file_paths[0]"),
        (lambda: FilePartitioningStage("a", files_per_partition=0), "files_per_partition"),
        (lambda: FilePartitioningStage("a", files_per_partition=True), "files_per_partition"),
        (lambda: FilePartitioningStage("a", blocksize="many"), "blocksize"),
        (lambda: FilePartitioningStage("a", blocksize=-1), "blocksize"),
        (lambda: FilePartitioningStage("a", split="0MiB"), "split"),
        (lambda: JsonlReader("a", split=True), "split"),
        (lambda: FilePartitioningStage("a", file_extensions=".txt"), "file_extensions"),
        (lambda: FilePartitioningStage("a", file_extensions=["txt"]), "file_extensions"),
        (lambda: JsonlReaderStage(fields="text"), "fields"),
        (lambda: JsonlReaderStage(fields=[]), "fields"),
        (lambda: JsonlReaderStage(records_per_batch=0), "records_per_batch"),
        (lambda: JsonlReaderStage(on_bad_line="ignore"), "on_bad_line"),
        (lambda: JsonlReaderStage(encoding="utf-16"), "encoding"),
        (lambda: JsonlReaderStage(encoding="klingon"), "encoding"),
        (lambda: JsonlReaderStage(compression="zst"), "compression"),
        (lambda: JsonlWriter(None), "path"),
        (lambda: JsonlWriter("x", compression="gzipp"), "compression"),
        (lambda: JsonlWriter("x", on_bad_record="drop"), "on_bad_record"),
        (lambda: ParquetReaderStage(records_per_batch=1.5), "records_per_batch"),
        (lambda: ParquetWriter("x", compression="zst"), "compression"),
        (lambda: ParquetWriter("x", on_bad_record="drop"), "on_bad_record"),
        (lambda: ParquetWriter("x", schema=["text"]), "schema"),
        (lambda: ParquetWriter("x", schema={}), "schema"),
        (lambda: ParquetWriter("x", schema={"text": "strong"}), "schema['text']"),
        (lambda: ParquetWriter("x", schema={"text": str}), "schema['text']"),
        (lambda: ParquetWriter("x", schema={5: "string"}), "schema[5]"),
        (lambda: ParquetWriter("x", schema={"meta": pa.struct([])}), "schema['meta']"),
        (lambda: ParquetWriter("x", schema=pa.schema([("a", "int8"), ("a", "int8")])), "schema"),
        (lambda: ParquetReader("x", schema={"text": "string"}, fields=["txt"]), "fields"),
        (lambda: ParquetReaderStage(on_bad_record=True), "on_bad_record"),
    ],
)
def test_invalid_settings_are_rejected_when_the_stage_is_created(make, field):
    with pytest.raises(ConfigurationError) as caught:
        make()
    assert caught.value.field == field
    assert caught.value.expected


def test_a_mistyped_compression_suggests_the_nearest_one():
    for stage in (JsonlWriter, JsonlReader):
        with pytest.raises(ConfigurationError, match="did you mean 'gzip'"):
            stage("x", compression="gzipp")


@pytest.mark.parametrize("stages", [[ParquetReader("x")], [ParquetReaderStage()], [ParquetWriter("x")]])
def test_parquet_without_pyarrow_names_the_extra_before_data_is_read(stages, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(StageError, match=r"curator-core\[parquet\]") as caught:
        Pipeline("test", stages).run(initial_tasks=[])
    assert isinstance(caught.value.__cause__, ConfigurationError)


def test_every_stage_pickles_and_is_named_after_its_class():
    plan = Plan.from_stages([JsonlReader("x"), JsonlWriter("y"), ParquetReaderStage(), ParquetWriter("z")])
    assert [compiled.name for compiled in plan.stages] == [
        "FilePartitioningStage",
        "JsonlReaderStage",
        "JsonlWriter",
        "ParquetReaderStage",
        "ParquetWriter",
    ]
    assert not any(compiled.wants_a_worker for compiled in plan.stages)
