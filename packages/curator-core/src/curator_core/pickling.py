# SPDX-License-Identifier: Apache-2.0
"""The one way in which things are pickled, for another process or for later, and what to say where that fails."""

from __future__ import annotations

import inspect
import io
import sys
from collections.abc import Mapping
from functools import cache
from types import FunctionType
from typing import TYPE_CHECKING, Any

from curator_core.guard import check_failure

if TYPE_CHECKING:
    import pickle
    from collections.abc import Iterable, Iterator

__all__ = [
    "check_pickles",
    "dump_copy",
    "dump_parts",
    "dumps",
    "engines_cloudpickle",
    "find_unpicklable",
    "load_parts",
    "loads",
    "pickles",
    "use_cloudpickle",
]

_cloudpickle: Any = None  # set by an engine that has its own


def dumps(value: Any) -> bytes:
    """Pickle for another process; everything that crosses one goes through here.

    Functions and classes that no module holds travel by value: lambdas work. An open file is refused.
    """
    with io.BytesIO() as buffer:
        _pickler()(buffer).dump(value)
        return buffer.getvalue()


def dump_parts(value: Any) -> tuple[bytes, list[Any]]:
    """As `dumps`, with large buffers (of arrays, of Arrow tables) beside the pickle, not copied into it.

    Returns:
        The pickle, and the buffers: contiguous memory that belongs to the value, which `load_parts` wants again.
    """
    found: list[pickle.PickleBuffer] = []
    with io.BytesIO() as stream:
        _pickler()(stream, protocol=5, buffer_callback=found.append).dump(value)
        head = stream.getvalue()
    return head, [buffer.raw() for buffer in found]


def dump_copy(value: Any) -> tuple[bytes, list[Any]]:
    """As `dump_parts`, to be loaded in this process: by plain pickle, which is several times as fast.

    Classes and functions go by name; where a value holds one that no module has under its name, it is `dump_parts`.
    """
    import pickle  # noqa: PLC0415 - see `loads`

    found: list[pickle.PickleBuffer] = []
    try:
        head = pickle.dumps(value, protocol=5, buffer_callback=found.append)
    except BaseException as exc:  # noqa: BLE001 - what is no matter of names is raised again
        check_failure(exc)
        return dump_parts(value)
    return head, [buffer.raw() for buffer in found]


def load_parts(head: bytes, buffers: Iterable[Any]) -> Any:
    """What `dump_parts` was given; arrays are views of the buffers, and read-only where those are."""
    import pickle  # noqa: PLC0415 - see `loads`

    return pickle.loads(head, buffers=buffers)  # noqa: S301 - as `loads`


def use_cloudpickle(module: Any) -> None:
    """Pickle with an engine's own copy of cloudpickle from now on.

    A class that travelled by value is known again only by the copy that unpickled it: with another one the
    driver would get back tasks of a second class of the same name.
    """
    global _cloudpickle  # noqa: PLW0603 - one way to pickle for the whole process
    _cloudpickle = module
    _pickler.cache_clear()


def engines_cloudpickle() -> str | None:
    """Name of the engine's own copy of cloudpickle that is in use here; None where it is the plain one."""
    return None if _cloudpickle is None else _cloudpickle.__name__


def loads(data: bytes) -> Any:
    """What `dumps` was given. Only for what this project pickled itself: unpickling runs code."""
    import pickle  # noqa: PLC0415 - 3 ms, which an import of this package need not cost

    return pickle.loads(data)  # noqa: S301 - see above


def check_pickles(value: Any) -> None:
    """Raise what `dumps` would raise, without keeping the bytes."""
    _pickler()(_Nowhere()).dump(value)


def find_unpicklable(value: Any, path: str) -> tuple[str, Any]:
    """The innermost part of a value that does not pickle, and the path to it.

    Args:
        value: Something that does not pickle.
        path: What it is called.
    """
    seen: set[int] = set()
    while True:
        seen.add(id(value))
        for part_path, part in _parts(value, path):
            if id(part) not in seen and not pickles(part):
                path, value = part_path, part
                break
        else:
            return path, value


class _Nowhere:
    """A file that takes what is written and keeps nothing."""

    def write(self, data: Any) -> int:
        return len(data)


@cache
def _pickler() -> Any:
    module = _cloudpickle
    if module is None:
        import cloudpickle  # noqa: PLC0415 - 8 ms that a reader of files or a type checker need not pay

        module = cloudpickle

    reduce_file = module.Pickler.dispatch_table[io.TextIOWrapper]

    def refuse_file(file: io.TextIOWrapper) -> Any:
        # cloudpickle would read a file to its end and send a copy of the text: nobody means that.
        if file in (sys.stdout, sys.stderr):
            return reduce_file(file)
        raise TypeError(f"cannot pickle an open file: {file.name}")

    class Pickler(module.Pickler):  # type: ignore[name-defined,misc]  # without types
        dispatch_table = module.Pickler.dispatch_table.new_child({io.TextIOWrapper: refuse_file})

    return Pickler


def pickles(value: Any) -> bool:
    """Whether `dumps` would work."""
    try:
        check_pickles(value)
    except BaseException as exc:  # noqa: BLE001 - pickling runs code of users, which may raise anything
        check_failure(exc)
        return False
    return True


def _parts(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((f"{path}[{key!r}]", item) for key, item in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((f"{path}[{number}]", item) for number, item in enumerate(value))
    elif isinstance(value, FunctionType):
        try:
            captured = inspect.getclosurevars(value)
        except ValueError:  # a variable that has no value yet
            return
        yield from ((f"{path}'s variable {name}", item) for name, item in captured.nonlocals.items())
        yield from ((f"{path}'s global {name}", item) for name, item in captured.globals.items())
    elif not isinstance(value, type):
        yield from ((f"{path}.{name}", item) for name, item in _state(value).items())


def _state(value: Any) -> dict[str, Any]:
    """What pickle would take of an object."""
    try:
        state = value.__getstate__()
    except BaseException as exc:  # noqa: BLE001 - code of users; and then there is no looking inside
        check_failure(exc)
        return {}
    found: dict[str, Any] = {}
    for part in state if isinstance(state, tuple) else (state,):  # a pair where a class has slots
        if isinstance(part, dict):
            found |= part
    return found
