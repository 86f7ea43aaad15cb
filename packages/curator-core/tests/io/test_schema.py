# SPDX-License-Identifier: Apache-2.0
"""The files of a ParquetWriter form one data set, and ParquetReader reads files that differ."""

from __future__ import annotations

import functools
import os
import threading
from collections import Counter
from datetime import date, datetime
from itertools import pairwise
from pathlib import Path

import duckdb
import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from tests.waiting import DEADLINE_S, wait_until

from curator_core import DocumentBatch, FileGroupTask, LocalExecutor, Pipeline, processing_stage
from curator_core.io import ParquetReader, ParquetReaderStage, ParquetWriter
from curator_core.io.settled import SettledSchema

# Difficult columns: one that is null at first, one that turns out to have fractions, one that appears late or not
# always, and lists that are empty at first.
BATCHES = [
    [{"id": 0, "text": None, "score": 1, "tags": []}],
    [{"id": 1, "text": "x", "score": 0.5, "tags": ["t"]}],
    [{"id": 2, "text": None, "score": None, "late": 7}],
    [{"id": 3}],
]
RECORDS = [
    {"id": 0, "text": None, "score": 1.0, "tags": [], "late": None},
    {"id": 1, "text": "x", "score": 0.5, "tags": ["t"], "late": None},
    {"id": 2, "text": None, "score": None, "tags": None, "late": 7},
    {"id": 3, "text": None, "score": None, "tags": None, "late": None},
]
DEEP = functools.reduce(lambda inner, _: [inner], range(60), 1)  # Arrow takes it, and Parquet does not
TYPES = {"id": "int64", "text": "string", "score": "double", "tags": pa.list_(pa.string()), "late": "int64"}


def write(out, *batches, **options):
    pipeline = Pipeline("write", [ParquetWriter(out, **options)])
    return pipeline.run(initial_tasks=[DocumentBatch(batch) for batch in batches])


def parquet_takes(value):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": [value]}), sink)
    try:
        pq.read_schema(pa.BufferReader(sink.getvalue()))
    except OSError:
        return False
    return True


def settled(out):
    """Read the settled schema as in the guide."""
    return pq.read_schema(max(Path(out, "_schema").iterdir()))


def with_duckdb(out):
    query = f"SELECT * FROM read_parquet('{out}/*.parquet', union_by_name = true) ORDER BY id"  # noqa: S608 - a path from this test
    with duckdb.connect() as connection:
        cursor = connection.execute(query)
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def with_pandas(out, schema):
    frame = pd.read_parquet(out, schema=schema).sort_values("id")
    return pa.Table.from_pandas(frame, schema, preserve_index=False).to_pylist()


def types_of(out):
    return {path.name: pq.read_schema(path) for path in sorted(Path(out).glob("*.parquet"))}


# --- the writer -----------------------------------------------------------------------------------------


def test_the_settled_schema_is_read_by_other_tools(tmp_path, caplog):
    write(tmp_path, *BATCHES)
    schema = settled(tmp_path)
    assert sum(batch.num_items for batch in Pipeline("p", [ParquetReader(tmp_path)]).run()) == len(RECORDS)
    assert "skipped" not in caplog.text  # the directory of the schema is not data
    assert schema.equals(pa.schema(TYPES))
    assert ds.dataset(tmp_path, schema=schema).to_table().to_pylist() == RECORDS
    assert with_duckdb(tmp_path) == RECORDS
    assert with_pandas(tmp_path, schema) == RECORDS
    # A file has all columns that are known when it is written, even if its own records have fewer.
    assert types_of(tmp_path)["0.parquet"].field("text").type == pa.null()
    assert types_of(tmp_path)["3.parquet"].equals(schema)


@pytest.mark.parametrize("schema", [TYPES, pa.schema(TYPES)], ids=["mapping", "schema"])
def test_files_of_a_declared_schema_match_without_further_options(tmp_path, schema):
    write(tmp_path, *BATCHES, schema=schema)
    assert all(found.equals(pa.schema(TYPES)) for found in types_of(tmp_path).values())
    assert {path.suffix for path in tmp_path.iterdir()} == {".parquet"}
    assert ds.dataset(tmp_path).to_table().to_pylist() == RECORDS
    assert with_duckdb(tmp_path) == RECORDS
    assert with_pandas(tmp_path, pa.schema(TYPES)) == RECORDS


def test_several_processes_settle_on_one_schema(tmp_path):
    here = tmp_path / ".here"  # readers of the directory skip it
    here.mkdir()

    @processing_stage()
    def meet(task):
        (here / str(os.getpid())).touch()
        wait_until(lambda: len(list(here.iterdir())) == 2, "two processes at work")
        return task

    values = [1, None, 1.5, 2]
    batches = [[{"id": n, "n": values[n % 4], f"of_{n % 7}": str(n)}] for n in range(60)]
    Pipeline("write", [meet, ParquetWriter(tmp_path)]).run(
        LocalExecutor(workers=2), initial_tasks=[DocumentBatch(batch) for batch in batches]
    )
    schema = settled(tmp_path)
    table = ds.dataset(tmp_path, schema=schema).to_table().sort_by("id")
    assert table.column("n").to_pylist() == [batch[0]["n"] for batch in batches]
    assert all(table.column(f"of_{n % 7}")[n].as_py() == str(n) for n in range(60))
    assert set(schema.names) == {"id", "n", *(f"of_{n}" for n in range(7))}
    # Each version contains all columns of earlier versions.
    versions = [pq.read_schema(path) for path in sorted((tmp_path / "_schema").iterdir())]
    assert all(set(before.names) <= set(after.names) for before, after in pairwise(versions))


def test_no_simultaneous_promotion_is_lost(tmp_path):
    fs, start, failed = fsspec.filesystem("file"), threading.Barrier(8, timeout=DEADLINE_S), []

    def promote(number):
        log, mine = SettledSchema(fs, str(tmp_path), str(tmp_path)), pa.field(f"of_{number}", pa.int64())
        start.wait()
        while not log.promote(pa.schema([*(log.schema or ()), mine])):
            failed.append(number)

    threads = [threading.Thread(target=promote, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    last = SettledSchema(fs, str(tmp_path), str(tmp_path)).look()
    assert Counter(last.names) == Counter(f"of_{number}" for number in range(8))
    assert len(failed) <= 8 * 7  # each time another thread succeeded
    versions = [path.name for path in (tmp_path / "_schema").iterdir()]
    assert sorted(versions) == [f"{number:06}" for number in range(1, 9)]  # and no incomplete files


def test_a_resumed_run_keeps_the_settled_schema(tmp_path, memory_url):
    for out in (str(tmp_path), memory_url):
        write(out, *BATCHES[:2])
        result = Pipeline("more", [ParquetReader(f"{out}/0.parquet"), ParquetWriter(out)]).run()
        with fsspec.open(result[0].data[0]) as stream:
            assert pq.read_schema(stream).field("text").type == pa.string()


def test_a_record_that_cannot_be_promoted_is_named(tmp_path, data_error):
    write(tmp_path, [{"n": 1, "d": date(2024, 1, 1)}])
    before = types_of(tmp_path)
    for records, column, types in (
        ([{"n": 2}, {"n": "two"}], "n", "of type string in column 'n' of type int64"),
        ([{"n": None}, {"n": "two"}], "n", "of type string in column 'n' of type int64"),
        ([{"n": 2}, {"d": datetime(2024, 1, 1)}], "d", "of type timestamp[us] in column 'd' of type date32[day]"),
        (pa.table({"n": [None, "two"]}), "n", "of type string in column 'n' of type int64"),
    ):
        error = data_error(ParquetWriter(tmp_path), initial_tasks=[DocumentBatch([]), DocumentBatch(records)])
        assert error.message.startswith(f"the records cannot be written as Parquet: record 1 has a value {types}")
        assert error.field == column
        assert f"{tmp_path}/_schema" in error.hint
    assert types_of(tmp_path) == before


def test_bad_records_are_skipped_and_counted(tmp_path, caplog):
    batches = [
        [{"n": 1}, {"n": "x"}, {"n": 2}, {"n": 2**70}, {"n": 3}],  # wrong type, and too large
        [{"n": "y"}, {"n": None}, {"n": 4, "meta": {}}, {}],  # violates the settled type; not supported by Parquet
        [{"n": "z"}],
        pa.table({"n": pa.array([5.0, 2.0**60, 2.5], pa.float64())}),
        pa.table({"n": pa.array([2**53 + 1, 6])}),  # now a column of fractions
        [{"n": 7}, "text", {8: 8}],
    ]
    result = write(tmp_path, *batches, on_bad_record="skip")
    table = ds.dataset(tmp_path, schema=settled(tmp_path)).to_table()
    assert table.column("n").to_pylist() == [1, 2, 3, None, None, 5, 2**60, 2.5, 6, 7]
    assert result.stages[0].tasks_filtered == 1
    skipped = [task.stage_perf[0].custom_metrics.get("skipped_records", 0) for task in result]
    assert skipped == [2, 2, 0, 1, 2]
    assert "task 0: records skipped: 2; the first one, record 1, has a value of type string" in caplog.text


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("int8", 127, 128),
        ("int8", 1.0, 1.5),
        ("uint64", 2**64 - 1, -1),
        ("double", 2**53, 2**53 + 1),
        ("float", 0.5, 1e300),
        ("string", "x", 5),
        ("timestamp[ms]", datetime(2024, 1, 1), datetime(2024, 1, 1, 0, 0, 0, 5)),
        ("timestamp[ns]", datetime(2024, 1, 1), datetime(3000, 1, 1)),
        ("date32", date(2024, 1, 1), datetime(2024, 1, 1, 5)),
        (pa.struct([("a", pa.int64())]), {"a": 1}, {"a": 1, "b": 2}),
        (pa.map_(pa.string(), pa.int64()), {"a": 1}, {"a": "x"}),
        (pa.list_(pa.int8()), [1], [1000]),
    ],
)
@pytest.mark.parametrize("form", [list, pa.Table.from_pylist])
def test_conversion_to_a_declared_type_loses_nothing(tmp_path, data_error, kind, good, bad, form):
    schema = {"a": kind}
    kind = pa.schema(schema).field("a").type
    if form is list or not (pa.types.is_map(kind) or good == 2**64 - 1):  # tables of other types cannot contain these
        write(tmp_path, form([{"a": good}, {"a": None}]), schema=schema)
        expected = pa.array([good, None], kind).to_pylist()
        assert pq.read_table(tmp_path / "0.parquet").column("a").to_pylist() == expected
        assert pq.read_schema(tmp_path / "0.parquet").field("a").type == kind
    batch = DocumentBatch(form([{"a": None}, {"a": bad}]))
    error = data_error(ParquetWriter(tmp_path / "none", schema=schema), initial_tasks=[batch])
    assert "record 1 has a value" in error.message
    assert str(kind) in error.message
    assert error.field == "a"
    assert list((tmp_path / "none").iterdir()) == []


def test_a_declared_schema_determines_the_columns(tmp_path, data_error):
    batch = DocumentBatch([{"a": 1}, {"a": 2, "b": "x"}])
    error = data_error(ParquetWriter(tmp_path, schema={"a": "int64"}), initial_tasks=[batch])
    assert "record 1 has a column 'b' of type string, which the schema does not have" in error.message
    write(tmp_path, batch.data, schema={"a": "int64", "b": "string"}, fields=["a"])
    assert types_of(tmp_path)["0.parquet"].names == ["a"]
    required = pa.schema([pa.field("a", pa.int64(), nullable=False)])
    batch = DocumentBatch([{"a": 1}, {"a": None}])
    error = data_error(ParquetWriter(tmp_path, schema=required), initial_tasks=[batch])
    assert "record 1 has a value of type int64 in column 'a' of type int64: nulls are not allowed" in error.message


def test_values_that_parquet_cannot_represent_are_named(tmp_path, data_error):
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    unwritable = "record 1 has a value in column 'a' that cannot be written:"
    far = pa.table({"a": pa.array([0, 10**17], pa.timestamp("s"))})  # Parquet has no seconds, only milliseconds
    for data, expected in (
        ([{"a": None}, {"a": {}}], f"{unwritable} Parquet does not support dicts without keys"),
        ([{"a": None}, {"a": [{}]}], f"{unwritable} Parquet does not support dicts without keys"),
        ([{"a": {"b": 1}}, {"a": {"c": {}}}], f"{unwritable} Parquet does not support dicts without keys"),
        (pa.table({"a": [None, {}]}), f"{unwritable} Parquet does not support dicts without keys"),
        (far, "record 1 has a value of type timestamp[s] in column 'a'"),
        (twice, "several columns are called 'a'"),
    ):
        error = data_error(ParquetWriter(tmp_path), initial_tasks=[DocumentBatch(data)])
        assert expected in error.message
        assert error.field == "a"
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        (None, {}),
        ([], [{}]),
        ({"c": 1}, {"c": 2, "d": {}}),
        ({"c": 1}, {"c": 2, b"c": 3}),
        pytest.param([[]], DEEP, marks=pytest.mark.skipif(parquet_takes(DEEP), reason="this pyarrow has no limit")),
    ],
)
def test_only_records_that_cannot_be_written_are_skipped(tmp_path, good, bad):
    result = write(tmp_path, [{"a": bad}, {"a": good}, {"a": bad}, {"a": good, "b": 1}], on_bad_record="skip")
    assert pq.read_table(tmp_path / "0.parquet").to_pylist() == [{"a": good, "b": None}, {"a": good, "b": 1}]
    assert result[0].stage_perf[0].custom_metrics["skipped_records"] == 2


def test_a_record_with_a_name_that_cannot_be_encoded_is_skipped(tmp_path):
    result = write(tmp_path, [{"a": 1}, {"a": 2, "half \ud83d": 1}, {"a": 3}], on_bad_record="skip")
    assert pq.read_table(tmp_path / "0.parquet").to_pylist() == [{"a": 1}, {"a": 3}]
    assert result[0].stage_perf[0].custom_metrics["skipped_records"] == 1


def test_a_broken_schema_file_is_named(tmp_path, data_error):
    write(tmp_path, [{"a": 1}])
    (tmp_path / "_schema" / "000001").write_bytes(b"PAR1")
    error = data_error(ParquetWriter(tmp_path), initial_tasks=[DocumentBatch([{"a": 1}])])
    assert error.field == f"{tmp_path}/_schema/000001"


# --- the reader -----------------------------------------------------------------------------------------

DIFFERENT = [
    {"n": pa.array([1], pa.int32()), "s": pa.array(["a"]), "t": pa.array([1], pa.timestamp("ms")), "z": pa.nulls(1)},
    {"n": pa.array([0.5]), "s": pa.array(["b"], pa.large_string()), "t": pa.array([2], pa.timestamp("us"))},
    {"n": pa.array([3]), "s": pa.nulls(1), "t": pa.array([3], pa.timestamp("ns")), "z": pa.array(["z"])},
]
for columns, texts in zip(DIFFERENT, (["x"], ["x"], ["y"]), strict=True):
    columns["d"] = pa.array(texts)
DIFFERENT[1]["d"] = DIFFERENT[1]["d"].dictionary_encode()  # as pandas writes categories
JOINED = pa.schema({"n": "double", "s": "large_string", "t": "timestamp[ns]", "z": "string", "d": "string"})


@pytest.fixture
def different(tmp_path):
    for number, columns in enumerate(DIFFERENT):
        pq.write_table(pa.table(columns), tmp_path / f"{number}.parquet")
    return tmp_path


@pytest.mark.parametrize("records_per_batch", [None, 2, 3])
def test_the_types_of_a_group_are_merged(different, records_per_batch):
    tasks = Pipeline("read", [ParquetReader(different, 3, records_per_batch=records_per_batch)]).run()
    if records_per_batch != 2:
        assert [task.data.schema for task in tasks] == [JOINED]
    table = pa.concat_tables([task.data for task in tasks], promote_options="permissive")
    assert table.column("n").to_pylist() == [1, 0.5, 3]
    assert table.column("s").to_pylist() == ["a", "b", None]
    assert table.column("t").cast(pa.int64()).to_pylist() == [1_000_000, 2_000, 3]
    assert table.column("z").to_pylist() == [None, None, "z"]
    assert table.column("d").to_pylist() == ["x", "x", "y"]


def test_a_value_that_does_not_fit_the_merged_type_is_named(tmp_path, data_error):
    pq.write_table(pa.table({"n": [0.5]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"n": [1, 2**53 + 1]}), tmp_path / "b.parquet")
    error = data_error(ParquetReader(tmp_path, 2))
    assert "do not form one table: record 1 has a value of type int64 in column 'n' of type double" in error.message


@pytest.mark.parametrize("options", [{}, {"records_per_batch": 1}, {"files_per_partition": 3}])
def test_every_task_of_a_reader_has_the_declared_schema(different, options):
    schema = {"s": "string", "n": pa.float32(), "more": "int64"}
    tasks = Pipeline("read", [ParquetReader(different, schema=schema, **options)]).run()
    assert all(task.data.schema == pa.schema(schema) for task in tasks)
    records = [record for task in tasks for record in task.to_records()]
    assert records == [{"s": s, "n": n, "more": None} for s, n in (("a", 1), ("b", 0.5), (None, 3))]


def test_records_that_do_not_fit_a_declared_schema_are_named_or_skipped(tmp_path, data_error):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"n": [1, 2, 300, 4], "s": ["a", "b", "c", "d"]}), path)
    for options in ({}, {"records_per_batch": 2}):
        error = data_error(ParquetReader(path, schema={"n": "int8"}, **options))
        assert error.message.startswith(f"{path} does not fit the schema: record 2 has a value of type int64 in column")
        assert error.field == "n"
        stage = ParquetReaderStage(schema={"n": "int8"}, on_bad_record="skip", **options)
        tasks = Pipeline("read", [stage]).run(initial_tasks=[FileGroupTask([str(path)])])
        assert [record["n"] for task in tasks for record in task.to_records()] == [1, 2, 4]
        assert tasks[-1].stage_perf[-1].custom_metrics == {"skipped_records": 1}


def test_a_file_with_duplicate_column_names_is_named(tmp_path, data_error):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]), path)
    for options in ({}, {"fields": ["a"]}, {"schema": {"a": "int64"}}):
        error = data_error(ParquetReader(path, **options))
        assert error.message.startswith(f"several columns of {path} are called 'a'")
