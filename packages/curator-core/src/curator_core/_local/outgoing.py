# SPDX-License-Identifier: Apache-2.0
"""Outputs of a worker, packed for the next one while more of them are made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from curator_core._local.parcels import UnsendableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Self

    from curator_core._local.parcels import Parcel, SharedFiles

__all__ = ["Outgoing"]


class Outgoing:
    """As much of a list as a `Chain` needs. Memory holds what does not fill a parcel yet, however much is added.

    Args:
        files: Packs them.
        size: How many are packed together; 0 where nobody wants any.
    """

    def __init__(self, files: SharedFiles, size: int) -> None:
        self._files = files
        self._size = size
        self._parcels: list[Parcel] = []
        self._packed = 0
        self._loose: list[Any] = []
        self._is_sendable = True

    def __len__(self) -> int:
        """Return how many there are; whoever asks may drop what is added from there on, so a parcel ends there."""
        self._pack_first(len(self._loose))
        return self._packed + len(self._loose)

    def __iadd__(self, tasks: Sequence[Any]) -> Self:
        if self._size:
            self._loose += tasks
            while self._is_sendable and len(self._loose) >= self._size:
                self._pack_first(self._size)
        return self

    def __iter__(self) -> Iterator[Any]:
        """Take all tasks out."""
        parcels, self._parcels, self._packed = self._parcels, [], 0
        loose, self._loose = self._loose, []
        for parcel in parcels:
            yield from parcel.open()
        yield from loose

    def __delitem__(self, end: slice) -> None:
        """Drop the tasks from one on, unread: ``del outgoing[count:]``, with a length that was asked for."""
        count: int = end.start
        while self._packed > count:
            parcel = self._parcels.pop()
            self._packed -= parcel.count
            parcel.discard()
        del self._loose[count - self._packed :]

    def pack(self) -> list[Parcel]:
        """Pack what is left, and return all parcels.

        Raises:
            UnsendableError: A task does not pickle. All of them are still here.
        """
        loose = self._loose
        parts = [loose[start : start + self._size] for start in range(0, len(loose), self._size or 1)]
        last = [parcel for part in parts for parcel in self._files.pack(part)]
        return [*self._parcels, *last]

    def _pack_first(self, count: int) -> None:
        if not (count and self._is_sendable):
            return
        try:
            self._parcels += self._files.pack(self._loose[:count])
        except UnsendableError:  # what becomes of such tasks is decided when all are there
            self._is_sendable = False
            return
        del self._loose[:count]
        self._packed += count
