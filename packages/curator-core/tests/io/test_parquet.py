# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pickle
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator_core import DocumentBatch, FileGroupTask, Pipeline
from curator_core.io import JsonlWriter, ParquetReader, ParquetReaderStage, ParquetWriter

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402 - after the check that it is installed

ROW = st.fixed_dictionaries(
    {
        "text": st.none() | st.text(),
        "count": st.none() | st.integers(-(2**63), 2**63 - 1),
        "score": st.floats(allow_nan=False),
        "tags": st.lists(st.text(max_size=3), max_size=3),
    }
)


def write(path, **columns):
    pq.write_table(pa.table(columns), path)


def read(path, **options):
    return [batch.to_records() for batch in Pipeline("read", [ParquetReader(path, **options)]).run()]


@given(st.lists(ROW, min_size=1, max_size=8), st.sampled_from(["snappy", "zstd", "none"]))
def test_written_data_is_read_back(tmp_path_factory, records, compression):
    out = tmp_path_factory.mktemp("out")
    Pipeline("write", [ParquetWriter(out, compression=compression)]).run(initial_tasks=[DocumentBatch(records)])
    assert read(out) == [records]


def test_a_table_stays_a_table_with_its_types(tmp_path):
    table = pa.table({"t": pa.array([datetime(2024, 1, 1, tzinfo=UTC)]), "i": pa.array([1], pa.int8())})
    Pipeline("write", [ParquetWriter(tmp_path)]).run(initial_tasks=[DocumentBatch(table)])
    (batch,) = Pipeline("read", [ParquetReader(tmp_path)]).run()
    assert batch.data.equals(table)
    assert batch.num_items == 1
    assert batch.num_bytes > 0


def test_a_column_that_appears_late_is_written(tmp_path):
    Pipeline("write", [ParquetWriter(tmp_path)]).run(initial_tasks=[DocumentBatch([{"a": 1}, {"b": "x"}])])
    assert read(tmp_path) == [[{"a": 1, "b": None}, {"a": None, "b": "x"}]]


def test_fields_are_in_the_requested_order(tmp_path):
    write(tmp_path / "a.parquet", a=[1], b=[2], c=[3])
    for options in ({}, {"records_per_batch": 10}):
        (batch,) = Pipeline("read", [ParquetReader(tmp_path, fields=["c", "a"], **options)]).run()
        assert batch.columns == ["c", "a"]


def test_writers_write_the_selected_fields(tmp_path):
    table = pa.table({"a": [1], "b": [2], "c": [3]})
    Pipeline("write", [ParquetWriter(tmp_path, fields=["c", "a"])]).run(initial_tasks=[DocumentBatch(table)])
    assert read(tmp_path) == [[{"c": 3, "a": 1}]]
    Pipeline("write", [JsonlWriter(tmp_path, fields=["b"])]).run(initial_tasks=[DocumentBatch(table)])
    assert (tmp_path / "0.jsonl").read_text() == '{"b":2}\n'


def test_the_files_of_a_group_form_one_table(tmp_path):
    write(tmp_path / "a.parquet", n=[1, 2])
    write(tmp_path / "b.parquet", n=[3], extra=["x"])
    (records,) = read(tmp_path, files_per_partition=2)
    assert records == [{"n": 1, "extra": None}, {"n": 2, "extra": None}, {"n": 3, "extra": "x"}]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=4), st.integers(1, 25))
def test_records_per_batch_spans_row_groups_and_files(tmp_path_factory, lengths, size):
    root = tmp_path_factory.mktemp("in")
    rows = iter(range(1000))
    paths = []
    for number, length in enumerate(lengths):
        paths.append(str(root / f"{number}.parquet"))
        table = pa.table({"n": pa.array([next(rows) for _ in range(length)], pa.int64())})
        pq.write_table(table, paths[-1], row_group_size=7)
    result = Pipeline("read", [ParquetReaderStage(records_per_batch=size)]).run(initial_tasks=[FileGroupTask(paths)])
    sizes = [batch.num_items for batch in result]
    assert [record["n"] for batch in result for record in batch.to_records()] == list(range(sum(lengths)))
    assert all(s == size for s in sizes[:-1])
    assert all(1 <= s <= size for s in sizes[-1:])


def test_a_batch_pickles_without_the_rows_of_the_others(tmp_path):
    write(tmp_path / "a.parquet", text=["x" * 1000 + str(i) for i in range(1000)])
    batches = Pipeline("read", [ParquetReader(tmp_path, records_per_batch=10)]).run()
    assert len(batches) == 100
    assert max(len(pickle.dumps(batch)) for batch in batches) < 20_000


@pytest.mark.parametrize("options", [{}, {"records_per_batch": 5}])
def test_a_file_without_records_is_counted_as_filtered(tmp_path, options):
    write(tmp_path / "a.parquet", n=pa.array([], pa.int64()))
    pq.ParquetWriter(tmp_path / "b.parquet", pa.schema({"n": pa.int64()})).close()  # without row groups
    result = Pipeline("read", [ParquetReader(tmp_path, **options)]).run()
    assert list(result) == []
    assert result.stages[1].tasks_filtered == 2


# --- broken input ---------------------------------------------------------------------------------------


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-30])


def damage(path):
    content = bytearray(path.read_bytes())
    content[4:200] = b"\xff" * 196
    path.write_bytes(content)


@pytest.mark.parametrize(
    "spoil", [cut_off, damage, lambda path: path.write_bytes(b""), lambda path: path.write_text("{}")]
)
@pytest.mark.parametrize("options", [{}, {"records_per_batch": 5}])
def test_a_file_that_is_not_parquet_is_an_error(tmp_path, data_error, spoil, options):
    path = tmp_path / "a.parquet"
    write(path, text=[f"some text {i}" for i in range(50)])
    spoil(path)
    error = data_error(ParquetReader(path, **options))
    assert "cannot be read" in error.message
    assert error.field == str(path)


@pytest.mark.parametrize("options", [{}, {"records_per_batch": 5}])
def test_a_missing_column_suggests_the_nearest(tmp_path, data_error, options):
    write(tmp_path / "a.parquet", text=["x"], url=["y"])
    error = data_error(ParquetReader(tmp_path, fields=["text", "ulr"], **options))
    assert error.message == "the file has no column 'ulr'"
    assert error.field == str(tmp_path / "a.parquet")
    assert error.hint == "did you mean 'url'?"


def test_incompatible_types_in_a_group_are_an_error(tmp_path, data_error):
    write(tmp_path / "a.parquet", n=[1])
    write(tmp_path / "b.parquet", n=["one"])
    error = data_error(ParquetReader(tmp_path, files_per_partition=2))
    assert "do not form one table" in error.message
    assert "a.parquet" in error.given
    assert "files_per_partition=1" in error.hint


def test_a_file_deleted_between_listing_and_reading_is_an_error(tmp_path, data_error):
    group = FileGroupTask([str(tmp_path / "gone.parquet")])
    error = data_error(ParquetReaderStage(), initial_tasks=[group])
    assert error.message == "the file does not exist"
    assert error.field == str(tmp_path / "gone.parquet")


@pytest.mark.parametrize(
    "records",
    [
        [{"a": 1}, {"a": "one"}],  # two types in a column
        [{"a": "half \ud83d"}],  # text that is not Unicode
        [{"a": 2**70}],  # too large
        [{"a": object()}],
        [{}, {}],  # Parquet does not support records without columns
    ],
)
def test_records_that_parquet_cannot_represent_are_an_error(tmp_path, data_error, records):
    error = data_error(ParquetWriter(tmp_path), initial_tasks=[DocumentBatch(records)])
    assert error.message.startswith("the records cannot be written as Parquet")
    assert list(tmp_path.iterdir()) == []
