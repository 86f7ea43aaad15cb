# SPDX-License-Identifier: Apache-2.0
"""How the files of a checkpoint are opened, written and replaced: on any file system, and never through a link."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from curator_core.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

__all__ = [
    "make_directory",
    "open_regular",
    "read_whole",
    "reading",
    "replace_file",
    "sync_directory",
    "write_all",
    "writing",
]

_MODE = 0o666  # less the user's umask
_NOT_REGULAR = (errno.ELOOP, errno.EISDIR, errno.ENXIO)  # a symbolic link, a directory, a pipe
_CANNOT_SYNC = (errno.EBADF, errno.EINVAL, errno.ENOTSUP)  # some network file systems, on a directory


def reading(path: str) -> AbstractContextManager[None]:
    """Turn errors of the operating system into a `DataError`, as readers do."""
    from curator_core._files import paths as files  # noqa: PLC0415 - loads readers and writers: few runs have a checkpoint

    return files.reading(path)


def writing(path: str) -> AbstractContextManager[None]:
    """Turn errors of the operating system into a `DataError`, as writers do."""
    from curator_core._files import paths as files  # noqa: PLC0415 - as above

    return files.writing(path)


def make_directory(path: str) -> None:
    """Make a directory, and those above it, where it is missing.

    Raises:
        ConfigurationError: Something else is there.
        DataError: It cannot be made.
    """
    directory = Path(path)
    if directory.is_dir():
        return
    if os.path.lexists(path):
        raise ConfigurationError(
            "the checkpoint's path is no directory",
            field="path",
            given=path,
            expected="a directory, or nothing yet",
            hint="give the checkpoint a directory of its own",
        )
    with writing(path):
        directory.mkdir(parents=True, exist_ok=True)
        sync_directory(directory.parent)


def open_regular(path: str, flags: int) -> int:
    """Open a file of the checkpoint, or make it where the flags of `os.open` say so.

    Returns:
        The file descriptor.

    Raises:
        DataError: What is there is no regular file: a symbolic link, a directory, a pipe.
        OSError: As `os.open`.
    """
    try:
        # Without O_NONBLOCK a pipe would have it wait for the other end. Regular files do not know the difference.
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, _MODE)
    except OSError as exc:
        if exc.errno in _NOT_REGULAR:
            raise _not_regular(path) from exc
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_regular(path)
    return descriptor


def read_whole(path: str) -> bytes | None:
    """What a small file holds; None where it is not there.

    Raises:
        DataError: It cannot be read, or is no regular file.
    """
    with reading(path):
        try:
            descriptor = open_regular(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        with os.fdopen(descriptor, "rb") as stream:
            return stream.read()


def write_all(descriptor: int, data: bytes) -> None:
    """Write all bytes: the operating system may take fewer at a time."""
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def replace_file(path: str, data: bytes) -> None:
    """Write a file that is there as a whole, or as it was. One process at a time: the temporary name is fixed.

    Raises:
        DataError: It cannot be written.
    """
    temporary = f"{path}.tmp"
    with writing(path):
        descriptor = open_regular(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        Path(temporary).replace(path)
        sync_directory(Path(path).parent)


def sync_directory(path: Path) -> None:
    """Have the disk know of the files in a directory, where the file system can be asked to.

    Raises:
        OSError: The disk failed.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as exc:
        if exc.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(descriptor)


def _not_regular(path: str) -> DataError:
    return DataError(
        "a file of the checkpoint is no regular file",
        field=path,
        expected="a regular file in the checkpoint's own directory; links are not followed",
        hint="see who put it there and remove it, or give the checkpoint a directory of its own",
    )
