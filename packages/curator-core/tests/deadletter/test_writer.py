# SPDX-License-Identifier: Apache-2.0
"""Letters are written in the background, each completely or not at all, and in the correct place."""

from __future__ import annotations

import errno
import os
import stat
import threading
from contextlib import nullcontext, suppress
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from tests.waiting import DEADLINE_S, wait_until

from curator_core import ConfigurationError, DataError, Task
from curator_core.deadletter import DeadLetter, Letter, load, read, writer
from curator_core.deadletter.payload import Payload, pack_task
from curator_core.deadletter.writer import LetterBox

EMPTY = Payload("none", "0", "m.C", note="no reason")


def letter(task_id="0", stage="S", **known):
    return Letter(task_id=str(task_id), stage=stage, **known)


def payload_of(data):
    return pack_task(Task(data=data), 1 << 30)


def files(root):
    return sorted(str(path.relative_to(root)) for path in Path(root).rglob("*") if not path.is_dir())


def our_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("curator-deadletter")]


class GatedFileSystem(MemoryFileSystem):
    """Blocks writes until the gate opens, and fails them for one stage."""

    protocol = "gated"
    store, pseudo_dirs = {}, [""]
    gate = threading.Event()
    arrived = 0
    lock = threading.Lock()

    def cp_file(self, path1, path2, **kwargs):
        with self.lock:
            type(self).arrived += 1
        assert self.gate.wait(DEADLINE_S)
        if "/broken/" in path2:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path2)
        super().cp_file(path1, path2, **kwargs)


@pytest.fixture
def gated():
    fsspec.register_implementation("gated", GatedFileSystem, clobber=True)
    GatedFileSystem.gate.clear()
    GatedFileSystem.arrived = 0
    yield GatedFileSystem
    GatedFileSystem.gate.set()
    GatedFileSystem.store.clear()


# --- output ---------------------------------------------------------------------------------------------


def test_many_letters(dead):
    box = LetterBox(DeadLetter(dead))
    for number in range(300):
        box.put(letter(number, f"stage {number % 3}", stage_index=number % 3), payload_of(number))
    box.close()
    assert sorted(task.data for task in load(dead)) == list(range(300))
    assert len(fsspec.core.url_to_fs(dead)[0].find(dead)) == 300  # and no temporary files


def test_the_last_letter_of_a_task_and_stage_is_kept(dead):
    with_box(dead, lambda box: [box.put(letter(), payload_of(number)) for number in range(50)])
    assert [task.data for task in load(dead)] == [49]
    with_box(dead, lambda box: box.put(letter(), payload_of("a later run")))
    assert [task.data for task in load(dead)] == ["a later run"]
    with_box(dead, lambda box: box.put(letter(stage="T"), payload_of("another stage")))
    assert len(read(dead)) == 2


def with_box(path, work):
    box = LetterBox(DeadLetter(path))
    work(box)
    box.close()


def test_threads_start_with_the_first_letter_and_end_on_close(tmp_path):
    box = LetterBox(DeadLetter(tmp_path / "dead"))
    box.flush()
    box.remove("S", "0")
    assert our_threads() == []
    for number in range(50):
        box.put(letter(number), payload_of(number))
    assert 1 <= len(our_threads()) <= 8
    box.close()
    assert our_threads() == []
    box.close()
    assert len(files(tmp_path)) == 50


def test_the_number_of_pending_letters_is_limited(gated):
    box, taken = LetterBox(DeadLetter("gated://dead")), []

    def put_all():
        for number in range(40):
            box.put(letter(number), payload_of(number))
            taken.append(number)

    thread = threading.Thread(target=put_all)
    thread.start()
    wait_until(lambda: len(taken) >= 16 and gated.arrived >= 8)
    assert (len(taken), gated.arrived) == (16, 8)
    gated.gate.set()
    thread.join(DEADLINE_S)
    box.close()
    assert len(read("gated://dead")) == 40


def test_flush_waits_for_pending_letters(gated):
    box = LetterBox(DeadLetter("gated://dead"))
    box.put(letter(), payload_of(1))
    threading.Thread(target=lambda: (wait_until(lambda: gated.arrived), gated.gate.set())).start()
    box.flush()
    assert len(read("gated://dead")) == 1
    box.close()


def test_a_letter_can_be_removed_while_it_is_written(gated):
    box = LetterBox(DeadLetter("gated://dead"))
    box.put(letter("0"), payload_of(1))
    box.put(letter("1"), payload_of(1))
    threading.Thread(target=lambda: (wait_until(lambda: gated.arrived), gated.gate.set())).start()
    box.remove("S", "0")
    box.close()
    assert [found.task_id for found in read("gated://dead")] == ["1"]


def test_removing(dead):
    box = LetterBox(DeadLetter(dead))
    box.remove("S", "0")  # nothing exists, not even the directory
    box.put(letter("a/b"), payload_of(1))
    box.put(letter("c"), payload_of(2))
    box.flush()
    box.remove("T", "c")
    box.remove("S", "a/b")
    box.remove("S", "a/b")
    assert [found.task_id for found in read(dead)] == ["c"]
    box.put(letter("a/b"), payload_of(3))
    box.close()
    assert len(read(dead)) == 2


def test_the_directory_exists_before_the_first_failure(dead):
    LetterBox(DeadLetter(dead)).prepare()
    LetterBox(DeadLetter(dead)).prepare()
    assert read(dead) == []


def test_files_respect_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with_box(tmp_path / "dead", lambda box: box.put(letter(), payload_of(1)))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "dead/S/0.letter").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "dead/S").stat().st_mode) == 0o750


# --- location -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../../out", "/out", "..", "a/../../../out", "~"])
def test_no_name_leads_out_of_the_directory(tmp_path, name):
    dead = tmp_path / "a" / "dead"
    with_box(dead, lambda box: [box.put(letter(name), EMPTY), box.put(letter("0", name), EMPTY)])
    assert len(files(dead)) == len(files(tmp_path)) == 2
    assert all(name.count("/") == 1 for name in files(dead))
    assert {found.task_id for found in read(dead)} == {name, "0"}


@pytest.mark.parametrize("target", ["outside", "nowhere"])
def test_a_link_in_place_of_a_stage_directory_is_an_error(tmp_path, target):
    outside, dead = tmp_path / "outside", tmp_path / "dead"
    outside.mkdir()
    dead.mkdir()
    (outside / "0.letter").write_text("mine")
    (dead / "S").symlink_to(tmp_path / target)
    box = LetterBox(DeadLetter(dead))
    box.put(letter(), payload_of(1))
    with pytest.raises(DataError) as caught:
        box.close()
    assert caught.value.field == str(dead / "S")
    assert "symbolic link" in caught.value.message
    with pytest.raises(DataError, match="symbolic link"):
        box.remove("S", "0")
    assert files(outside) == ["0.letter"]
    assert (outside / "0.letter").read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("moment", ["before the stage is opened", "before the letter is written", "at the removal"])
def test_a_link_that_replaces_a_stage_directory_is_not_followed(tmp_path, monkeypatch, moment):
    outside, dead = tmp_path / "outside", tmp_path / "dead"
    outside.mkdir()
    (outside / "0.letter").write_text("mine")
    with_box(dead, lambda box: box.put(letter("1"), payload_of(1)))
    name = "encode" if moment == "before the letter is written" else "_refuse_link"

    def put_a_link_there(*arguments):
        given = original(*arguments)
        (dead / "S").rename(tmp_path / "moved")
        (dead / "S").symlink_to(outside)
        return given

    original = getattr(writer, name)
    monkeypatch.setattr(writer, name, put_a_link_there)
    box = LetterBox(DeadLetter(dead))
    if moment == "at the removal":
        with pytest.raises(DataError, match="cannot be written"):
            box.remove("S", "0")
    else:
        box.put(letter("0"), payload_of(2))
        with pytest.raises(DataError) if name == "_refuse_link" else nullcontext():
            box.close()
    assert files(outside) == ["0.letter"]
    assert (outside / "0.letter").read_text() == "mine"
    assert ("0.letter" in files(tmp_path / "moved")) == (name == "encode")


def test_a_link_in_place_of_a_letter_is_replaced(tmp_path):
    mine, dead = tmp_path / "mine", tmp_path / "dead"
    mine.write_text("mine")
    (dead / "S").mkdir(parents=True)
    (dead / "S" / "0.letter").symlink_to(mine)
    with_box(dead, lambda box: box.put(letter(), payload_of(1)))
    assert mine.read_text() == "mine"
    assert not (dead / "S" / "0.letter").is_symlink()
    (dead / "S" / "1.letter").symlink_to(mine)
    LetterBox(DeadLetter(dead)).remove("S", "1")
    assert mine.read_text() == "mine"
    assert files(dead) == ["S/0.letter"]


def test_the_directory_can_be_a_link(tmp_path):
    (tmp_path / "large disk").mkdir()
    (tmp_path / "dead").symlink_to(tmp_path / "large disk")
    with_box(tmp_path / "dead", lambda box: box.put(letter(), payload_of(1)))
    assert files(tmp_path / "large disk") == ["S/0.letter"]


# --- failures -------------------------------------------------------------------------------------------


def failure_of(box, *names):
    with pytest.raises(DataError) as caught:
        box.flush()
    error = caught.value
    assert any(name in error.field for name in names or [""])
    assert error.expected
    assert error.hint
    return error


def test_a_full_disk_is_an_error(tmp_path, room_for):
    box = LetterBox(DeadLetter(tmp_path))
    box.put(letter("0"), payload_of("before"))
    box.flush()
    with room_for(50_000):
        box.put(letter("1"), payload_of("x" * 100_000))
        error = failure_of(box, f"{tmp_path}/S/1.letter")
        with pytest.raises(DataError):
            box.close()
    assert "errno 27, EFBIG" in error.message
    assert "free up space" in error.hint
    assert files(tmp_path) == ["S/0.letter"]


def test_a_failure_is_raised_by_all_later_calls(tmp_path):
    (tmp_path / "S").write_text("in the way")
    box = LetterBox(DeadLetter(tmp_path))
    box.put(letter(), payload_of(1))
    error = failure_of(box, f"{tmp_path}/S/0.letter")
    for call in (lambda: box.put(letter("1", "T"), payload_of(1)), box.flush, box.close):
        with pytest.raises(DataError) as caught:
            call()
        assert caught.value is error
    assert our_threads() == []
    assert files(tmp_path) == ["S"]


def test_the_first_failure_is_raised_and_other_letters_are_written(gated):
    box = LetterBox(DeadLetter("gated://dead"))
    for number in range(16):
        box.put(letter(number, "broken" if number in (1, 14) else "S"), payload_of(number))
    gated.gate.set()
    failure_of(box, "gated://dead/broken/1.letter", "gated://dead/broken/14.letter")
    with pytest.raises(DataError):
        box.close()
    assert len(read("gated://dead")) == 14


def test_put_raises_the_failure_of_an_earlier_letter(tmp_path):
    box = LetterBox(DeadLetter(tmp_path))
    (tmp_path / "S").write_text("in the way")
    box.put(letter(), payload_of(1))
    wait_until(lambda: next(iter(box._writing.values())).done())
    with pytest.raises(DataError, match="cannot be written"):
        box.put(letter("1", "T"), payload_of(1))
    with pytest.raises(DataError):
        box.close()


def test_rewriting_a_failed_letter_raises_the_original_error(tmp_path):
    (tmp_path / "S").write_text("in the way")
    box = LetterBox(DeadLetter(tmp_path))
    for _ in range(20):
        with suppress(DataError):
            box.put(letter(), payload_of(1))
    with pytest.raises(DataError, match="cannot be written"):
        box.close()


def test_a_read_only_directory_is_an_error(public_path, as_nobody):
    locked = public_path / "locked"
    locked.mkdir(mode=0o555)
    with as_nobody():
        box = LetterBox(DeadLetter(locked / "dead"))
        with pytest.raises(DataError, match="Permission denied"):
            box.prepare()
        box.put(letter(), payload_of(1))
        error = failure_of(box, f"{locked}/dead/S/0.letter")
        with pytest.raises(DataError):
            box.close()
    assert "Permission denied (errno 13, EACCES)" in error.message
    assert files(public_path) == []


class BrokenFileSystem(MemoryFileSystem):
    """Fails with its own exceptions, like object store clients."""

    protocol = "broken"
    store, pseudo_dirs = {}, [""]

    def cp_file(self, path1, path2, **kwargs):
        if "0.letter" in path2:
            raise RuntimeError("SlowDown: please reduce your request rate")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path2)


@pytest.mark.parametrize(("task_id", "why"), [("0", "RuntimeError: SlowDown"), ("1", "errno 28, ENOSPC")])
def test_a_failing_remote_filesystem_is_an_error(task_id, why):
    fsspec.register_implementation("broken", BrokenFileSystem, clobber=True)
    box = LetterBox(DeadLetter("broken://bucket/dead"))
    box.put(letter(task_id), payload_of(1))
    assert why in failure_of(box, f"broken://bucket/dead/S/{task_id}.letter").message
    assert BrokenFileSystem.store == {}
    with pytest.raises(DataError):
        box.close()


def test_an_unknown_filesystem_is_an_error():
    box = LetterBox(DeadLetter("nosuch://dead"))
    for call in (box.prepare, lambda: box.put(letter(), EMPTY), lambda: box.remove("S", "0")):
        with pytest.raises(ConfigurationError, match="no filesystem"):
            call()
    box.close()


def test_options_reach_the_filesystem(tmp_path):
    options = {"auto_mkdir": True, "skip_instance_cache": True}
    with_box(tmp_path, lambda box: box.put(letter(), EMPTY))
    box = LetterBox(DeadLetter(tmp_path, storage_options=options))
    box.remove("S", "0")
    assert box._target[0].auto_mkdir
    assert read(tmp_path, options) == load(tmp_path, storage_options=options) == []
