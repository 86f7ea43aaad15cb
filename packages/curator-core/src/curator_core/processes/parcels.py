# SPDX-License-Identifier: Apache-2.0
"""Tasks packed for another process of this machine, and what waits to be sent."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curator_core.bundling import within_bytes
from curator_core.pickling import dump_parts, load_parts, pickles

if TYPE_CHECKING:
    from collections.abc import Sequence

    from curator_core.bundling import BundlePlan

__all__ = ["Backlog", "Parcel", "Shelf", "UnsendableError"]

_LARGE = 256 * 1024  # bytes from which a file in memory is faster than a pipe: 8 MB took 5 ms instead of 17 to 50


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
        parts: The pickle and its buffers; of a parcel that lies on a `Shelf` each one's size, and whether it may be
            written to.
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

    def __reduce__(self) -> tuple[Any, ...]:
        return Parcel, (self.count, self.nbytes, self._parts, self._path)


class Shelf:
    """Packs tasks; what is large goes into files of one directory, which the processes of a run share.

    Args:
        directory: The directory; it should be in memory.
        owner: Who packs here, as the names of its files begin.
    """

    def __init__(self, directory: str, owner: str) -> None:
        self._prefix = f"{directory}/{owner}-"
        self._packed = 0

    def pack(self, tasks: Sequence[Any]) -> Parcel:
        """Pack tasks.

        Raises:
            UnsendableError: One of them does not pickle.
        """
        try:
            head, buffers = dump_parts(tasks)
        except Exception as exc:
            for task in tasks:
                if not pickles(task):
                    raise UnsendableError(task) from exc
            raise
        parts = [memoryview(part) for part in (head, *buffers)]
        nbytes = sum(part.nbytes for part in parts)
        if nbytes >= _LARGE:
            self._packed += 1
            path = f"{self._prefix}{self._packed}"
            if _written(path, parts):
                return Parcel(len(tasks), nbytes, [(part.nbytes, part.readonly) for part in parts], path)
        # Copies, so that nothing is sent that somebody writes to in the meantime.
        return Parcel(len(tasks), nbytes, [bytes(part) if part.readonly else bytearray(part) for part in parts])


class Backlog:
    """What waits for the workers of a group of stages, in order: tasks, or parcels of them.

    Args:
        plan: What bundles are to be like.
        shelf: Packs tasks.
        full: Whether a bundle has whole batches however large they are.

    Attributes:
        count: How many tasks wait.
        nbytes: How large those are that are packed.
    """

    def __init__(self, plan: BundlePlan, shelf: Shelf, *, full: bool) -> None:
        self._plan = plan
        self._shelf = shelf
        self._full = full
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
        unit = self._plan.batch_size
        count = self._fitting(size)
        if count > unit:
            count -= count % unit
        elif self._full:
            count = min(unit, self.count)
        taken: list[Parcel] = []
        while count:
            parcel = self._pop(count)
            count -= parcel.count
            taken.append(parcel)
        return taken

    def _fitting(self, size: int) -> int:
        """How many tasks a bundle may have by their number and their bytes; at least one."""
        count = nbytes = 0
        for item in self._items:
            if count >= size:
                break
            if isinstance(item, Parcel):
                if count and nbytes + item.nbytes > self._plan.max_bytes:
                    break
                nbytes += item.nbytes
                count += item.count
            else:
                fits = len(within_bytes(item[: size - count], self._plan))
                count += fits
                if fits < len(item):
                    break
        return min(count, size)

    def _pop(self, most: int) -> Parcel:
        """The first item, or so many tasks of it."""
        first = self._items[0]
        if isinstance(first, Parcel):
            self.nbytes -= first.nbytes
            if first.count <= most:
                self._items.popleft()
                self.count -= first.count
                return first
            first = self._items[0] = first.open()
        parcel = self._shelf.pack(first[:most])
        del first[:most]
        if not first:
            self._items.popleft()
        self.count -= parcel.count
        return parcel


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
