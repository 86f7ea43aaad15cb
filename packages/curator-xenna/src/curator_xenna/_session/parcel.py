# SPDX-License-Identifier: Apache-2.0
"""Values on their way between processes: opaque to the actors that pass them on, and not copied into a pickle."""

from __future__ import annotations

import pickle
import sys
from typing import TYPE_CHECKING, Any

import ray.cloudpickle

from curator_core.backends import dump_parts, load_parts

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Parcel"]


class Parcel:
    """A pickle with its large buffers kept separately, so that Ray moves them through shared memory without copies.

    Args:
        head: The pickle, without its buffers.
        buffers: Its buffers.
    """

    def __init__(self, head: bytes, buffers: Sequence[Any]) -> None:
        self._head = head
        self._buffers = list(buffers)

    @classmethod
    def of(cls, value: Any) -> Parcel:
        """Pack a value.

        Raises:
            Exception: The value cannot be pickled.
        """
        # With Ray's own copy of cloudpickle, which recognizes classes that it sent by value when they come back.
        return cls(*dump_parts(value, ray.cloudpickle))

    @property
    def nbytes(self) -> int:
        """The size of the pickle and its buffers, in bytes."""
        return len(self._head) + sum(memoryview(buffer).nbytes for buffer in self._buffers)

    def open(self) -> Any:
        """Unpack the value.

        Buffers are copied out of Ray's shared memory, which would otherwise stay in use as long as the value lives.
        """
        return load_parts(self._head, map(_copied, self._buffers))

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return Parcel, (self._head, [pickle.PickleBuffer(buffer) for buffer in self._buffers])


def _copied(buffer: Any) -> memoryview:
    """Return a writable copy of a buffer.

    If NumPy is loaded, as it is if there are arrays, NumPy makes the copy: it requests huge pages, does not fill the
    memory with zeros first, and lets other threads run in the meantime. A copy of 8 MB took 2.4 ms instead of 5 to 6.
    """
    source = memoryview(buffer).cast("B")
    if "numpy" not in sys.modules:
        return memoryview(bytearray(source))
    import numpy as np  # noqa: PLC0415 - not a dependency of this package

    return memoryview(np.frombuffer(source, np.uint8).copy())
