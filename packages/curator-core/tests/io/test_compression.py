# SPDX-License-Identifier: Apache-2.0
"""Compressed files are read to the end that their format marks, or raise an error."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sys
import zipfile
import zlib

import backports.zstd
import lz4.frame
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator_core import ConfigurationError, Pipeline, StageError
from curator_core.io import JsonlReader

SKIPPABLE = b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc"  # a zstd frame without data, as pzstd writes them
COMPRESS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
    "zst": backports.zstd.compress,
    "lz4": lz4.frame.compress,
}


def zipped(**files):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


# Each way to read each format: either of two packages reads zstd.
WAYS = [*((suffix, None) for suffix in COMPRESS), ("zst", "backports.zstd")]
ways = pytest.mark.parametrize(("suffix", "hidden"), WAYS, ids=[f"{a}{' without ' + b if b else ''}" for a, b in WAYS])


@pytest.fixture(autouse=True)
def _hide(request, monkeypatch):
    """Make the package `hidden`, if a test names one, impossible to import."""
    if "hidden" in request.fixturenames and (name := request.getfixturevalue("hidden")):
        monkeypatch.setitem(sys.modules, name, None)


def lines(*numbers):
    return b"".join(b'{"n": %d}\n' % n for n in numbers)


def read(path, **options):
    return [record["n"] for batch in Pipeline("read", [JsonlReader(path, **options)]).run() for record in batch.data]


@ways
def test_all_members_are_read_including_empty_ones(tmp_path, suffix, hidden):
    compress = COMPRESS[suffix]
    empty = compress(b"")
    members = [empty, compress(lines(1, 2) + b'{"n"'), empty, empty, compress(b": 3}\n"), compress(lines(4)), empty]
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(b"".join(members))
    assert read(path) == [1, 2, 3, 4]
    path.write_bytes(b"".join(compress(lines(n)) for n in range(3000)))  # spans several read chunks
    assert read(path) == list(range(3000))
    if suffix in ("gz", "xz"):
        path.write_bytes((b"\0" * 8).join(members) + b"\0" * 100_000)
        assert read(path) == [1, 2, 3, 4]
    if suffix == "zst":
        path.write_bytes(SKIPPABLE.join([b"", *members, b""]))
        assert read(path) == [1, 2, 3, 4]


@ways
@given(st.data())
def test_a_file_truncated_anywhere_is_an_error(tmp_path_factory, suffix, hidden, data):
    compress = COMPRESS[suffix]
    members = [compress(lines(*range(40))), compress(lines(*range(40, 80)))]
    whole = b"".join(members)
    # After the end of a member, a missing further member cannot be detected.
    cut = data.draw(st.integers(0, len(whole) - 1).filter(lambda at: at != len(members[0])))
    path = tmp_path_factory.mktemp("in") / f"a.jsonl.{suffix}"
    path.write_bytes(whole[:cut])
    with pytest.raises(StageError) as caught:
        read(path, on_bad_line="skip")
    error = caught.value.__cause__
    assert error.message.startswith("the file cannot be decompressed: truncated")
    assert error.field == str(path)


def flushed(suffix, content):
    """Return a stream whose writer died after a flush."""
    if suffix == "gz":
        compressor = zlib.compressobj(wbits=31)
        return compressor.compress(content) + compressor.flush(zlib.Z_SYNC_FLUSH)
    if suffix == "zst":
        compressor = backports.zstd.ZstdCompressor()
        return compressor.compress(content, compressor.FLUSH_BLOCK)
    compressor = lz4.frame.LZ4FrameCompressor(auto_flush=True)
    return compressor.begin() + compressor.compress(content)


@pytest.mark.parametrize(("suffix", "hidden"), [("gz", None), ("zst", None), ("zst", "backports.zstd"), ("lz4", None)])
def test_a_stream_that_ends_with_a_block_and_a_line_is_truncated(tmp_path, data_error, suffix, hidden):
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(flushed(suffix, lines(*range(2516))))
    error = data_error(JsonlReader(path, on_bad_line="skip"))
    assert error.message.startswith("the file cannot be decompressed: truncated")
    assert error.field == str(path)


@ways
@pytest.mark.parametrize("spoil", ["other", "zeros", "after", "inside"])
def test_foreign_bytes_anywhere_are_an_error(tmp_path, data_error, suffix, hidden, spoil):
    member = COMPRESS[suffix](lines(*range(40)))
    content = {
        "other": b"plain text, and more of it than any header has\n" * 3,
        "zeros": b"\0" * 4096 + member,
        "after": member + b"plain text, and more of it than any header has\n" * 3,
        "inside": member + member[: len(member) // 3] + b"\xff" * len(member) + member,
    }[spoil]
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(content)
    error = data_error(JsonlReader(path, on_bad_line="skip"))
    assert error.message.startswith("the file cannot be decompressed: ")
    assert error.field == str(path)


@ways
def test_a_last_line_without_newline_counts_if_it_is_complete(tmp_path, data_error, suffix, hidden):
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(COMPRESS[suffix](lines(1) + b'{"n": 2}'))
    assert read(path) == [1, 2]
    for cut_off in (b'{"n": 3', b'{"n": "\xc3'):
        path.write_bytes(COMPRESS[suffix](lines(1, 2) + cut_off))
        for on_bad_line in ("raise", "skip"):
            error = data_error(JsonlReader(path, on_bad_line=on_bad_line))
            assert error.message.startswith("the file is truncated: its last line, line 3, has no newline")
            assert error.field == str(path)
    path.write_bytes(COMPRESS[suffix](lines(1) + b"broken\n" + lines(2)))
    assert read(path, on_bad_line="skip") == [1, 2]


@pytest.mark.parametrize(("suffix", "hidden"), [("zst", None), ("zst", "backports.zstd")])
def test_a_large_zstd_window_is_read(tmp_path, suffix, hidden):
    window, content = (28 - 10) << 3, lines(1)  # as written by `zstd --long=28`; readers accept up to 27 by default
    block = (len(content) << 3 | 1).to_bytes(3, "little") + content
    (tmp_path / f"a.jsonl.{suffix}").write_bytes(b"\x28\xb5\x2f\xfd\x00" + bytes([window]) + block)
    assert read(tmp_path) == [1]


@pytest.mark.parametrize(
    ("suffix", "packages"), [("zst", ("backports.zstd", "zstandard")), ("lz4", ("lz4", "lz4.frame"))]
)
def test_a_format_whose_package_is_missing_is_known_by_name_and_names_the_extra(
    tmp_path, monkeypatch, suffix, packages
):
    (tmp_path / "a.jsonl").write_bytes(lines(1))
    (tmp_path / f"b.jsonl.{suffix}").write_bytes(COMPRESS[suffix](lines(2)))
    (tmp_path / f"c.JSONL.{suffix.upper()}").write_bytes(COMPRESS[suffix](lines(3)))
    assert sorted(read(tmp_path)) == [1, 2, 3]
    for name in packages:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(StageError) as caught:
        read(tmp_path)
    error = caught.value.__cause__
    assert isinstance(error, ConfigurationError)
    assert error.field == str(tmp_path / f"b.jsonl.{suffix}")
    assert "curator-core[compression]" in error.hint
    result = Pipeline("read", [JsonlReader(tmp_path)]).run(on_error="skip")
    assert [batch.data for batch in result] == [[{"n": 1}]]
    assert result.stages[1].tasks_failed == 2


def test_a_zip_archive_must_contain_exactly_one_file(tmp_path, data_error):
    path = tmp_path / "a.jsonl.zip"
    path.write_bytes(zipped(**{"folder/": "", "folder/x": lines(1, 2)}))
    assert read(tmp_path) == [1, 2]
    for count, files in ((2, {"x": lines(1), "y": lines(2)}), (0, {})):
        path.write_bytes(zipped(**files))
        error = data_error(JsonlReader(path))
        assert error.message.startswith(f"the archive contains {count} files")
        assert f"zip://*.jsonl::{path}" in error.hint
    path.write_bytes(zipped(x=lines(*range(1000)))[:-5])
    error = data_error(JsonlReader(path, on_bad_line="skip"))
    assert error.message.startswith("the file cannot be decompressed: ")
    damaged = bytearray(zipped(x=lines(*range(1000))))
    damaged[60:90] = b"\xff" * 30
    path.write_bytes(damaged)
    error = data_error(JsonlReader(path, on_bad_line="skip"))
    assert error.message.startswith("the file cannot be decompressed: ")
