# SPDX-License-Identifier: Apache-2.0
"""A lock that allows one run at a time per checkpoint: a file that names its creator, on any file system.

It does not use byte-range locks, because network file systems implement them differently or not at all. But all file
systems guarantee that only one process succeeds in creating a file with a given name, and that renaming is atomic.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from curator_core._checkpoint.files import open_regular, write_all
from curator_core._checkpoint.holder import Holder
from curator_core._files.paths import writing
from curator_core.errors import ConfigurationError

if TYPE_CHECKING:
    from typing import Self

__all__ = ["RunLock"]

logger = logging.getLogger(__name__)

_UNKNOWN_FOR_S = 60.0  # how long a lock without its holder's name is respected: the holder may be about to write it
_MAX_BYTES = 1 << 16


class _Found(NamedTuple):
    """The state of a lock file when it was read."""

    data: bytes
    inode: int
    modified_ns: int

    @property
    def holder(self) -> Holder | None:
        return Holder.parse(self.data)

    @property
    def is_stale(self) -> bool:
        holder = self.holder
        if holder is None:
            return time.time() - self.modified_ns / 1e9 > _UNKNOWN_FOR_S
        return holder.is_gone()


class RunLock:
    """Excludes other runs from a checkpoint, from ``acquire`` to ``release``, or inside a ``with`` block.

    If the holder of a lock was on this host and has ended, the lock is taken over. A holder on another host counts as
    alive, because nothing is known about it.

    Args:
        directory: The checkpoint's directory.
        run_id: The id of the run.
    """

    def __init__(self, directory: str | os.PathLike[str], run_id: str) -> None:
        self._path = str(Path(directory) / "lock")
        self._claim = f"{self._path}.takeover"
        self._run_id = run_id
        self._data = b""  # content of the file while this run holds the lock
        self._pid = 0

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            ConfigurationError: Another run holds it, or might hold it.
            DataError: The file cannot be created or read, or is not a regular file.
        """
        holder = Holder.here(self._run_id)
        data = holder.dump()
        with writing(self._path):
            while not _create(self._path, data):
                found = _look(self._path)
                if found is None:  # released in between
                    continue
                if not found.is_stale:
                    raise _refusal(found, self._path)
                if self._take_over(found, data):
                    break
            self._verify(data)
        self._data, self._pid = data, holder.pid

    def release(self) -> None:
        """Release the lock, if this run still holds it. In a process forked from the holder, this does nothing.

        Raises:
            DataError: The file cannot be read or removed.
        """
        if not self._data or os.getpid() != self._pid:
            return
        data, self._data = self._data, b""
        with writing(self._path):
            found = _look(self._path)
            if found is not None and found.data == data:
                Path(self._path).unlink()
                return
        logger.warning("the lock %s was removed or replaced while this run held it", self._path)

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def _take_over(self, found: _Found, data: bytes) -> bool:
        """Replace a stale lock with ours; return False if the stale lock no longer exists.

        A run must create the claim before it replaces a stale lock. So the lock always exists, and stays unchanged
        until the claim, which already contains our lock, is renamed to it.
        """
        if not _create(self._claim, data):
            raise _refusal(_look(self._claim), self._claim)
        try:
            is_there = _look(self._path) == found
            if is_there:
                Path(self._claim).rename(self._path)
        except BaseException:
            Path(self._claim).unlink(missing_ok=True)
            raise
        if not is_there:
            Path(self._claim).unlink()
            return False
        logger.warning("took over %s, left by %s, which has ended", self._path, found.holder or "an unknown run")
        return True

    def _verify(self, data: bytes) -> None:
        """Check that no other run took over our lock, which happens if writing our name to it took too long."""
        found = _look(self._path)
        if found is None or found.data != data:
            raise _refusal(found, self._path)


def _refusal(found: _Found | None, path: str) -> ConfigurationError:
    holder = found.holder if found is not None else None
    return ConfigurationError(
        f"the checkpoint is in use by {holder or 'an unknown run'}",
        field=path,
        expected="one run at a time per checkpoint",
        hint=f"wait until that run has ended; if its machine or container is gone, delete {path}",
    )


def _look(path: str) -> _Found | None:
    try:
        descriptor = open_regular(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as stream:
        status = os.fstat(descriptor)
        return _Found(stream.read(_MAX_BYTES), status.st_ino, status.st_mtime_ns)


def _create(path: str, data: bytes) -> bool:
    """Create a file; return False if it exists."""
    try:
        descriptor = open_regular(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return False
    try:
        write_all(descriptor, data)
    except BaseException:
        Path(path).unlink()
        raise
    finally:
        os.close(descriptor)
    return True
