# SPDX-License-Identifier: Apache-2.0
"""A pickled value with its large buffers beside the pickle: for another process, a retry, or a file."""

from __future__ import annotations

import copyreg
import io
import sys
from typing import TYPE_CHECKING, Any

from curator_core._guard.user_code import check_failure
from curator_core._transport.arrays import array_reducer
from curator_core._transport.pickling import dump_into

if TYPE_CHECKING:
    import pickle
    from collections.abc import Callable, Iterable
    from typing import Self

__all__ = ["Packed"]


class Packed:
    """A pickled value, with large buffers (of arrays and Arrow tables) beside the pickle, not copied into it.

    It pickles without copying its buffers, so it can be part of another packed value, and an engine can move the
    buffers through shared memory. A process that passes it on does not unpickle the value.

    Args:
        head: The pickle.
        buffers: The buffers that the pickle refers to, in order: contiguous memory.
    """

    __slots__ = ("buffers", "head")

    def __init__(self, head: bytes, buffers: Iterable[Any] = ()) -> None:
        self.head = head
        self.buffers = [*buffers]

    @classmethod
    def of(cls, value: Any, cloudpickle: Any = None, *, only_writable: bool = False) -> Self:
        """Pack a value as `dumps` pickles it. Its buffers are memory that still belongs to the value.

        Args:
            value: The value.
            cloudpickle: An engine's own copy of cloudpickle to use; None for the one of `use_cloudpickle`.
            only_writable: Whether read-only buffers go into the pickle, where they stay read-only however it is loaded.

        Raises:
            Exception: The value does not pickle.
        """
        found: list[pickle.PickleBuffer] = _Writable() if only_writable else []
        with io.BytesIO() as stream:
            dump_into(stream, value, found, cloudpickle)
            return cls(stream.getvalue(), [buffer.raw() for buffer in found])

    @classmethod
    def of_copy(cls, value: Any) -> Self:
        """Pack a value to be opened in this process: by plain pickle, which is several times as fast.

        Classes and functions go by name; if a value has one that cannot be imported by its name, this is `of`.

        Raises:
            Exception: The value does not pickle.
        """
        import pickle  # noqa: PLC0415 - 3 ms, which an import of this package should not cost

        found: list[pickle.PickleBuffer] = []
        try:
            with io.BytesIO() as stream:
                pickler = pickle.Pickler(stream, protocol=5, buffer_callback=found.append)
                if "numpy" in sys.modules:
                    pickler.dispatch_table = _ARRAYS
                pickler.dump(value)
                return cls(stream.getvalue(), [buffer.raw() for buffer in found])
        except BaseException as exc:  # noqa: BLE001 - raised again by `of`, unless only names were missing
            check_failure(exc)
            return cls.of(value)

    @property
    def nbytes(self) -> int:
        """The size of the pickle and its buffers, in bytes."""
        return len(self.head) + sum(memoryview(buffer).nbytes for buffer in self.buffers)

    def open(self) -> Any:
        """Return the value; arrays are views of the buffers, and read-only if the buffers are.

        Only for values that this project packed: unpickling runs code.

        Raises:
            BaseException: It cannot be unpickled in this process.
        """
        import pickle  # noqa: PLC0415 - see `of_copy`

        return pickle.loads(self.head, buffers=self.buffers)  # noqa: S301 - see above

    def with_buffers(self, convert: Callable[[Any], Any]) -> Packed:
        """Return the same pickle with other buffers of the same content, such as copies.

        Args:
            convert: Called with each buffer; returns the one to use.
        """
        return Packed(self.head, map(convert, self.buffers))

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        import pickle  # noqa: PLC0415 - see `of_copy`

        return Packed, (self.head, [*map(pickle.PickleBuffer, self.buffers)])


class _Writable(list[Any]):
    """Collects writable buffers; a true result of `append` tells pickle to keep the buffer in the pickle."""

    def append(self, buffer: pickle.PickleBuffer) -> bool:  # type: ignore[override]  # result of a `buffer_callback`
        is_kept = buffer.raw().readonly
        if not is_kept:
            super().append(buffer)
        return is_kept


class _ArrayReducers(dict[type, Any]):
    """Reducers for arrays, in addition to those in `copyreg`."""

    def __missing__(self, cls: type) -> Any:
        reduce = array_reducer(cls) or copyreg.dispatch_table.get(cls)
        if reduce is None:
            raise KeyError(cls)
        return reduce


_ARRAYS = _ArrayReducers()
