# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pickle
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta

import pytest

from curator_core import ConfigurationError, DataError, DocumentBatch, FileGroupTask


def nested(kind, levels):
    value = 1
    for _ in range(levels):
        value = [value] if kind is list else {"a": value}
    return value


def endless():
    value = []
    value += [value, value]
    return value


RECORDS = [{"text": "a", "n": 1}, {"text": "b", "lang": "en"}]


class TestFileGroupTask:
    def test_the_same_paths_give_the_same_id(self):
        assert FileGroupTask(["a", "b"]).get_deterministic_id() == FileGroupTask(["a", "b"]).get_deterministic_id()

    @pytest.mark.parametrize("other", [["b", "a"], ["ab"], ["a"], [], ["a", "b", ""], ['a", "b']])
    def test_other_paths_give_another_id(self, other):
        assert FileGroupTask(other).get_deterministic_id() != FileGroupTask(["a", "b"]).get_deterministic_id()

    def test_the_id_of_paths_is_the_same_in_every_release(self):
        # Checkpoints and output files are named after it.
        assert FileGroupTask(["a", "b"]).get_deterministic_id() == "files-85d56c7ff30074b1e744"
        assert FileGroupTask(["a"], byte_range=(0, 9)).get_deterministic_id() == "files-51ad3dc4950a21dfa50d"

    def test_each_range_has_its_own_id(self):
        ranges = [None, (0, 9), (0, 8), (1, 9), (9, 18)]
        assert len({FileGroupTask(["a"], byte_range=each).get_deterministic_id() for each in ranges}) == 5

    @pytest.mark.parametrize("paths", [[], ["a", "b"]])
    def test_a_range_needs_exactly_one_file(self, paths):
        with pytest.raises(ConfigurationError, match="one file") as raised:
            FileGroupTask(paths, byte_range=(0, 9))
        assert raised.value.field == "byte_range"

    def test_each_path_is_an_item(self):
        assert FileGroupTask(["a", "b", "c"]).num_items == 3

    def test_the_dataset_name_does_not_affect_the_id(self):
        assert FileGroupTask(["a"], "x").get_deterministic_id() == FileGroupTask(["a"], "y").get_deterministic_id()


class TestRecords:
    def test_columns_are_in_order_of_first_appearance(self):
        assert DocumentBatch(RECORDS).columns == ["text", "n", "lang"]
        assert DocumentBatch([]).columns == []

    def test_each_record_is_an_item(self):
        assert DocumentBatch(RECORDS).num_items == 2
        assert DocumentBatch([]).num_items == 0

    def test_records_are_returned_unchanged(self):
        assert DocumentBatch(RECORDS).to_records() is RECORDS

    @pytest.mark.parametrize("data", [None, "text", {"text": "a"}, 5, (), iter([])])
    def test_anything_else_is_rejected(self, data):
        with pytest.raises(ConfigurationError, match="invalid data for a DocumentBatch") as raised:
            DocumentBatch(data)
        assert raised.value.field == "data"
        assert raised.value.hint


class TestArrow:
    @pytest.fixture(autouse=True)
    def pa(self):
        return pytest.importorskip("pyarrow")

    def test_records_become_a_table_with_all_columns(self):
        table = DocumentBatch(RECORDS).to_arrow()
        assert table.column_names == ["text", "n", "lang"]
        assert table.to_pylist() == [
            {"text": "a", "n": 1, "lang": None},
            {"text": "b", "n": None, "lang": "en"},
        ]

    def test_a_table_is_returned_unchanged(self, pa):
        table = pa.table({"text": ["a", "b"]})
        batch = DocumentBatch(table)
        assert batch.to_arrow() is table
        assert batch.columns == ["text"]
        assert batch.num_items == 2
        assert batch.num_bytes == table.nbytes > 0
        assert batch.to_records() == [{"text": "a"}, {"text": "b"}]

    def test_records_survive_conversion_to_arrow_and_back(self):
        rows = [{"text": "a", "n": 1}, {"text": "b", "n": 2}]
        assert DocumentBatch(DocumentBatch(rows).to_arrow()).to_records() == rows

    def test_an_empty_list_makes_an_empty_table(self):
        assert DocumentBatch([]).to_arrow().num_rows == 0

    @pytest.mark.parametrize(
        ("records", "column", "number"),
        [
            ([{"a": 1}, {"a": "x"}], "a", 1),
            ([{"a": "x"}, {"a": None}, {"a": 1}], "a", 2),
            ([{"a": True}, {"a": 1}], "a", 1),
            ([{"a": [1]}, {"a": ["x"]}], "a", 1),
            ([{"a": 1}, {"a": 2**63}], "a", 1),  # integers that do not fit
            ([{"a": -(2**63) - 1}], "a", 0),
            ([{"a": 1.5}, {"a": 2**53 + 1}], "a", 1),
            ([{"a": timedelta.max}], "a", 0),
            ([{"a": date(2024, 1, 1)}, {"a": datetime(2024, 1, 1, 5)}], "a", 1),  # pyarrow alone truncates the hour
            ([{"a": {"b": date(2024, 1, 1)}}, {"a": {"b": datetime(2024, 1, 1, 5)}}], "a", 1),
            ([{"a": datetime(2024, 1, 1)}, {"a": datetime(2024, 1, 1, tzinfo=UTC)}], "a", 1),
            ([{"a": "x"}, {"a": "half \ud83d"}], "a", 1),
            ([{"a": 1}, {"a": 2, "b": object()}], "b", 1),
            ([{}, {}], "data", 0),
            ([{"a": 1}, "text"], "data", 1),
            ([{"a": 1}, {5: "x"}], "5", 1),
            ([{"1": 1}, {"1": 1, 1: 2}], "1", 1),
            ([{"a": 1}, {"half \ud83d": 1}], "half \ud83d", 1),
            ([{"a": {"b": 1}}, {"a": {"half \ud83d": 1}}], "a", 1),
            ([{"a": {"b": 1}}, {"a": {"b": 1, b"b": 2}}], "a", 1),  # pyarrow alone takes them for one key
            ([{"a": [{"1": 1}]}, {"a": [{"1": 1, 1: 2}]}], "a", 1),
            ([{"a": [1]}, {"a": nested(list, 5000)}], "a", 1),  # pyarrow alone crashes
            ([{"a": {"a": 1}}, {"a": nested(dict, 5000)}], "a", 1),
            ([{"a": [1]}, {"a": endless()}], "a", 1),
        ],
    )
    def test_a_record_that_arrow_cannot_represent_is_named(self, records, column, number):
        with pytest.raises(
            DataError, match=f"cannot convert the records to an Arrow table: record {number} "
        ) as raised:
            DocumentBatch(records).to_arrow()
        assert raised.value.field == column
        assert raised.value.given
        assert "column" in raised.value.hint
        str(raised.value).encode()

    def test_data_nested_a_hundred_levels_deep_is_converted(self):
        record = {"a": nested(dict, 50), "b": nested(list, 100)}
        assert DocumentBatch(DocumentBatch([record]).to_arrow()).to_records() == [record]
        assert DocumentBatch([{"a": {}}]).to_arrow().to_pylist() == [{"a": {}}]

    def test_types_are_promoted(self, pa):
        records = [{"n": 1, "t": {"b": 1}}, {"n": None, "t": None}, {"n": 1.5, "t": {"c": "x"}}]
        table = DocumentBatch(records).to_arrow()
        assert table.schema.types == [pa.float64(), pa.struct([("b", pa.int64()), ("c", pa.string())])]

    @pytest.mark.parametrize("unit", ["timestamp", "date", "duration"])
    def test_a_value_that_python_cannot_represent_is_named(self, pa, unit):
        types = {"timestamp": pa.timestamp("s"), "date": pa.date32(), "duration": pa.duration("s")}
        far = pa.array([0, 2**31 - 1 if unit == "date" else 10**15], pa.int32() if unit == "date" else pa.int64())
        batch = DocumentBatch(pa.table({"ok": [1, 2], "when": far.cast(types[unit])}))
        with pytest.raises(DataError, match="be converted to records: record 1 has a value in column 'when'") as raised:
            batch.to_records()
        assert raised.value.field == "when"

    def test_duplicate_column_names_are_errors(self, pa):
        table = pa.Table.from_arrays([pa.array([1]), pa.array([2]), pa.array([3])], names=["a", "b", "a"])
        with pytest.raises(DataError, match="several columns are called 'a': each record, from record 0 on") as raised:
            DocumentBatch(table).to_records()
        assert raised.value.field == "a"

    def test_nanoseconds_are_kept_with_pandas(self, pa):
        import pandas as pd

        stamp, span = pd.Timestamp("2024-01-01 00:00:00.000000001", tz="UTC"), pd.Timedelta(1)
        table = DocumentBatch([{"t": None, "d": span}, {"t": stamp, "d": span}]).to_arrow()
        assert table.schema.types == [pa.timestamp("ns", "UTC"), pa.duration("ns")]
        assert DocumentBatch(table).to_records()[1] == {"t": stamp, "d": span}
        with pytest.raises(DataError, match="record 1 has a value in column 't'"):
            DocumentBatch([{"t": stamp}, {"t": [stamp]}]).to_arrow()

    def test_nanoseconds_without_pandas_are_errors(self):
        code = """
import sys

class NotInstalled:
    def find_spec(self, name, *_):
        if name == "pandas":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NotInstalled())
import pyarrow as pa
from curator_core import DataError, DocumentBatch
try:
    DocumentBatch(pa.table({"t": pa.array([1000, 1], pa.timestamp("ns"))})).to_records()
except DataError as error:
    print(error.message.partition(":")[2].partition(" that")[0], error.field)
"""
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        assert done.stdout.strip() == "record 1 has a value in column 't' t"

    def test_a_table_can_be_pickled(self, pa):
        batch = DocumentBatch(pa.table({"text": ["a"]}))
        assert pickle.loads(pickle.dumps(batch)).to_records() == [{"text": "a"}]


def test_a_slice_is_pickled_without_its_table():
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"text": ["a long text"] * 10_000, "number": range(10_000)})
    batch = DocumentBatch(data=table.slice(5, 10), dataset_name="d")
    again = pickle.loads(pickle.dumps(batch))
    assert again == batch
    assert again.data.equals(batch.data)
    assert again.dataset_name == "d"
    assert len(pickle.dumps(batch)) < 2_000
    assert batch.data.get_total_buffer_size() > 100_000  # this one is unchanged


def test_a_whole_table_is_not_copied_for_pickling():
    pa = pytest.importorskip("pyarrow")
    buffers = []
    table = pa.table({"number": range(10_000)})
    pickle.dumps(DocumentBatch(data=table), protocol=5, buffer_callback=buffers.append)
    assert sum(buffer.raw().nbytes for buffer in buffers) >= 80_000
