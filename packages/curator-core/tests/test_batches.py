# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pickle

import pytest

from curator_core import ConfigurationError, DocumentBatch, FileGroupTask

RECORDS = [{"text": "a", "n": 1}, {"text": "b", "lang": "en"}]


class TestFileGroupTask:
    def test_the_same_paths_give_the_same_name(self):
        assert FileGroupTask(["a", "b"]).get_deterministic_id() == FileGroupTask(["a", "b"]).get_deterministic_id()

    @pytest.mark.parametrize("other", [["b", "a"], ["ab"], ["a"], [], ["a", "b", ""], ['a", "b']])
    def test_other_paths_give_another_name(self, other):
        assert FileGroupTask(other).get_deterministic_id() != FileGroupTask(["a", "b"]).get_deterministic_id()

    def test_the_name_is_the_same_in_every_release(self):
        # Checkpoints and output files are named by it.
        assert FileGroupTask(["a", "b"]).get_deterministic_id() == "files-85d56c7ff30074b1e744"
        assert FileGroupTask(["a"], byte_range=(0, 9)).get_deterministic_id() == "files-51ad3dc4950a21dfa50d"

    def test_each_range_has_a_name_of_its_own(self):
        ranges = [None, (0, 9), (0, 8), (1, 9), (9, 18)]
        assert len({FileGroupTask(["a"], byte_range=each).get_deterministic_id() for each in ranges}) == 5

    @pytest.mark.parametrize("paths", [[], ["a", "b"]])
    def test_a_range_is_of_one_file(self, paths):
        with pytest.raises(ConfigurationError, match="one file") as raised:
            FileGroupTask(paths, byte_range=(0, 9))
        assert raised.value.field == "byte_range"

    def test_each_path_is_an_item(self):
        assert FileGroupTask(["a", "b", "c"]).num_items == 3

    def test_the_dataset_takes_no_part_in_the_name(self):
        assert FileGroupTask(["a"], "x").get_deterministic_id() == FileGroupTask(["a"], "y").get_deterministic_id()


class TestRecords:
    def test_columns_are_in_order_of_first_appearance(self):
        assert DocumentBatch(RECORDS).columns == ["text", "n", "lang"]
        assert DocumentBatch([]).columns == []

    def test_each_record_is_an_item(self):
        assert DocumentBatch(RECORDS).num_items == 2
        assert DocumentBatch([]).num_items == 0

    def test_records_are_handed_out_as_they_are(self):
        assert DocumentBatch(RECORDS).to_records() is RECORDS

    @pytest.mark.parametrize("data", [None, "text", {"text": "a"}, 5, (), iter([])])
    def test_anything_else_is_refused(self, data):
        with pytest.raises(ConfigurationError, match="cannot be made of this") as raised:
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

    def test_a_table_is_handed_out_as_it_is(self, pa):
        table = pa.table({"text": ["a", "b"]})
        batch = DocumentBatch(table)
        assert batch.to_arrow() is table
        assert batch.columns == ["text"]
        assert batch.num_items == 2
        assert batch.num_bytes == table.nbytes > 0
        assert batch.to_records() == [{"text": "a"}, {"text": "b"}]

    def test_there_and_back_again(self):
        rows = [{"text": "a", "n": 1}, {"text": "b", "n": 2}]
        assert DocumentBatch(DocumentBatch(rows).to_arrow()).to_records() == rows

    def test_no_records_make_an_empty_table(self):
        assert DocumentBatch([]).to_arrow().num_rows == 0

    def test_values_of_different_types_are_refused(self):
        with pytest.raises(ConfigurationError, match="do not make an Arrow table") as raised:
            DocumentBatch([{"a": 1}, {"a": "x"}]).to_arrow()
        assert "column" in raised.value.hint

    def test_a_table_travels(self, pa):
        batch = DocumentBatch(pa.table({"text": ["a"]}))
        assert pickle.loads(pickle.dumps(batch)).to_records() == [{"text": "a"}]


def test_a_slice_of_a_table_travels_alone():
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"text": ["a long text"] * 10_000, "number": range(10_000)})
    batch = DocumentBatch(data=table.slice(5, 10), dataset_name="d")
    again = pickle.loads(pickle.dumps(batch))
    assert again == batch
    assert again.data.equals(batch.data)
    assert again.dataset_name == "d"
    assert len(pickle.dumps(batch)) < 2_000
    assert batch.data.get_total_buffer_size() > 100_000  # this one is as it was


def test_a_table_of_its_own_is_not_copied_to_travel():
    pa = pytest.importorskip("pyarrow")
    buffers = []
    table = pa.table({"number": range(10_000)})
    pickle.dumps(DocumentBatch(data=table), protocol=5, buffer_callback=buffers.append)
    assert sum(buffer.raw().nbytes for buffer in buffers) >= 80_000
