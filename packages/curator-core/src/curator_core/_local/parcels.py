# SPDX-License-Identifier: Apache-2.0
"""Tasks packed for another process of this machine, and what waits to be sent."""

from __future__ import annotations

import os
import select
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from curator_core._guard.user_code import check_failure
from curator_core._plan.bundles import MAX_BUNDLE_BYTES, in_batches
from curator_core._transport.pickling import dump_parts, dumps, load_parts, loads, pickles
from curator_core._transport.sizes import bytes_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from curator_core._plan.bundles import BundlePlan

__all__ = ["Backlog", "Parcel", "Posted", "SharedFiles", "UnsendableError", "fetch"]

_LARGE = 256 * 1024  # bytes from which a file in memory is faster than a pipe: 8 MB took 5 ms instead of 17 to 50
_WHOLE = -1  # a size to read, where nobody has told it
_ENVELOPE = 400  # bytes: what loky puts around a message, with something to spare
_ATOMIC = select.PIPE_BUF - _ENVELOPE

Posted: TypeAlias = bytes | str
"""Something pickled, on its way to another process; or the path of its file, where it is more than a pipe takes in one
piece. See `SharedFiles.post`."""


class UnsendableError(Exception):
    """A task does not pickle; what it raised is the cause.

    Args:
        task: The task.
    """

    def __init__(self, task: Any) -> None:
        super().__init__(task)
        self.task = task


class Parcel:
    """Some tasks, pickled. Whoever hands it on need not know what is in it, and copies nothing that is large.

    Args:
        count: How many tasks.
        nbytes: How large they are.
        parts: The pickle and its buffers; if a file has them, the size of each, and whether it is writable.
        path: The file that has them, where they are large.
    """

    __slots__ = ("count", "nbytes", "_parts", "_path")

    def __init__(self, count: int, nbytes: int, parts: Sequence[Any], path: str = "") -> None:
        self.count = count
        self.nbytes = nbytes
        self._parts = parts
        self._path = path

    def open(self) -> list[Any]:
        """The tasks. A parcel can be opened once: its file is gone then.

        Raises:
            Exception: They cannot be unpickled here.
        """
        head, *buffers = _read(self._path, self._parts) if self._path else self._parts
        tasks: list[Any] = load_parts(head, buffers)
        return tasks

    def discard(self) -> None:
        """Remove its file, unread."""
        if self._path:
            os.unlink(self._path)  # noqa: PTH108 - see `_written`

    def __reduce__(self) -> tuple[Any, ...]:
        return Parcel, (self.count, self.nbytes, self._parts, self._path)


class SharedFiles:
    """Packs tasks; what is large goes into files of one directory, which the processes of a run share.

    Args:
        directory: The directory; it should be in memory.
        owner: Who packs here, as the names of its files begin.
        max_bytes: No parcel is larger than this, unless a single task is.
    """

    def __init__(self, directory: str, owner: str, max_bytes: int = MAX_BUNDLE_BYTES) -> None:
        self._prefix = f"{directory}/{owner}-"
        self._max_bytes = max_bytes
        self._stored = 0

    def pack(self, tasks: Sequence[Any]) -> list[Parcel]:
        """Pack tasks: into one parcel, unless they are too large for that.

        Raises:
            UnsendableError: One of them does not pickle.
        """
        is_one = len(tasks) == 1
        if is_one or bytes_of(tasks) <= self._max_bytes:
            parts = _dumped(tasks)
            nbytes = sum(part.nbytes for part in parts)
            if is_one or nbytes <= self._max_bytes:
                return [self._store(len(tasks), nbytes, parts)]
        middle = len(tasks) // 2
        return [*self.pack(tasks[:middle]), *self.pack(tasks[middle:])]

    def post(self, thing: Any) -> Posted:
        """Make something ready for a pipe, for `fetch` at its other end.

        A process that is killed in the middle of a message leaves half of one, and loky waits for the other half for
        ever: its own end of the pipe, for writing, keeps the pipe open. So what does not go in one piece goes by file.
        """
        pickled = dumps(thing)
        if len(pickled) <= _ATOMIC:
            return pickled
        return self._put_down([memoryview(pickled)]) or pickled

    def _put_down(self, parts: Sequence[memoryview]) -> str:
        """The path of a new file of these parts; empty where there is no room for one."""
        self._stored += 1
        path = f"{self._prefix}{self._stored}"
        return path if _written(path, parts) else ""

    def _store(self, count: int, nbytes: int, parts: Sequence[memoryview]) -> Parcel:
        if nbytes >= _LARGE and (path := self._put_down(parts)):
            return Parcel(count, nbytes, [(part.nbytes, part.readonly) for part in parts], path)
        # Copies, so that nothing is sent that somebody writes to in the meantime.
        return Parcel(count, nbytes, [bytes(part) if part.readonly else bytearray(part) for part in parts])


def fetch(posted: Posted) -> Any:
    """What `SharedFiles.post` was given. Only for what this project posted itself: unpickling runs code."""
    return loads(posted if isinstance(posted, bytes) else _read(posted, [(_WHOLE, True)])[0])


class Backlog:
    """What waits for the workers of a group of stages, in order: tasks, or parcels of them.

    Args:
        plan: What bundles are to be like.
        files: Packs tasks.

    Attributes:
        count: How many tasks wait.
        nbytes: How large those are that are packed.
    """

    def __init__(self, plan: BundlePlan, files: SharedFiles) -> None:
        self._plan = plan
        self._files = files
        self._items: deque[Parcel | list[Any]] = deque()
        self.count = 0
        self.nbytes = 0

    def add(self, parcel: Parcel) -> None:
        """Add a parcel at the end."""
        self._items.append(parcel)
        self.count += parcel.count
        self.nbytes += parcel.nbytes

    def add_task(self, task: Any) -> None:
        """Add a task at the end."""
        last = self._items[-1] if self._items else None
        if isinstance(last, list):
            last.append(task)
        else:
            self._items.append([task])
        self.count += 1

    def take(self, size: int) -> list[Parcel]:
        """The first tasks, packed: as many, or fewer where they are large; whole batches where there are enough.

        Raises:
            UnsendableError: One does not pickle.
            Exception: What is in a parcel that is to be split cannot be unpickled here.
        """
        count = in_batches(self._fitting(min(size, self.count)), self.count, self._plan)
        taken: list[Parcel] = []
        while count:
            taken.append(self._pop(count))
            count -= taken[-1].count
        return taken

    def _fitting(self, size: int) -> int:
        """How many tasks, of so many, a bundle may have by their bytes; at least one."""
        count = nbytes = number = 0
        while count < size:
            parcel = self._parcel(number, size - count)
            nbytes += parcel.nbytes
            if count and nbytes > self._plan.max_bytes:
                break
            count += parcel.count
            number += 1
        return min(count, size)

    def _pop(self, most: int) -> Parcel:
        """The first parcel, or one of so many tasks that were in it."""
        parcel = self._parcel(0, most)
        if parcel.count > most:
            self._items[0] = parcel.open()
            self.nbytes -= parcel.nbytes
            parcel = self._parcel(0, most)
        self._items.popleft()
        self.count -= parcel.count
        self.nbytes -= parcel.nbytes
        return parcel

    def _parcel(self, number: int, most: int) -> Parcel:
        """An item; where it is tasks that are not packed, so many of them are now."""
        item = self._items[number]
        if isinstance(item, Parcel):
            return item
        parcels = self._files.pack(item[:most])
        del item[:most]
        if not item:
            del self._items[number]
        for parcel in reversed(parcels):
            self._items.insert(number, parcel)
            self.nbytes += parcel.nbytes
        return parcels[0]


def _dumped(tasks: Sequence[Any]) -> list[memoryview]:
    """Tasks as a pickle and its buffers."""
    try:
        head, buffers = dump_parts(tasks)
    except BaseException as exc:
        check_failure(exc)
        for task in tasks:
            if not pickles(task):
                raise UnsendableError(task) from exc
        raise
    return [memoryview(part) for part in (head, *buffers)]


def _written(path: str, parts: Sequence[memoryview]) -> bool:
    """Write parts into a file; False where there is no room for it, as in containers with little shared memory."""
    try:
        with open(path, "xb") as file:  # noqa: PTH123 - a Path for each parcel costs as much as the file
            file.writelines(parts)
    except OSError:
        Path(path).unlink(missing_ok=True)
        return False
    return True


def _read(path: str, sizes: Sequence[tuple[int, bool]]) -> list[Any]:
    """Read a file's parts, and remove it.

    The file is read and not mapped, since a mapping would hold a file descriptor for as long as an array lives.
    """
    parts: list[Any] = []
    with open(path, "rb") as file:  # noqa: PTH123 - see `_written`
        os.unlink(path)  # noqa: PTH108 - see `_written`
        for size, readonly in sizes:
            if readonly:
                parts.append(file.read(size))
            else:
                part = bytearray(size)
                file.readinto(part)
                parts.append(part)
    return parts
