# SPDX-License-Identifier: Apache-2.0
"""Outputs of a worker, packed for the next group of stages while more of them are made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from curator_core._local.parcels import UnsendableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Self

    from curator_core._local.parcels import Parcel, SharedFiles

__all__ = ["Outgoing"]


class Outgoing:
    """The part of the list interface that a `Chain` needs for its outputs.

    However many tasks are added, only those that do not fill a parcel yet stay in memory.

    Args:
        files: Packs the tasks.
        parcel_size: Number of tasks to pack together; 0 to discard all tasks, because nothing uses them.
    """

    def __init__(self, files: SharedFiles, parcel_size: int) -> None:
        self._files = files
        self._parcel_size = parcel_size
        self._parcels: list[Parcel] = []
        self._num_packed = 0
        self._unpacked: list[Any] = []
        self._is_sendable = True

    def __len__(self) -> int:
        """Return the number of tasks. The caller may drop tasks added from here on, so a parcel ends here."""
        self._pack_first(len(self._unpacked))
        return self._num_packed + len(self._unpacked)

    def __iadd__(self, tasks: Sequence[Any]) -> Self:
        if self._parcel_size:
            self._unpacked += tasks
            while self._is_sendable and len(self._unpacked) >= self._parcel_size:
                self._pack_first(self._parcel_size)
        return self

    def __iter__(self) -> Iterator[Any]:
        """Remove all tasks, and yield them."""
        parcels, self._parcels, self._num_packed = self._parcels, [], 0
        unpacked, self._unpacked = self._unpacked, []
        for parcel in parcels:
            yield from parcel.open()
        yield from unpacked

    def __delitem__(self, end: slice) -> None:
        """Drop the last tasks without reading them: ``del outgoing[count:]``, where `count` is an earlier length."""
        count: int = end.start
        while self._num_packed > count:
            parcel = self._parcels.pop()
            self._num_packed -= parcel.count
            parcel.discard()
        del self._unpacked[count - self._num_packed :]

    def pack(self) -> list[Parcel]:
        """Pack the remaining tasks, and return all parcels.

        Raises:
            UnsendableError: A task does not pickle. No task is lost: iterating still yields all of them.
        """
        unpacked, size = self._unpacked, self._parcel_size
        slices = [unpacked[start : start + size] for start in range(0, len(unpacked), size or 1)]
        last = [parcel for tasks in slices for parcel in self._files.pack(tasks)]
        return [*self._parcels, *last]

    def _pack_first(self, count: int) -> None:
        if not (count and self._is_sendable):
            return
        try:
            self._parcels += self._files.pack(self._unpacked[:count])
        except UnsendableError:  # `pack` raises it again, when all tasks are there
            self._is_sendable = False
            return
        del self._unpacked[:count]
        self._num_packed += count
