# SPDX-License-Identifier: Apache-2.0
"""Arrays of numpy in a pickle: what is read-only stays read-only.

numpy sees to that where an array's memory is beside the pickle, and forgets it where it is not: with gaps, in a
subclass such as `numpy.memmap`, of objects or dates. numpy is not imported here: its class is known by name.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["array_reducer"]

_BESIDE = 2  # how many things numpy returns for an array whose memory it hands out: what makes it, and from what


@lru_cache(maxsize=512)
def array_reducer(cls: type) -> Callable[[Any], tuple[Any, ...]] | None:
    """How the instances of a class are pickled; None where they are not arrays.

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
