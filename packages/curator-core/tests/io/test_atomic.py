# SPDX-License-Identifier: Apache-2.0
"""Files appear when they are complete, or not at all."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest

from curator_core._files.atomic import atomic_file, create_file

CAN_BE_NAMELESS = hasattr(os, "O_TMPFILE") and Path("/proc/self/fd").is_dir()

KILLED = """
import os, signal, sys
import fsspec
from curator_core._files.atomic import atomic_file
with atomic_file(fsspec.filesystem("file"), sys.argv[1]) as stream:
    stream.write(b"half of it")
    stream.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(params=["without a name", "under another name"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The way in which a file is written until it is complete."""
    if request.param == "under another name":
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    elif not CAN_BE_NAMELESS:
        pytest.skip("this system has no unnamed files")
    return request.param


def local() -> Any:
    return fsspec.filesystem("file")


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_file_appears_when_it_is_complete(tmp_path: Path, way: str) -> None:
    with atomic_file(local(), str(tmp_path / "a.txt")) as stream:
        stream.write(b"one ")
        assert all(name.startswith(".") for name in names(tmp_path))
        if way == "without a name":
            assert names(tmp_path) == []
        stream.write(b"two")
        assert stream.tell() == 7
    assert names(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_bytes() == b"one two"


def test_an_existing_file_is_replaced(tmp_path: Path, way: str) -> None:
    for text in (b"first", b"second"):
        with atomic_file(local(), str(tmp_path / "a")) as stream:
            stream.write(text)
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"second"


@pytest.mark.parametrize("kind", ["file", "directory", "nothing"])
def test_an_existing_link_is_replaced_and_not_followed(tmp_path: Path, way: str, kind: str) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    if kind == "file":
        (outside / "target").write_bytes(b"mine")
    elif kind == "directory":
        (outside / "target").mkdir()
    before = names(outside)
    (inside / "a").symlink_to(outside / "target")
    with atomic_file(local(), str(inside / "a")) as stream:
        stream.write(b"text")
    assert names(inside) == ["a"]
    assert not (inside / "a").is_symlink()
    assert (inside / "a").read_bytes() == b"text"
    assert names(outside) == before
    if kind == "file":
        assert (outside / "target").read_bytes() == b"mine"
    elif kind == "directory":
        assert names(outside / "target") == []


def test_a_file_stays_in_its_directory_if_a_link_replaces_the_directory(tmp_path: Path, way: str) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    with atomic_file(local(), str(inside / "a")) as stream:
        stream.write(b"text")
        inside.rename(tmp_path / "moved")
        inside.symlink_to(outside)
    assert names(outside) == []
    assert names(tmp_path / "moved") == ["a"]


@pytest.mark.skipif(not hasattr(os, "O_PATH"), reason="a directory must be readable to be opened on this system")
def test_the_directory_can_be_a_link_and_unreadable(tmp_path: Path, way: str) -> None:
    (tmp_path / "large disk").mkdir(mode=0o300)
    (tmp_path / "out").symlink_to(tmp_path / "large disk")
    with atomic_file(local(), str(tmp_path / "out" / "a")) as stream:
        stream.write(b"text")
    assert (tmp_path / "large disk" / "a").read_bytes() == b"text"
    (tmp_path / "large disk").chmod(0o700)


def write_half(path: Path, error: BaseException) -> None:
    with atomic_file(local(), str(path)) as stream:
        stream.write(b"half")
        raise error


@pytest.mark.parametrize("error", [ValueError(), KeyboardInterrupt()], ids=type)
def test_a_failed_write_leaves_nothing(tmp_path: Path, way: str, error: BaseException) -> None:
    (tmp_path / "a").write_bytes(b"before")
    with pytest.raises(type(error)):
        write_half(tmp_path / "a", error)
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"before"


def test_files_have_the_permissions_of_the_umask(tmp_path: Path, way: str) -> None:
    before = os.umask(0o027)
    try:
        with atomic_file(local(), str(tmp_path / "a")) as stream:
            stream.write(b"text")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_an_existing_directory_is_not_replaced(tmp_path: Path, way: str) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"), atomic_file(local(), str(tmp_path / "a")) as stream:
        stream.write(b"text")
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["b"]


def test_a_missing_directory_is_an_error(tmp_path: Path, way: str) -> None:
    with pytest.raises(FileNotFoundError), atomic_file(local(), str(tmp_path / "no" / "a")):
        pytest.fail("the file must not be opened")


def test_a_name_of_maximum_length_can_be_written(tmp_path: Path, way: str) -> None:
    with atomic_file(local(), str(tmp_path / ("n" * 255))) as stream:
        stream.write(b"text")
    assert names(tmp_path) == ["n" * 255]


@pytest.mark.skipif(not CAN_BE_NAMELESS, reason="this system has no unnamed files")
def test_a_killed_writer_leaves_nothing(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "a")], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert names(tmp_path) == []


@pytest.mark.skipif(not CAN_BE_NAMELESS, reason="this system has no unnamed files")
def test_the_next_writer_removes_what_one_left_that_was_killed_while_it_replaced_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    replacing = "os.replace = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)"
    killed = KILLED.replace("    os.kill(os.getpid(), signal.SIGKILL)\n", "").replace("with", f"{replacing}\nwith", 1)
    ended = subprocess.run([sys.executable, "-c", killed, str(tmp_path / "a")], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 2
    with atomic_file(local(), str(tmp_path / "a")) as stream:
        stream.write(b"new")
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"new"


@pytest.mark.skipif(not CAN_BE_NAMELESS, reason="this system has no unnamed files")
def test_several_writers_replace_a_file_at_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def write(number: int) -> None:
        for _ in range(50):
            with atomic_file(local(), str(tmp_path / "a")) as stream:
                stream.write(b"%d" % number * 1000)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() in [b"%d" % number * 1000 for number in range(4)]


def test_on_remote_filesystems_a_temporary_name_is_used() -> None:
    memory = fsspec.filesystem("memory")
    with atomic_file(memory, "/atomic/a") as stream:
        stream.write(b"text")
        assert "/atomic/a" not in memory.find("/atomic")
    assert memory.find("/atomic") == ["/atomic/a"]
    memory.rm("/atomic", recursive=True)


@pytest.mark.parametrize("links", [True, False], ids=["with links", "without"])
def test_a_small_file_is_created_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    if not links:  # like disks without hard links
        monkeypatch.setattr(os, "link", refuse)
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    assert create_file(local(), str(tmp_path / "a"), b"first")
    assert not create_file(local(), str(tmp_path / "a"), b"second")
    assert (tmp_path / "a").read_bytes() == b"first"
    assert names(tmp_path) == ["a"]


def test_a_small_file_is_created_once_on_remote_filesystems() -> None:
    memory = fsspec.filesystem("memory")
    memory.makedirs("/once", exist_ok=True)
    try:
        assert create_file(memory, "/once/a", b"first")
        assert not create_file(memory, "/once/a", b"second")
        assert memory.cat_file("/once/a") == b"first"
        assert memory.find("/once") == ["/once/a"]
    finally:
        memory.rm("/once", recursive=True)
