# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import logging
import os
import signal
import stat
import tempfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator_core import DataError
from curator_core._checkpoint.journal import Journal, read_journal

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
records = st.lists(st.dictionaries(st.text(max_size=5), values, max_size=3), max_size=12)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path):
    return tmp_path / "finished.jsonl"


def write(path, *written, **options):
    with Journal(path, **options) as journal:
        for record in written:
            journal.append(record)


def read(path):
    contents = read_journal(path)
    return list(contents), contents.dropped


def numbered(count):
    return [{"id": f"task-{number}"} for number in range(count)]


# --- round trips ----------------------------------------------------------------------------------------


def test_a_record_is_a_line_with_its_checksum(path):
    write(path, {"id": "a", "é": [1, None]})
    body = b'{"id":"a","\\u00e9":[1,null]}'
    assert path.read_bytes() == b"%08x %s\n" % (zlib.crc32(body), body)
    assert read(path) == ([{"id": "a", "é": [1, None]}], 0)


def test_a_journal_is_appended_to(path):
    write(path, {"id": "a"})
    before = path.read_bytes()
    write(path, {"id": "b"})
    assert path.read_bytes().startswith(before)
    assert read(path) == ([{"id": "a"}, {"id": "b"}], 0)


def test_lone_surrogates_and_line_ends_are_escaped(path):
    odd = {"id": "a\nb\r\u2028\udce4\0"}
    write(path, odd, odd)
    assert path.read_bytes().count(b"\n") == 2
    assert read(path) == ([odd, odd], 0)


def test_a_journal_can_be_read_twice(path):
    write(path, *numbered(3))
    contents = read_journal(path)
    assert list(contents) == list(contents) == numbered(3)


def test_an_empty_journal_has_no_records(path):
    write(path)
    assert read(path) == ([], 0)


def test_a_missing_journal_is_an_error(path):
    with pytest.raises(DataError, match="does not exist") as caught:
        read(path)
    assert caught.value.field == str(path)


# --- syncing --------------------------------------------------------------------------------------------


@pytest.fixture
def syncs(monkeypatch):
    """What was synced: the size of the file at that time, or "directory"."""
    seen, real = [], os.fsync

    def fsync(descriptor):
        status = os.fstat(descriptor)
        seen.append("directory" if stat.S_ISDIR(status.st_mode) else status.st_size)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return seen


def test_records_are_synced_in_groups(path, syncs):
    journal = Journal(path, clock=Clock())
    sizes = []
    for record in numbered(2500):
        journal.append(record)
        sizes.append(path.stat().st_size)
    assert set(sizes[:999]) == {0}
    assert len(set(sizes[999:1999])) == 1
    journal.close()
    assert syncs == ["directory", sizes[999], sizes[1999], path.stat().st_size]
    assert read(path) == (numbered(2500), 0)


def test_a_record_is_synced_if_the_last_sync_was_long_ago(path, syncs):
    clock = Clock()
    with Journal(path, clock=clock) as journal:
        journal.append({"id": "a"})
        assert path.stat().st_size == 0
        clock.now += 0.99
        journal.append({"id": "b"})
        assert path.stat().st_size == 0
        clock.now += 0.01
        journal.append({"id": "c"})
        assert read(path)[0] == [{"id": "a"}, {"id": "b"}, {"id": "c"}]
        journal.append({"id": "d"})
        assert len(read(path)[0]) == 3
    assert len(syncs) == 3


def test_without_new_records_nothing_is_synced(path, syncs):
    with Journal(path) as journal:
        journal.sync()
    assert syncs == ["directory"]


def test_closing_twice_does_nothing(path):
    journal = Journal(path)
    journal.append({"id": "a"})
    journal.close()
    journal.close()
    assert read(path) == ([{"id": "a"}], 0)


def test_records_synced_by_a_killed_writer_are_read(path, python):
    code = """if True:
        import sys
        from curator_core._checkpoint.journal import Journal
        journal = Journal(sys.argv[1], max_records=7, max_seconds=1e9)
        for number in range(100):
            journal.append({"id": f"task-{number}"})
        print("written", flush=True)
        sys.stdin.read()
    """
    writer = python(code, path)
    assert writer.stdout.readline() == "written\n"
    writer.send_signal(signal.SIGKILL)
    assert writer.wait() == -signal.SIGKILL
    assert read(path) == (numbered(98), 0)


# --- damage ---------------------------------------------------------------------------------------------


def test_a_torn_tail_is_dropped_and_logged_once(path, caplog):
    write(path, *numbered(3))
    path.write_bytes(path.read_bytes()[:-5])
    with caplog.at_level(logging.WARNING):
        assert read(path) == (numbered(2), 1)
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{path}: torn or damaged records, as after a crash: 1; their source tasks will run again"
    )


def test_an_intact_journal_logs_nothing(path, caplog):
    write(path, *numbered(3))
    with caplog.at_level(logging.DEBUG):
        read(path)
    assert not caplog.records


def test_records_after_a_torn_tail_are_read(path):
    write(path, *numbered(3))
    path.write_bytes(path.read_bytes()[:-5])
    write(path, {"id": "new"})
    assert read(path) == ([*numbered(2), {"id": "new"}], 1)


def test_a_last_line_that_lacks_only_its_newline_is_read(path):
    write(path, *numbered(3))
    path.write_bytes(path.read_bytes()[:-1])
    assert read(path) == (numbered(3), 0)
    write(path, {"id": "new"})
    assert read(path) == ([*numbered(3), {"id": "new"}], 0)


@pytest.mark.parametrize(
    "body", [b"[1]", b"1", b"null", b"{", b"", b"\xff", b"[" * 100_000, b'{"n": %b}' % (b"1" * 5000)]
)
def test_other_content_is_dropped_even_with_its_checksum(path, body):
    path.write_bytes(b"%08x %b\n" % (zlib.crc32(body), body))
    write(path, {"id": "a"})
    assert read(path) == ([{"id": "a"}], 1)


def test_a_block_of_zeros_is_dropped(path):
    """Some file systems leave such a block after a power failure."""
    write(path, *numbered(3))
    with path.open("ab") as stream:
        stream.write(bytes(4096))
    write(path, {"id": "new"})
    assert read(path) == ([*numbered(3), {"id": "new"}], 1)


def as_text(record):
    return json.dumps(record, sort_keys=True)


@given(written=records, data=st.data())
def test_only_intact_records_are_read(written, data):
    """The test flips any bits and truncates the file at any place."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "journal"
        write(path, *written)
        content = bytearray(path.read_bytes())
        cut = data.draw(st.integers(0, len(content)), "cut")
        bits = st.integers(0, 8 * cut - 1) if cut else st.nothing()
        flipped = data.draw(st.sets(bits, max_size=4) if cut else st.just(set()), "flipped")
        damaged = {bit // 8 for bit in flipped}
        intact, start = [], 0
        for line, record in zip(bytes(content).splitlines(keepends=True), written, strict=True):
            # Including the newline before it; its own newline may be missing at the end of the file.
            own = range(max(0, start - 1), start + len(line) - (start + len(line) - 1 == cut))
            if own.stop <= cut and damaged.isdisjoint(own):
                intact.append(record)
            start += len(line)
        del content[cut:]
        for bit in flipped:
            content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        write(path, {"the": "next run"})

        found, dropped = read(path)
        assert found.pop() == {"the": "next run"}
        assert found == intact
        if len(written) == len(intact):
            assert dropped == 0
        if damaged:
            assert dropped >= 1


# --- failed writes --------------------------------------------------------------------------------------


def test_a_full_disk_loses_nothing(path, room_for):
    journal = Journal(path, max_records=10)
    for record in numbered(25):
        journal.append(record)
    synced = path.stat().st_size
    with room_for(synced + 100):  # some lines, and a part of another
        with pytest.raises(DataError, match="EFBIG") as caught:
            journal.sync()
        with pytest.raises(DataError):
            journal.sync()
        journal.append({"id": "while it is full"})
    assert (caught.value.field, path.stat().st_size) == (str(path), synced + 100)
    assert "free up space" in caught.value.hint
    journal.close()
    found, dropped = read(path)
    assert dropped == 1
    # Lines that were complete before the disk was full are in the file twice.
    assert list(dict.fromkeys(record["id"] for record in found)) == [
        *(record["id"] for record in numbered(25)),
        "while it is full",
    ]


def test_an_append_that_syncs_raises_on_a_full_disk_and_keeps_the_record(path, room_for):
    journal = Journal(path, max_records=2)
    journal.append({"id": "a"})
    with room_for(0), pytest.raises(DataError, match="EFBIG"):
        journal.append({"id": "b"})
    journal.sync()
    journal.close()
    assert read(path) == ([{"id": "a"}, {"id": "b"}], 0)


def test_closing_on_a_full_disk_raises_and_closes(path, room_for):
    journal = Journal(path)
    journal.append({"id": "a"})
    open_before = len([*Path("/proc/self/fd").iterdir()])
    with room_for(0), pytest.raises(DataError, match="EFBIG"):
        journal.close()
    assert len([*Path("/proc/self/fd").iterdir()]) == open_before - 1
    journal.close()
    assert read(path) == ([], 0)


@pytest.mark.parametrize(
    "record", [{"id": object()}, {"id": b"x"}, {"n": float("nan")}, {"n": float("inf")}, {(1, 2): 3}]
)
def test_a_record_that_json_cannot_represent_is_rejected(path, record):
    with Journal(path) as journal:
        journal.append({"id": "a"})
        with pytest.raises(DataError, match="JSON cannot represent the record") as caught:
            journal.append(record)
        assert caught.value.field == str(path)
        assert caught.value.given
        assert caught.value.expected
        assert caught.value.hint
    assert read(path) == ([{"id": "a"}], 0)


def test_a_circular_record_is_rejected(path):
    circle = []
    circle.append(circle)
    with Journal(path) as journal, pytest.raises(DataError, match="JSON cannot represent the record"):
        journal.append({"outputs": circle})


def test_a_journal_needs_its_directory(tmp_path):
    with pytest.raises(DataError, match="cannot be written") as caught:
        Journal(tmp_path / "none" / "journal")
    assert caught.value.field == str(tmp_path / "none" / "journal")


def test_a_path_that_is_not_a_regular_file_is_rejected(path, not_a_file):
    not_a_file(path)
    for use in (Journal, read):
        with pytest.raises(DataError, match="not a regular file") as caught:
            use(path)
        assert caught.value.field == str(path)
        assert caught.value.hint


@pytest.mark.parametrize("mask", [0o077, 0o022, 0o002])
def test_a_new_journal_respects_the_umask(path, umask, mask):
    with umask(mask):
        write(path, {"id": "a"})
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
