# SPDX-License-Identifier: Apache-2.0
"""Large files are split: each line, and each row group, is read once, whatever the size of the ranges."""

from __future__ import annotations

import gzip
import os
import threading
import zipfile

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from curator_core import EmptyTask, FileGroupTask, Pipeline, RunObserver, processing_stage
from curator_core._plan.bundles import BundlePlan, within_bytes
from curator_core.io import (
    FilePartitioningStage,
    JsonlReader,
    JsonlReaderStage,
    JsonlWriter,
    ParquetReader,
    ParquetReaderStage,
    ranges,
)

GOOD = st.sampled_from([f'{{"t": "{text}"}}' for text in ("", "a", "ä", "😀\u2028", "x" * 50)])
LINE = GOOD | st.sampled_from(["", " ", "\ufeff", "broken", "\x00", "[1]"])
CONTENT = st.builds(
    lambda first, rest, newline, mark: f"{mark}{newline.join([first, *rest])}".encode(),
    GOOD,
    st.lists(LINE | LINE.map(lambda line: f"{line}\r"), max_size=8).map(lambda lines: [*lines, ""]) | st.lists(LINE),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["", "\ufeff"]),
)


def source(*args, **kwargs):
    return [(task.data, task.byte_range) for task in FilePartitioningStage(*args, **kwargs).process(EmptyTask())]


class Skipped(RunObserver):
    count = 0

    def on_batch(self, report):
        self.count += report.metrics.get("skipped_lines", 0)


def read(reader):
    skipped = Skipped()
    result = Pipeline("read", [reader]).run(observers=[skipped])
    return [record for batch in result for record in batch.to_records()], skipped.count


@given(CONTENT, st.integers(1, 80), st.sampled_from([1, 7, 1 << 20]))
@example(b'{"t": ""}\n' * 3, 10, 1)  # lines and ranges begin at the same places
def test_every_line_is_read_once_for_any_size_of_ranges(tmp_path_factory, content, split, chunk):
    path = tmp_path_factory.mktemp("in") / "a.jsonl"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranges, "_CHUNK", chunk)
        read_split = read(JsonlReader(path, on_bad_line="skip", split=split))
    assert read_split == read(JsonlReader(path, on_bad_line="skip", split=None))
    stops = [each[1] for _, each in source(path, split=split) if each]
    assert len(stops) == (0 if len(content) <= split else -(-len(content) // split))


def test_a_broken_line_of_a_range_is_named_by_its_offset(tmp_path, data_error):
    path = tmp_path / "a.jsonl"
    content = b'{"a": "' + b"x" * 3000 + b'"}\n' + b'{"a": 1}\n' * 200
    for broken, problem in (
        (b"broken\n", "is not JSON"),
        (b'{"a": "\xff"}\n', "is not utf-8: byte 0xff at offset 4817"),
    ):
        path.write_bytes(content + broken + b'{"a": 1}\n' * 200)
        error = data_error(JsonlReader(path, split="1kB"))
        assert error.message.startswith(f"the line at byte {len(content)} {problem}")
        assert error.field == str(path)
    path.write_bytes(b"broken\n" + content)
    assert data_error(JsonlReader(path, split="1kB")).message.startswith("line 1 is not JSON")


def test_readers_split_files_above_64_mib_by_default(tmp_path):
    limit = 64 << 20
    for name, size in (("a.jsonl", limit), ("b.jsonl", 2 * limit + 1), ("c.jsonl.gz", limit + 1), ("d.jsonl", 1)):
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, size)  # a hole, which takes no space
    parts = [(0, limit), (limit, 2 * limit), (2 * limit, 2 * limit + 1)]
    for reader in (JsonlReader, ParquetReader):
        (partitioning, _) = reader(tmp_path, files_per_partition=3, file_extensions=None).decompose()
        tasks = list(partitioning.process(EmptyTask()))
        assert [(task.data, task.byte_range) for task in tasks] == [
            ([f"{tmp_path}/a.jsonl"], None),
            *(([f"{tmp_path}/b.jsonl"], part) for part in parts),
            ([f"{tmp_path}/c.jsonl.gz", f"{tmp_path}/d.jsonl"], None),
        ]
        assert tasks[0].get_deterministic_id() == FileGroupTask([f"{tmp_path}/a.jsonl"]).get_deterministic_id()
        assert len({task.get_deterministic_id() for task in tasks}) == 5
        (partitioning, _) = reader(tmp_path, file_extensions=None, split=None).decompose()
        assert len(list(partitioning.process(EmptyTask()))) == 4
    assert {each for _, each in source(tmp_path)} == {None}  # a custom reader may not support ranges
    assert {each for _, each in source(tmp_path / "a.jsonl", split="1GiB", blocksize=limit // 2)} == {
        (0, limit // 2),
        (limit // 2, limit),
    }


def test_ranges_report_their_bytes_so_that_bundles_stay_small(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"n": 1}\n' * 10)
    tasks = [*FilePartitioningStage(tmp_path, split=50).process(EmptyTask())]
    assert [task.num_bytes for task in tasks] == [50, 40]
    assert within_bytes(tasks, BundlePlan(max_bytes=64)) == tasks[:1]
    assert FileGroupTask(["whole"]).num_bytes == 0


def test_compressed_files_and_archives_are_not_split(tmp_path, data_error):
    lines = b'{"a": 1}\n' * 50
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.jsonl", lines)
    (tmp_path / "odd.bin").write_bytes(gzip.compress(lines, compresslevel=0))
    assert source(f"zip://*.jsonl::{tmp_path}/x.zip", split=10)[0][1] is None
    assert len(read(JsonlReader(tmp_path / "odd.bin", compression="gzip", split=10))[0]) == 50
    error = data_error(FilePartitioningStage(tmp_path / "odd.bin", split=10), JsonlReaderStage(compression="gzip"))
    assert error.message.startswith("cannot read a byte range of a file compressed with gzip")
    assert "split=None" in error.hint


def test_a_stream_that_cannot_seek_is_read_up_to_the_range():
    receiving, sending = os.pipe()
    with os.fdopen(receiving, "rb") as stream, os.fdopen(sending, "wb") as out:
        content = b"0123456789\n" * 1000
        writer = threading.Thread(target=lambda: (out.write(content), out.close()))
        writer.start()
        first, chunks = ranges.lines_from(stream, 5000, 5100)
        assert (first, b"".join(chunks)) == (5005, content[5005:])
        writer.join()


@pytest.mark.parametrize("reader", [JsonlReader, ParquetReader])
def test_a_file_that_became_smaller_is_an_error(tmp_path, data_error, reader):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' * 50)
    group = FileGroupTask([str(path)], byte_range=(100, 460))
    error = data_error(reader(path).decompose()[1], initial_tasks=[group])
    assert error.message == "the file is smaller than when it was listed"
    assert error.field == str(path)


def test_data_appended_to_a_split_file_after_listing_is_not_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' * 50)
    groups = [FileGroupTask(files, byte_range=each) for files, each in source(path, split=200)]
    with path.open("ab") as more:
        more.write(b'{"a": 2}\n' * 50)
    result = Pipeline("read", [JsonlReader(path).decompose()[1]]).run(initial_tasks=groups)
    assert [record["a"] for task in result for record in task.to_records()] == [1] * 50


def test_ranges_are_separate_tasks_in_outputs_and_checkpoints(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"".join(b'{"n": %d}\n' % n for n in range(100)))
    pipeline = Pipeline("copy", [JsonlReader(path, split=300), JsonlWriter(tmp_path / "out")])
    first = pipeline.run(checkpoint=tmp_path / "checkpoint")
    assert len({task.data[0] for task in first}) == len(first) == 4
    assert sorted(record["n"] for record in read(JsonlReader(tmp_path / "out"))[0]) == list(range(100))
    with path.open("ab") as more:
        more.write(b'{"n": 100}\n')
    again = pipeline.run(checkpoint=tmp_path / "checkpoint")
    assert again.stages[-1].tasks_in == 1  # the last range has become longer
    assert len(list(again)) == 4
    listing = Pipeline("list", [FilePartitioningStage(path, split=300), processing_stage()(lambda task: task)])
    assert len(listing.run(checkpoint=tmp_path / "other")) == 4
    assert list(listing.run(checkpoint=tmp_path / "other")) == []  # a range is not a written file


@given(st.integers(1, 60), st.integers(1, 20), st.integers(40, 3000), st.sampled_from([None, 7]))
def test_every_row_group_is_read_once_for_any_size_of_ranges(tmp_path_factory, rows, group_size, split, batch):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path_factory.mktemp("in") / "a.parquet"
    table = pa.table({"n": list(range(rows)), "text": [f"text {n % 3}" for n in range(rows)]})
    pq.write_table(table, path, row_group_size=group_size)
    tasks = list(FilePartitioningStage(path, split=split).process(EmptyTask()))
    assert len(tasks) == -(-path.stat().st_size // split)
    reader = ParquetReaderStage(["n"], records_per_batch=batch)
    made = [reader.process(task) for task in tasks]
    batches = [each for of_a_range in made for each in (of_a_range if batch else [of_a_range]) if each]
    assert [record["n"] for each in batches for record in each.to_records()] == list(range(rows))
    assert all(each.num_items <= batch for each in batches if batch)
