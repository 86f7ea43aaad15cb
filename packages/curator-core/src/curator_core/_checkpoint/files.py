# SPDX-License-Identifier: Apache-2.0
"""Opens, writes, and replaces the files of a checkpoint, on any file system and never through a link."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from curator_core._files.atomic import atomic_file_in, open_directory
from curator_core._files.paths import reading, writing
from curator_core.errors import ConfigurationError, DataError

__all__ = ["make_directory", "open_regular", "read_whole", "replace_file", "sync_directory", "write_all"]

_MODE = 0o666  # less the user's umask
_NOT_REGULAR = (errno.ELOOP, errno.EISDIR, errno.ENXIO)  # a symbolic link, a directory, a pipe
_CANNOT_SYNC = (errno.EBADF, errno.EINVAL, errno.ENOTSUP)  # some network file systems cannot sync directories


def make_directory(path: str) -> None:
    """Create a directory and its parents if they are missing.

    Raises:
        ConfigurationError: The path exists, but is not a directory.
        DataError: It cannot be created.
    """
    directory = Path(path)
    if directory.is_dir():
        return
    if os.path.lexists(path):
        raise ConfigurationError(
            "the checkpoint's path is not a directory",
            field="path",
            given=path,
            expected="a directory, or a path that does not exist yet",
            hint="use a separate directory for the checkpoint",
        )
    with writing(path):
        directory.mkdir(parents=True, exist_ok=True)
        sync_directory(directory.parent)


def open_regular(path: str, flags: int) -> int:
    """Open a file of the checkpoint, or create it, depending on the flags of `os.open`.

    Returns:
        The file descriptor.

    Raises:
        DataError: It is not a regular file, but a symbolic link, a directory, or a pipe.
        OSError: See `os.open`.
    """
    try:
        # Without O_NONBLOCK, opening a pipe would wait for its other end. It has no effect on regular files.
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
    """Return the content of a small file; None if it does not exist.

    Raises:
        DataError: It cannot be read, or is not a regular file.
    """
    with reading(path):
        try:
            descriptor = open_regular(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        with os.fdopen(descriptor, "rb") as stream:
            return stream.read()


def write_all(descriptor: int, data: bytes) -> None:
    """Write all bytes, because a single `os.write` may write fewer."""
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def replace_file(path: str, data: bytes) -> None:
    """Replace a file atomically, and sync it to disk.

    Raises:
        DataError: It cannot be written.
    """
    target = Path(path)
    with writing(path):
        with open_directory(str(target.parent)) as parent, atomic_file_in(parent, target.name, sync=True) as stream:
            stream.write(data)
        sync_directory(target.parent)


def sync_directory(path: Path) -> None:
    """Sync a directory to disk, if the file system supports that.

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
        "a file of the checkpoint is not a regular file",
        field=path,
        expected="a regular file in the checkpoint's own directory; links are not followed",
        hint="find out where it came from and remove it, or use a separate directory for the checkpoint",
    )
