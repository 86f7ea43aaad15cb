# SPDX-License-Identifier: Apache-2.0
"""Files that appear under their names once they are complete, or not at all."""

from __future__ import annotations

import errno
import logging
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["atomic_file", "atomic_file_in", "create_file", "is_local", "open_directory", "rename_file"]

logger = logging.getLogger(__name__)

_NAME_LIMIT = 64  # characters of the final name in a temporary one, which must not outgrow what a name may be
_NO_LINKS = (errno.EPERM, errno.EMLINK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)  # of disks that have none
_OPEN_FILES = "/proc/self/fd"  # where Linux shows them: the way to give a name to one that has none
_TO_NAME = getattr(os, "O_PATH", os.O_RDONLY)  # what is in the directory need not be readable, where Linux is asked


@contextmanager
def atomic_file(fs: Any, path: str) -> Iterator[BinaryIO]:
    """A file that appears under its name once it is complete, or not at all.

    On local disks it has no name before, where the system can do that: nothing is left of it when its writer is
    killed. Elsewhere it is written under another name in the same directory, one that begins with a dot, and then
    renamed; object stores, which cannot rename, copy it on their side. It replaces a file of that name, and a symbolic
    link, which is not followed. Where anything fails, nothing is left behind.

    Args:
        fs: The fsspec filesystem.
        path: The final name, as the filesystem writes it.
    """
    parent, _, name = path.rpartition("/")
    if is_local(fs):
        with open_directory(parent or "/") as directory, atomic_file_in(directory, name) as stream:
            yield stream
        return
    temporary = f"{parent}/{_temporary(name)}"
    try:
        with fs.open(temporary, "wb") as stream:
            yield stream
        rename_file(fs, temporary, path)
    except BaseException:
        _remove(fs.rm_file, temporary)
        raise


@contextmanager
def atomic_file_in(directory: int, name: str) -> Iterator[BinaryIO]:
    """As `atomic_file`, in a directory of a local disk that is open already.

    Args:
        directory: What `open_directory` gives.
        name: The final name in it.
    """
    temporary, nameless = _temporary(name), _open_nameless(directory)
    try:
        if nameless is None:
            with _open_new(directory, temporary) as stream:
                yield stream
            os.replace(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        else:
            with nameless:
                yield nameless
                nameless.flush()
                _name(nameless.fileno(), directory, temporary, name)
    except BaseException:
        _remove(lambda _: os.unlink(temporary, dir_fd=directory), f"{_path_of(directory)}/{temporary}")
        raise


def rename_file(fs: Any, source: str, target: str) -> None:
    """Give a file another name, in place of a file that has it; object stores copy on their side.

    Args:
        fs: The fsspec filesystem.
        source: The name that it has, as the filesystem writes it.
        target: The one that it gets.
    """
    from fsspec import AbstractFileSystem  # noqa: PLC0415 - it is loaded: there is a filesystem

    if is_local(fs):
        os.replace(source, target)  # noqa: PTH105 - paths are plain text here, as fsspec has them
    elif type(fs).mv is not AbstractFileSystem.mv:
        fs.mv(source, target)
    else:  # as its mv would, but that takes the paths for patterns, which a directory's name may look like
        fs.cp_file(source, target)
        fs.rm_file(source)


def create_file(fs: Any, path: str, content: bytes) -> bool:
    """Make a small file, complete from the start, unless there is one of that name.

    Of several that make it at the same moment one succeeds, where the filesystem can promise that: local disks with
    hard links can, and object stores whose fsspec package can create a file exclusively. Elsewhere the last one stays.

    Args:
        fs: The fsspec filesystem.
        path: The final name, as the filesystem writes it.
        content: What is in it.

    Returns:
        Whether it was made; False where there was one.
    """
    try:
        if is_local(fs):
            _create_local(path, content)
        else:
            with fs.open(path, "xb") as stream:
                stream.write(content)
    except FileExistsError:
        return False
    except (OSError, ValueError, NotImplementedError) as exc:
        fs.invalidate_cache()
        if fs.exists(path):  # object stores have errors of their own for that
            return False
        if isinstance(exc, OSError) and exc.errno not in _NO_LINKS:
            raise
        with atomic_file(fs, path) as stream:
            stream.write(content)
    return True


def _create_local(path: str, content: bytes) -> None:
    parent, _, name = path.rpartition("/")
    temporary = _temporary(name)
    with open_directory(parent or "/") as directory:
        try:
            with _open_new(directory, temporary) as stream:
                stream.write(content)
            os.link(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        finally:
            _remove(lambda _: os.unlink(temporary, dir_fd=directory), f"{parent}/{temporary}")


@contextmanager
def open_directory(path: str, *, below: int | None = None) -> Iterator[int]:
    """A directory of a local disk, to make files in: it stays this one, whatever is put in its place meanwhile.

    Args:
        path: Where it is.
        below: An open directory that it is in, by name: a symbolic link in its place is an error.
    """
    follows = 0 if below is None else os.O_NOFOLLOW
    descriptor = os.open(path, _TO_NAME | os.O_DIRECTORY | follows, dir_fd=below)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _path_of(directory: int) -> str:
    """Where an open directory is, for a message; a dot where the system does not tell."""
    try:
        return str(Path(_OPEN_FILES, str(directory)).readlink())
    except OSError:
        return "."


def is_local(fs: Any) -> bool:
    """Whether a filesystem is that of this machine's disks."""
    from fsspec.implementations.local import LocalFileSystem  # noqa: PLC0415 - it is loaded: there is a filesystem

    return isinstance(fs, LocalFileSystem)


def _temporary(name: str) -> str:
    # Random, so that two attempts at the same task never write into one file.
    return f".{name[:_NAME_LIMIT]}.{os.urandom(6).hex()}.tmp"


def _open_nameless(directory: int) -> BinaryIO | None:
    """A file of a directory without a name; None where the system or the file system knows no such thing."""
    if not (hasattr(os, "O_TMPFILE") and Path(_OPEN_FILES).is_dir()):
        return None
    try:
        descriptor = os.open(".", os.O_TMPFILE | os.O_WRONLY, 0o666, dir_fd=directory)  # less the umask, as any file
    except OSError:  # what is wrong with the directory, if that is it, the attempt with a name will say
        return None
    return os.fdopen(descriptor, "wb")


def _open_new(directory: int, name: str) -> BinaryIO:
    return os.fdopen(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666, dir_fd=directory), "wb")


def _name(descriptor: int, directory: int, temporary: str, name: str) -> None:
    """Give a file its name; where that is taken, by way of another, since only renaming replaces a file."""
    source = f"{_OPEN_FILES}/{descriptor}"
    try:
        os.link(source, name, dst_dir_fd=directory)  # with a directory the link in /proc is followed
    except FileExistsError:
        os.link(source, temporary, dst_dir_fd=directory)
        os.replace(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)


def _remove(remove: Callable[[str], None], path: str) -> None:
    try:
        remove(path)
    except FileNotFoundError:
        return
    except Exception:  # the error that led here is the one to show
        logger.warning("a temporary file could not be removed: %s", path, exc_info=True)
