# SPDX-License-Identifier: Apache-2.0
"""Writes files that appear under their names when they are complete, or not at all."""

from __future__ import annotations

import errno
import logging
import os
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from curator_core.tasks import digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["atomic_file", "atomic_file_in", "create_file", "is_local", "open_directory", "rename_file"]

logger = logging.getLogger(__name__)

_NAME_LIMIT = 64  # characters of the final name in a temporary name, which must not exceed the limit on names
_NO_LINKS = (errno.EPERM, errno.EMLINK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)  # disks without hard links
_OPEN_FILES = "/proc/self/fd"  # lists open files on Linux, and gives a path to a file that has no name
_TO_NAME = getattr(os, "O_PATH", os.O_RDONLY)  # on Linux, the directory need not be readable


@contextmanager
def atomic_file(fs: Any, path: str) -> Iterator[BinaryIO]:
    """Open a file that appears under its name when it is complete, or not at all.

    On local disks, the file has no name until then, if the system supports that, so nothing remains if its writer is
    killed. Elsewhere, it is written under a name that begins with a dot in the same directory, and then renamed; object
    stores, which cannot rename, copy it on the server side. It replaces an existing file, or a symbolic link, which is
    not followed. If anything fails, nothing remains.

    Args:
        fs: The fsspec filesystem.
        path: The final name, in the form that the filesystem uses.
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
def atomic_file_in(directory: int, name: str, *, sync: bool = False) -> Iterator[BinaryIO]:
    """Do the same as `atomic_file`, in an open directory of a local disk.

    Args:
        directory: The descriptor from `open_directory`.
        name: The final name in the directory.
        sync: Whether to sync the content to disk before the file appears.
    """
    nameless = _open_nameless(directory)
    temporary = _temporary(name) if nameless is None else _replacement(name)
    try:
        if nameless is None:
            with _open_new(directory, temporary) as stream:
                yield stream
                _flush(stream, sync=sync)
            os.replace(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        else:
            with nameless:
                yield nameless
                _flush(nameless, sync=sync)
                _name(nameless.fileno(), directory, temporary, name)
    except BaseException:
        _remove(lambda _: os.unlink(temporary, dir_fd=directory), f"{_path_of(directory)}/{temporary}")
        raise


def rename_file(fs: Any, source: str, target: str) -> None:
    """Rename a file, and replace an existing one; object stores copy on the server side.

    Args:
        fs: The fsspec filesystem.
        source: The current name, in the form that the filesystem uses.
        target: The new name.
    """
    from fsspec import AbstractFileSystem  # noqa: PLC0415 - fsspec is loaded: there is a filesystem

    if is_local(fs):
        os.replace(source, target)  # noqa: PTH105 - paths are plain strings here, as in fsspec
    elif type(fs).mv is not AbstractFileSystem.mv:
        fs.mv(source, target)
    else:  # fsspec's own mv does the same, but treats paths as patterns, and the name of a directory may look like one
        fs.cp_file(source, target)
        fs.rm_file(source)


def create_file(fs: Any, path: str, content: bytes) -> bool:
    """Create a small file that is complete from the start, unless a file with that name exists.

    If several callers create it at the same moment, only one succeeds, if the filesystem can guarantee that: local
    disks with hard links can, and object stores whose fsspec package can create files exclusively. Elsewhere, the last
    caller wins.

    Args:
        fs: The fsspec filesystem.
        path: The final name, in the form that the filesystem uses.
        content: The content of the file.

    Returns:
        Whether the file was created; False if it existed.
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
        if fs.exists(path):  # object stores raise their own errors for that
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
    """Open a directory of a local disk to create files in; it stays the same one even if its path is replaced.

    Args:
        path: The path of the directory.
        below: An open directory that contains it under the name ``path``; a symbolic link is then an error.
    """
    follows = 0 if below is None else os.O_NOFOLLOW
    descriptor = os.open(path, _TO_NAME | os.O_DIRECTORY | follows, dir_fd=below)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _path_of(directory: int) -> str:
    """Return the path of an open directory, for a message; a dot if unknown."""
    try:
        return str(Path(_OPEN_FILES, str(directory)).readlink())
    except OSError:
        return "."


def is_local(fs: Any) -> bool:
    """Whether a filesystem is the one of this machine's disks."""
    from fsspec.implementations.local import LocalFileSystem  # noqa: PLC0415 - fsspec is loaded: there is a filesystem

    return isinstance(fs, LocalFileSystem)


def _temporary(name: str) -> str:
    # Random, so that two attempts at the same task never write to the same file.
    return _hidden(name, os.urandom(6).hex())


def _replacement(name: str) -> str:
    # The same for all attempts, so that the next one replaces the link that a killed one has left.
    return _hidden(name, digest(name, 6))


def _hidden(name: str, distinction: str) -> str:
    return f".{name[:_NAME_LIMIT]}.{distinction}.tmp"


def _open_nameless(directory: int) -> BinaryIO | None:
    """Open a file without a name in a directory; None if the operating system or the file system cannot do that."""
    if not (hasattr(os, "O_TMPFILE") and Path(_OPEN_FILES).is_dir()):
        return None
    try:
        descriptor = os.open(".", os.O_TMPFILE | os.O_WRONLY, 0o666, dir_fd=directory)  # less the umask, as any file
    except OSError:  # if the directory is the problem, creating a file with a name raises the error
        return None
    return os.fdopen(descriptor, "wb")


def _open_new(directory: int, name: str) -> BinaryIO:
    return os.fdopen(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666, dir_fd=directory), "wb")


def _flush(stream: BinaryIO, *, sync: bool) -> None:
    stream.flush()
    if sync:
        os.fsync(stream.fileno())


def _name(descriptor: int, directory: int, temporary: str, name: str) -> None:
    """Give a file its name; if the name is taken, through a temporary one, because only renaming replaces a file."""
    source = f"{_OPEN_FILES}/{descriptor}"
    try:
        os.link(source, name, dst_dir_fd=directory)  # with dst_dir_fd, the link in /proc is followed
    except FileExistsError:
        while not _link_anew(source, directory, temporary):
            pass
        # If the link is gone, another attempt at the same file removed it and puts its own content there.
        with suppress(FileNotFoundError):
            os.replace(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)


def _link_anew(source: str, directory: int, temporary: str) -> bool:
    """Give an open file a temporary name, in place of what a killed attempt left; return False if it is taken again."""
    with suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=directory)
    try:
        os.link(source, temporary, dst_dir_fd=directory)
    except FileExistsError:
        return False
    return True


def _remove(remove: Callable[[str], None], path: str) -> None:
    try:
        remove(path)
    except FileNotFoundError:
        return
    except Exception:  # logged only, so that the error that led here is raised
        logger.warning("a temporary file could not be removed: %s", path, exc_info=True)
