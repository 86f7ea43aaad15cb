# SPDX-License-Identifier: Apache-2.0
"""Tasks packed for another process of this machine, and the backlog of tasks that wait to be sent."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from curator_core._guard.user_code import check_failure
from curator_core._plan.bundles import MAX_BUNDLE_BYTES, in_batches
from curator_core._transport.packed import Packed
from curator_core._transport.pickling import pickles
from curator_core._transport.sizes import bytes_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from curator_core._plan.bundles import BundlePlan

__all__ = ["Backlog", "Parcel", "SharedFiles", "UnsendableError"]

_LARGE = 2**20  # bytes from which a file in memory costs less than the way through the driver, by two sockets


class UnsendableError(Exception):
    """A task does not pickle.

    Args:
        task: The task.
        reason: The exception from pickling it.
    """

    def __init__(self, task: Any, reason: BaseException) -> None:
        super().__init__(task)
        self.task = task
        self.reason = reason


class Parcel:
    """Packed tasks. A process that passes a parcel on does not unpickle it, and copies no large data.

    Args:
        count: Number of tasks.
        nbytes: Their size in bytes.
        content: The packed tasks, or the file that contains them if they are large.
    """

    __slots__ = ("count", "nbytes", "_content")

    def __init__(self, count: int, nbytes: int, content: Packed | PackedFile) -> None:
        self.count = count
        self.nbytes = nbytes
        self._content = content

    def open(self) -> list[Any]:
        """Return the tasks. Call it once: it removes the parcel's file.

        Raises:
            Exception: The tasks cannot be unpickled in this process.
        """
        packed = self._content if isinstance(self._content, Packed) else self._content.read()
        tasks: list[Any] = packed.open()
        return tasks

    def discard(self) -> None:
        """Remove the parcel's file without reading it."""
        if isinstance(self._content, PackedFile):
            os.unlink(self._content.path)  # noqa: PTH108 - see `_try_to_write`

    def __reduce__(self) -> tuple[Any, ...]:
        return Parcel, (self.count, self.nbytes, self._content)


class PackedFile(NamedTuple):
    """A packed value in a file of this machine.

    Attributes:
        path: The file.
        parts: The size of the pickle and of each buffer, and whether it is read-only.
    """

    path: str
    parts: Sequence[tuple[int, bool]]

    def read(self) -> Packed:
        """Return the packed value, and remove the file."""
        head, *buffers = _read(self.path, self.parts)
        return Packed(head, buffers)


class SharedFiles:
    """Packs tasks, and puts large data into files of a directory that the processes of a run share.

    Args:
        directory: The directory, preferably in memory.
        owner: Name of the process that packs. The names of its files begin with it.
        max_bytes: Maximum size of a parcel. Only a single task may exceed it.
    """

    def __init__(self, directory: str, owner: str, max_bytes: int = MAX_BUNDLE_BYTES) -> None:
        self._prefix = f"{directory}/{owner}-"
        self._max_bytes = max_bytes
        self._num_files = 0

    def pack(self, tasks: Sequence[Any]) -> list[Parcel]:
        """Pack tasks into one parcel, or into several if one would be too large.

        Raises:
            UnsendableError: A task does not pickle.
        """
        is_one = len(tasks) == 1
        if is_one or bytes_of(tasks) <= self._max_bytes:
            packed = _packed(tasks)
            nbytes = packed.nbytes
            if is_one or nbytes <= self._max_bytes:
                return [Parcel(len(tasks), nbytes, self._stored(packed, nbytes))]
        middle = len(tasks) // 2
        return [*self.pack(tasks[:middle]), *self.pack(tasks[middle:])]

    def _write(self, parts: Sequence[memoryview]) -> str:
        """Write the parts to a new file and return its path; return an empty string if there is no space for it."""
        self._num_files += 1
        path = f"{self._prefix}{self._num_files}"
        return path if _try_to_write(path, parts) else ""

    def _stored(self, packed: Packed, nbytes: int) -> Packed | PackedFile:
        parts = [memoryview(packed.head), *packed.buffers]
        if nbytes >= _LARGE and (path := self._write(parts)):
            return PackedFile(path, [(part.nbytes, part.readonly) for part in parts])
        # Copies, because the user's code may write to the buffers before they are sent.
        return packed.with_buffers(lambda buffer: bytes(buffer) if buffer.readonly else bytearray(buffer))


class Backlog:
    """The pending tasks of a group of stages, in order: parcels, and tasks that are not packed yet.

    Args:
        plan: The rules for bundle sizes.
        files: Packs tasks.

    Attributes:
        count: Number of pending tasks.
        nbytes: Total size of those that are packed, in bytes.
    """

    def __init__(self, plan: BundlePlan, files: SharedFiles) -> None:
        self._plan = plan
        self._files = files
        self._items: deque[Parcel | list[Any]] = deque()
        self.count = 0
        self.nbytes = 0

    def add(self, parcel: Parcel) -> None:
        """Append a parcel."""
        self._items.append(parcel)
        self.count += parcel.count
        self.nbytes += parcel.nbytes

    def add_task(self, task: Any) -> None:
        """Append a task."""
        last = self._items[-1] if self._items else None
        if isinstance(last, list):
            last.append(task)
        else:
            self._items.append([task])
        self.count += 1

    def take(self, size: int) -> list[Parcel]:
        """Remove the first `size` tasks and return them packed.

        There are fewer if they are large or if that keeps batches whole.

        Raises:
            UnsendableError: A task does not pickle.
            Exception: A parcel has to be split, and cannot be unpickled in this process.
        """
        count = in_batches(self._fitting(min(size, self.count)), self.count, self._plan)
        taken: list[Parcel] = []
        while count:
            taken.append(self._pop(count))
            count -= taken[-1].count
        return taken

    def _fitting(self, size: int) -> int:
        """Return how many of the first `size` tasks fit in a bundle by bytes; at least one."""
        count = nbytes = number = 0
        while count < size:
            parcel = self._packed(number, size - count)
            nbytes += parcel.nbytes
            if count and nbytes > self._plan.max_bytes:
                break
            count += parcel.count
            number += 1
        return min(count, size)

    def _pop(self, limit: int) -> Parcel:
        """Remove and return the first parcel, or a parcel of its first `limit` tasks if it has more."""
        parcel = self._packed(0, limit)
        if parcel.count > limit:
            self._items[0] = parcel.open()
            self.nbytes -= parcel.nbytes
            parcel = self._packed(0, limit)
        self._items.popleft()
        self.count -= parcel.count
        self.nbytes -= parcel.nbytes
        return parcel

    def _packed(self, number: int, limit: int) -> Parcel:
        """Return an item as a parcel. If it is a list of tasks, pack its first `limit` tasks."""
        item = self._items[number]
        if isinstance(item, Parcel):
            return item
        parcels = self._files.pack(item[:limit])
        del item[:limit]
        if not item:
            del self._items[number]
        for parcel in reversed(parcels):
            self._items.insert(number, parcel)
            self.nbytes += parcel.nbytes
        return parcels[0]


def _packed(tasks: Sequence[Any]) -> Packed:
    try:
        return Packed.of(tasks)
    except BaseException as exc:
        check_failure(exc)
        for task in tasks:
            if not pickles(task):
                raise UnsendableError(task, exc) from exc
        raise


def _try_to_write(path: str, parts: Sequence[memoryview]) -> bool:
    """Write parts to a file; return False if there is no space for it, as in containers with little shared memory."""
    try:
        with open(path, "xb") as file:  # noqa: PTH123 - a Path for each parcel costs as much as the file
            file.writelines(parts)
    except OSError:
        Path(path).unlink(missing_ok=True)
        return False
    return True


def _read(path: str, sizes: Sequence[tuple[int, bool]]) -> list[Any]:
    """Read a file's parts and remove the file.

    The file is not mapped, because a mapping would keep a file descriptor open for as long as an array lives.
    """
    parts: list[Any] = []
    with open(path, "rb") as file:  # noqa: PTH123 - see `_try_to_write`
        os.unlink(path)  # noqa: PTH108 - see `_try_to_write`
        for size, readonly in sizes:
            if readonly:
                parts.append(file.read(size))
            else:
                part = bytearray(size)
                file.readinto(part)
                parts.append(part)
    return parts
