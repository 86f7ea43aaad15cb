# SPDX-License-Identifier: Apache-2.0
"""Tasks on their way to the driver: opaque to whoever hands them on, and not copied into a pickle."""

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
    """A pickle whose large buffers lie beside it, so that Ray moves them through shared memory as they are.

    Args:
        head: The pickle.
        buffers: Its buffers.
    """

    def __init__(self, head: bytes, buffers: Sequence[Any]) -> None:
        self._head = head
        self._buffers = list(buffers)

    @classmethod
    def of(cls, value: Any) -> Parcel:
        """Pack a value.

        Raises:
            Exception: It does not pickle.
        """
        # With Ray's own copy of cloudpickle: it knows classes that it sent by value when they come back.
        return cls(*dump_parts(value, ray.cloudpickle))

    @property
    def nbytes(self) -> int:
        """How large it is."""
        return len(self._head) + sum(memoryview(buffer).nbytes for buffer in self._buffers)

    def open(self) -> Any:
        """Unpack it.

        Buffers are copied once, out of Ray's shared memory, which would be held for as long as they live.
        """
        return load_parts(self._head, map(_copied, self._buffers))

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return Parcel, (self._head, [pickle.PickleBuffer(buffer) for buffer in self._buffers])


def _copied(buffer: Any) -> memoryview:
    """A copy of a buffer, which can be written to.

    It is NumPy's where NumPy is in use, as it is where there are arrays: that asks for huge pages, does not begin with
    zeros, and lets other threads run in the meantime. A copy of 8 MB took 2.4 ms instead of 5 to 6.
    """
    source = memoryview(buffer).cast("B")
    if "numpy" not in sys.modules:
        return memoryview(bytearray(source))
    import numpy as np  # noqa: PLC0415 - no dependency of this package

    return memoryview(np.frombuffer(source, np.uint8).copy())
