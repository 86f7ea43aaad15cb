# SPDX-License-Identifier: Apache-2.0
"""Pickling of numpy arrays that keeps read-only arrays read-only.

numpy itself does so if an array's memory travels outside the pickle. It does not if the memory is copied into the
pickle: for an array with gaps, of a subclass such as `numpy.memmap`, or of objects or dates. numpy is not imported
here: its class is recognized by name.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["array_reducer"]

_BESIDE = 2  # length of numpy's reduced form (function, arguments) if the array's memory travels outside the pickle


@lru_cache(maxsize=512)
def array_reducer(cls: type) -> Callable[[Any], tuple[Any, ...]] | None:
    """Return the function that reduces instances of a class for pickling; None if they are not arrays.

    Args:
        cls: The class.
    """
    is_array = any((base.__module__, base.__qualname__) == ("numpy", "ndarray") for base in cls.__mro__)
    return _reduce if is_array else None


def _reduce(array: Any) -> tuple[Any, ...]:
    reduced: tuple[Any, ...] = array.__reduce_ex__(5)
    if array.flags.writeable or len(reduced) == _BESIDE:
        return reduced
    return _read_only, reduced


def _read_only(make: Callable[..., Any], arguments: tuple[Any, ...], state: Any) -> Any:
    array = make(*arguments)
    array.__setstate__(state)
    array.flags.writeable = False
    return array
