# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import bz2
import gzip
import json
import lzma
import math
from collections import Counter
from datetime import UTC, date, datetime

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator_core import (
    DocumentBatch,
    FileGroupTask,
    LocalExecutor,
    Pipeline,
    RunObserver,
    Task,
    processing_stage,
)
from curator_core.io import FilePartitioningStage, JsonlReader, JsonlReaderStage, JsonlWriter, ParquetWriter
from curator_core.io.records import lines_of

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
RECORDS = st.lists(st.dictionaries(st.text(max_size=5), JSON, max_size=4), min_size=1, max_size=8)


def read(path, **options):
    batches = Pipeline("read", [JsonlReader(path, **options)]).run()
    return [batch.data for batch in batches]


@given(RECORDS, st.sampled_from([None, "gzip", "bz2", "xz"]))
def test_written_data_is_read_back(tmp_path_factory, records, compression):
    out = tmp_path_factory.mktemp("out")
    written = Pipeline("write", [JsonlWriter(out, compression=compression)]).run(initial_tasks=[DocumentBatch(records)])
    assert read(out) == [records]
    assert read(written[0].data) == [records]


def test_half_a_surrogate_pair_survives(tmp_path):
    records = [{"text": "broken \ud83d pair, umlaut ä, face 😀", "\udc00": 1}]
    Pipeline("write", [JsonlWriter(tmp_path)]).run(initial_tasks=[DocumentBatch(records)])
    assert read(tmp_path) == [records]
    (tmp_path / "0.jsonl").read_bytes().decode("utf-8")


@given(st.binary(max_size=60), st.integers(1, 7))
def test_lines_do_not_depend_on_the_size_of_chunks(data, size):
    chunks = [data[start : start + size] for start in range(0, len(data), size)]
    expected = data.split(b"\n")
    assert list(lines_of(chunks)) == (expected if expected[-1] else expected[:-1])


@pytest.mark.parametrize(("suffix", "compress"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)])
def test_compression_is_inferred_from_the_name(tmp_path, suffix, compress):
    (tmp_path / f"a.jsonl.{suffix}").write_bytes(compress(b'{"a": 1}\n{"a": 2}'))
    (tmp_path / "odd.bin").write_bytes(compress(b'{"a": 3}\n'))
    assert read(tmp_path) == [[{"a": 1}, {"a": 2}]]
    name = {"gz": "gzip"}.get(suffix, suffix)
    assert read(tmp_path / "odd.bin", compression=name) == [[{"a": 3}]]


def test_blank_lines_carriage_returns_and_a_byte_order_mark_are_ignored(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n \t\n{"a": 2}\r\n\n')
    (tmp_path / "b.jsonl").write_bytes(b"\xef\xbb\xbf")
    assert read(tmp_path) == [[{"a": 1}, {"a": 2}]]


def test_a_group_without_records_is_counted_as_filtered(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\n")
    for options in ({}, {"records_per_batch": 5}):
        result = Pipeline("read", [JsonlReader(tmp_path, **options)]).run()
        assert list(result) == []
        assert result.stages[1].tasks_filtered == 1


def test_missing_fields_of_a_record_are_omitted(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1, "b": 2, "c": 3}\n{"b": 4}\n')
    assert read(tmp_path, fields=["c", "b"]) == [[{"c": 3, "b": 2}, {"b": 4}]]


def test_records_per_batch_spans_the_files_of_a_group(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.jsonl").write_text("".join(f'{{"n": "{name}{i}"}}\n' for i in range(3)))
    result = Pipeline("read", [JsonlReader(tmp_path, files_per_partition=2, records_per_batch=4)]).run()
    assert [[record["n"] for record in batch.data] for batch in result] == [
        ["a0", "a1", "a2", "b0"],
        ["b1", "b2"],
        ["c0", "c1", "c2"],
    ]
    first, second = result[0].task_id.split("."), result[1].task_id.split(".")
    assert (first[0], first[1], second[1]) == (second[0], "0", "1")


def test_one_task_per_group_keeps_the_id_and_the_dataset_name(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n')
    group = FileGroupTask([str(tmp_path / "a.jsonl")], dataset_name="wiki")
    (batch,) = Pipeline("read", [JsonlReaderStage()]).run(initial_tasks=[group])
    assert batch.task_id == group.get_deterministic_id()
    assert batch.dataset_name == "wiki"


def test_other_encodings_are_read(tmp_path):
    (tmp_path / "a.jsonl").write_bytes('{"a": "grün"}\n'.encode("latin-1"))
    assert read(tmp_path, encoding="latin-1") == [[{"a": "grün"}]]


# --- broken input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"a": 1', "line 3 is not JSON: Expecting ',' delimiter at character 8"),
        ("not json at all", "line 3 is not JSON"),
        ('{"a": 1} {"b": 2}', "line 3 is not JSON: Extra data at character 10"),
        ("[1, 2]", "line 3 is JSON, but not an object"),
        ("17", "line 3 is JSON, but not an object"),
        ('{"a": ' + "[" * 100_000, "line 3 cannot be parsed as JSON"),
        ('{"a": ' + "1" * 5_000 + "}", "line 3 cannot be parsed as JSON"),
    ],
)
def test_a_broken_line_is_an_error_with_its_number(tmp_path, data_error, line, problem):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"a": 1}}\n\n{line}\n{{"a": 2}}\n')
    error = data_error(JsonlReader(path))
    assert error.message.startswith(problem)
    assert error.field == str(path)
    assert line[:40] in error.given
    assert "on_bad_line='skip'" in error.hint
    assert len(str(error)) < 1000
    assert read(path, on_bad_line="skip") == [[{"a": 1}, {"a": 2}]]


def test_skipped_lines_are_counted_and_logged(tmp_path, caplog):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\nbroken\n\xff\n{"a": 2}\n')
    (tmp_path / "b.jsonl").write_bytes(b'{"a": 3}\n')
    counts = []

    class Count(RunObserver):
        def on_batch(self, report):
            counts.append(report.metrics.get("skipped_lines", 0))

    reader = JsonlReader(tmp_path, files_per_partition=2, on_bad_line="skip")
    (batch,) = Pipeline("read", [reader]).run(observers=[Count()])
    assert [record["a"] for record in batch.data] == [1, 2, 3]
    assert sum(counts) == 2
    assert batch.stage_perf[1].custom_metrics == {"skipped_lines": 2}
    assert f"{tmp_path}/a.jsonl: broken lines skipped: 2; the first one is line 2" in caplog.text


def test_a_broken_last_line_without_newline_is_logged_as_possible_truncation(tmp_path, caplog):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\nbroken\n{"a": 2')
    assert read(tmp_path, on_bad_line="skip") == [[{"a": 1}]]
    assert "skipped: 2; the first one is line 2; the last line is one of them and has no newline" in caplog.text


JSON_ARRAY = b'[\n  {"a": 1},\n  {"a": 2}\n]\n'
RECORDS_OF_TWO = b'{"a": 1}\n{"a": 2}\n'


@pytest.mark.parametrize(
    ("content", "problem", "hint"),
    [
        (RECORDS_OF_TWO.replace(b"\n", b"\r"), "line 1 consists of several lines, separated", "tr '\\r' '\\n'"),
        (b"{}\nbroken\r{}\r\n", "line 2 consists of several lines, separated", "tr '\\r' '\\n'"),
        (b'{"a": 1}\n\xef\xbb\xbf{"a": 2}\n', "line 2 begins with a byte order mark", "encoding='utf-8-sig'"),
        (b'{"a": 1}\xef\xbb\xbf{"a": 2}\n', "line 1 belongs to two concatenated files", "with a newline between"),
        (b'{}\n{"a": \xef\xbb\xbf{"a": 2}\n', "line 2 belongs to two concatenated files", "with a newline between"),
        (b"\xef\xbb\xbf" + JSON_ARRAY, "line 1 begins a value that continues on the next lines", "JSON array"),
        (
            b'\xef\xbb\xbf \n[{"a": 1}\n,{"a": 2}]\n',
            "line 2 begins a value that continues on the next lines",
            "JSON array",
        ),
        (b'{\n "a": [\n{}\n]\n}\n', "line 1 begins a value that continues on the next lines", "span several lines"),
    ],
    ids=["CR", "CR inside", "mark", "joined", "cut and joined", "array", "array behind a blank line", "object"],
)
@pytest.mark.parametrize("on_bad_line", ["raise", "skip"])
def test_faults_of_more_than_one_line_are_not_skipped(tmp_path, data_error, content, problem, hint, on_bad_line):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    error = data_error(JsonlReader(path, on_bad_line=on_bad_line))
    assert error.message.startswith(problem)
    assert error.field == str(path)
    assert hint in error.hint


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (RECORDS_OF_TWO.decode().encode("utf-16"), "UTF-16"),
        (RECORDS_OF_TWO.decode().encode("utf-16-be"), "UTF-16"),
        (RECORDS_OF_TWO.decode().encode("utf-32"), "UTF-32"),
        (b'[{"a": 1}, {"a": 2}]', "JSON array"),
        (gzip.compress(RECORDS_OF_TWO), "compression='gzip'"),
        (bz2.compress(RECORDS_OF_TWO), "compression='bz2'"),
        (b"PAR1\x00\nPAR1", "ParquetReader"),
        (b"a,b\n1,2\n", "on_bad_line"),
        (b"\n  \nbroken\n\n", "on_bad_line"),
    ],
    ids=["UTF-16", "UTF-16 without mark", "UTF-32", "array", "gzip", "bz2", "Parquet", "CSV", "one line"],
)
def test_a_file_without_good_lines_is_not_skipped(tmp_path, data_error, content, hint):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n')
    path = tmp_path / "b.jsonl"
    path.write_bytes(content)
    first = data_error(JsonlReader(tmp_path, files_per_partition=2))
    assert hint in first.hint
    error = data_error(JsonlReader(tmp_path, files_per_partition=2, on_bad_line="skip"))
    assert error.field == first.field == str(path)
    assert error.message.partition(" broken: ")[2] == first.message
    assert error.hint == first.hint


def test_utf_8_sig_ignores_byte_order_marks_at_the_start_of_lines(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\n\xef\xbb\xbf{"a": "\xef\xbb\xbf"}\n')
    assert read(tmp_path, encoding="utf-8-sig") == [[{"a": 1}, {"a": "\ufeff"}]]


def test_a_wrong_encoding_names_byte_and_offset(tmp_path, data_error):
    path = tmp_path / "a.jsonl"
    content = b'\xef\xbb\xbf{"a": "fine"}\n\n{"a": "gr' + "ün".encode("latin-1") + b'"}\n'
    path.write_bytes(content)
    error = data_error(JsonlReader(path))
    assert error.message.startswith(f"line 3 is not utf-8: byte 0xfc at offset {content.index(bytes([0xFC]))}")
    assert error.field == str(path)
    assert "encoding=" in error.hint
    assert read(path, on_bad_line="skip") == [[{"a": "fine"}]]


def test_the_offset_is_correct_after_many_chunks(tmp_path, data_error):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": "%s"}\n' % (b"x" * 1000) * 3000 + b'{"a": "\xff"}\n')
    error = data_error(JsonlReader(path))
    assert f"line 3001 is not utf-8: byte 0xff at offset {path.read_bytes().index(bytes([0xFF]))} " in error.message


def test_a_file_deleted_between_listing_and_reading_is_an_error(tmp_path, data_error, memory_url):
    @processing_stage()
    def lose(task):
        for path in task.data:
            fsspec.open(path).fs.rm(path)
        return task

    fsspec.filesystem("memory").pipe_file(f"{memory_url}/a.jsonl", b"{}")
    (tmp_path / "a.jsonl").write_text("{}")
    for where, path in ((tmp_path, tmp_path / "a.jsonl"), (memory_url, None)):
        error = data_error(FilePartitioningStage(where), lose, JsonlReaderStage())
        assert error.message == "the file does not exist"
        assert error.field.endswith("a.jsonl")
        assert path is None or error.field == str(path)
        assert "between listing and reading" in error.expected
    assert not list(tmp_path.iterdir())


def test_a_deleted_file_fails_only_its_task(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.jsonl").write_text(f'{{"n": "{name}"}}\n')

    @processing_stage()
    def lose(task):
        if task.data[0].endswith("b.jsonl"):
            (tmp_path / "b.jsonl").unlink()
        return task

    pipeline = Pipeline("read", [FilePartitioningStage(tmp_path), lose, JsonlReaderStage()])
    result = pipeline.run(LocalExecutor(), on_error="skip")
    assert [batch.data[0]["n"] for batch in result] == ["a", "c"]
    assert (result.stages[2].tasks_in, result.stages[2].tasks_out, result.stages[2].tasks_failed) == (3, 2, 1)


def test_a_directory_in_place_of_a_file_is_an_error(tmp_path, data_error):
    group = FileGroupTask([str(tmp_path)])
    error = data_error(JsonlReaderStage(), initial_tasks=[group])
    assert "errno 21, EISDIR" in error.message


def test_an_unreadable_file_is_an_error(public_path, data_error, as_nobody):
    path = public_path / "a.jsonl"
    path.write_text("{}")
    path.chmod(0)
    with as_nobody():
        error = data_error(JsonlReader(path))
    assert "errno 13, EACCES" in error.message
    assert error.field == str(path)


# --- values that JSON cannot represent ------------------------------------------------------------------


ITSELF: list[object] = []
ITSELF.append(ITSELF)
VALUES_WITHOUT_A_JSON_FORM = [
    (math.nan, "not JSON compliant"),
    ({"deep": [math.inf]}, "not JSON compliant"),
    (b"bytes", "type bytes has no JSON equivalent"),
    ({1, 2}, "type set has no JSON equivalent"),
    (object(), "type object has no JSON equivalent"),
    (ITSELF, "Circular reference detected"),
    ({(1, 2): 3}, "keys must be"),
    ({1: "a", "1": "b"}, "a dict key is of type int, not text"),
    ({"deep": [({"x": {None: 1}},)]}, "a dict key is of type NoneType, not text"),
    (Counter([True]), "a dict key is of type bool, not text"),
    (np.array([{2.5: 1}]), "a dict key is of type float, not text"),
]


@pytest.mark.parametrize(("value", "problem"), VALUES_WITHOUT_A_JSON_FORM)
def test_a_value_without_a_json_form_is_an_error_that_names_record_and_column(tmp_path, data_error, value, problem):
    batch = DocumentBatch([{"a": 1, "b": 2}, {"a": 1, "b": value}])
    error = data_error(JsonlWriter(tmp_path), initial_tasks=[batch])
    start = (
        "the records cannot be written as JSON Lines: record 1 has a value in column 'b' that JSON cannot represent: "
    )
    assert error.message.startswith(start)
    assert problem in error.message
    assert error.field == "b"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("record", [{(1, 2): 3}, {1: "a"}, {1: "a", "1": "b"}, {None: 1}])
def test_a_column_name_that_is_not_text_is_the_same_error_from_both_writers(tmp_path, data_error, record):
    for writer in (JsonlWriter, ParquetWriter):
        error = data_error(writer(tmp_path), initial_tasks=[DocumentBatch([{"a": 1}, record])])
        assert error.message.endswith(": record 1 has a column whose name is not text")
        assert error.field == str(next(iter(record)))
        assert list(tmp_path.iterdir()) == []


def test_a_record_that_is_not_a_dict_is_the_same_error_from_both_writers(tmp_path, data_error):
    for writer in (JsonlWriter, ParquetWriter):
        for record in (1, "{}", [{}], None):
            error = data_error(writer(tmp_path), initial_tasks=[DocumentBatch([{"a": 1}, record])])
            assert error.message.endswith(f": record 1 is of type {type(record).__name__}")


def test_bad_records_can_be_skipped_and_are_counted(tmp_path, caplog):
    good = {"a": 1, "b": {"text": np.str_("{")}}
    bad = [{"a": 1, "b": value} for value, _ in VALUES_WITHOUT_A_JSON_FORM]
    records = [good, *bad, {1: 2}, 3, good]
    tasks = Pipeline("write", [JsonlWriter(tmp_path, on_bad_record="skip")]).run(initial_tasks=[DocumentBatch(records)])
    assert read(tmp_path) == [[good, good]]
    metrics = tasks[0].stage_perf[0].custom_metrics
    assert (metrics["skipped_records"], metrics["records_written"]) == (len(bad) + 2, 2)
    assert f"task 0: records skipped: {len(bad) + 2}; the first one, record 1, has a value in column 'b'" in caplog.text


def test_keys_of_unselected_columns_are_not_checked(tmp_path):
    record = {"a": 1, "b": {1: 2}, 3: 4}
    Pipeline("write", [JsonlWriter(tmp_path, fields=["a"])]).run(initial_tasks=[DocumentBatch([record])])
    assert read(tmp_path) == [[{"a": 1}]]


def test_keys_of_a_subclass_of_text_are_text(tmp_path):
    record = {np.str_("a"): {np.str_("b"): 1}}
    Pipeline("write", [JsonlWriter(tmp_path)]).run(initial_tasks=[DocumentBatch([record])])
    assert read(tmp_path) == [[record]]


def test_allow_nan_writes_nan(tmp_path):
    Pipeline("write", [JsonlWriter(tmp_path, allow_nan=True)]).run(initial_tasks=[DocumentBatch([{"a": math.nan}])])
    assert math.isnan(read(tmp_path)[0][0]["a"])


def test_dates_and_numpy_values_are_written_as_plain_ones(tmp_path):
    class Scalar:  # like those of numpy and torch, without either package
        dtype = "float32"

        def tolist(self):
            return 1.5

    record = {"d": date(2024, 2, 29), "t": datetime(2024, 2, 29, 1, 2, 3, tzinfo=UTC), "n": Scalar()}
    Pipeline("write", [JsonlWriter(tmp_path)]).run(initial_tasks=[DocumentBatch([record])])
    assert read(tmp_path) == [[{"d": "2024-02-29", "t": "2024-02-29T01:02:03+00:00", "n": 1.5}]]


def test_a_task_of_another_type_is_rejected_with_a_hint(tmp_path):
    from curator_core import InputError

    with pytest.raises(InputError, match="cannot write a Task") as caught:
        Pipeline("write", [JsonlWriter(tmp_path)]).run(initial_tasks=[Task("text")])
    assert "DocumentBatch(data=" in caught.value.hint


def test_lines_are_compact_and_readable(tmp_path):
    Pipeline("write", [JsonlWriter(tmp_path)]).run(initial_tasks=[DocumentBatch([{"a": "ä", "b": [1, None]}])])
    assert (tmp_path / "0.jsonl").read_text("utf-8") == '{"a":"ä","b":[1,null]}\n'
    assert json.loads((tmp_path / "0.jsonl").read_text("utf-8"))
