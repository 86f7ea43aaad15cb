# SPDX-License-Identifier: Apache-2.0
"""One run at a time on a checkpoint: a file that is made once, on any file system, and says who made it.

No byte-range locks: network file systems have them differently or not at all. What all have is that of several who make
a file of one name only one succeeds, and that a file is renamed in one step.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from curator_core._checkpoint.files import open_regular, write_all, writing
from curator_core._checkpoint.holder import Holder
from curator_core.errors import ConfigurationError

if TYPE_CHECKING:
    from typing import Self

__all__ = ["RunLock"]

logger = logging.getLogger(__name__)

_UNKNOWN_FOR_S = 60.0  # how long a lock counts that does not say whose it is: its holder may be about to
_MAX_BYTES = 1 << 16


class _Found(NamedTuple):
    """A lock file as it was found."""

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
    """Keeps other runs off a checkpoint, from ``acquire`` to ``release`` or inside a ``with`` block.

    A lock whose holder was on this host and is gone is taken over. Of a holder on another host nothing is known: it
    counts as alive.

    Args:
        directory: The checkpoint's directory.
        run_id: The run.
    """

    def __init__(self, directory: str | os.PathLike[str], run_id: str) -> None:
        self._path = str(Path(directory) / "lock")
        self._claim = f"{self._path}.takeover"
        self._run_id = run_id
        self._data = b""  # what the file holds while it is ours
        self._pid = 0

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            ConfigurationError: Another run has it, or that cannot be ruled out.
            DataError: The file cannot be made or read, or is no regular file.
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
        """Give the lock back, where it is still ours. A process that was forked off the holder gives back nothing.

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
        """Put our lock in the place of a stale one; False where that is not there any more.

        Who would replace a stale lock makes the claim first. So the lock, which is there all the time, stays as it was
        found until the claim, which is our lock already, is renamed to it.
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
        logger.warning("%s was left behind by %s, which is gone: taken over", self._path, found.holder or "somebody")
        return True

    def _verify(self, data: bytes) -> None:
        """Raise where another run has found our lock before it said whose it is, and so long ago that it took over."""
        found = _look(self._path)
        if found is None or found.data != data:
            raise _refusal(found, self._path)


def _refusal(found: _Found | None, path: str) -> ConfigurationError:
    holder = found.holder if found is not None else None
    return ConfigurationError(
        f"the checkpoint is in use by {holder or 'a run that has not said which it is'}",
        field=path,
        expected="one run at a time on a checkpoint",
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
    """Make a file; False where there is one."""
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
