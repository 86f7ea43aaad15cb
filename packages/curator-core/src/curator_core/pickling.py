# SPDX-License-Identifier: Apache-2.0
"""The one way in which things are pickled, for another process or for later, and what to say where that fails."""

from __future__ import annotations

import copyreg
import dis
import io
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from curator_core.arrays import array_reducer
from curator_core.by_value import once_a_process
from curator_core.guard import check_failure
from curator_core.process_bound import imported, is_of_script, named_globals, reducer_for

if TYPE_CHECKING:
    import pickle
    from collections import ChainMap
    from collections.abc import Iterable, Iterator

__all__ = [
    "check_copies",
    "check_pickles",
    "check_travels",
    "copied",
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
_CODE = (type, FunctionType)
_GLOBAL = re.compile(r"'s global \w+$")


def dumps(value: Any) -> bytes:
    """Pickle for another process; everything that crosses one goes through here.

    Functions and classes that no module holds travel by value: lambdas work. What belongs to a process and has a name
    travels as that name: see `process_bound`. An open file is refused.
    """
    with io.BytesIO() as stream:
        _dump(value, stream)
        return stream.getvalue()


def dump_parts(value: Any, cloudpickle: Any = None, *, only_writable: bool = False) -> tuple[bytes, list[Any]]:
    """As `dumps`, with large buffers (of arrays, of Arrow tables) beside the pickle, not copied into it.

    Args:
        value: What to pickle.
        cloudpickle: An engine's own copy of cloudpickle to do it with; None for the one of `use_cloudpickle`.
        only_writable: Whether read-only buffers go into the pickle, where they stay read-only whatever is loaded.

    Returns:
        The pickle, and the buffers: contiguous memory that belongs to the value, which `load_parts` wants again.
    """
    found: list[pickle.PickleBuffer] = _Writable() if only_writable else []
    with io.BytesIO() as stream:
        _dump(value, stream, found, cloudpickle)
        head = stream.getvalue()
    return head, [buffer.raw() for buffer in found]


class _Writable(list[Any]):
    """Takes the buffers that may be written to; pickle keeps those for which it is told that they are not taken."""

    def append(self, buffer: pickle.PickleBuffer) -> bool:  # type: ignore[override]  # what a `buffer_callback` returns
        is_kept = buffer.raw().readonly
        if not is_kept:
            super().append(buffer)
        return is_kept


def dump_copy(value: Any) -> tuple[bytes, list[Any]]:
    """As `dump_parts`, to be loaded in this process: by plain pickle, which is several times as fast.

    Classes and functions go by name; where a value holds one that no module has under its name, it is `dump_parts`.
    """
    import pickle  # noqa: PLC0415 - see `loads`

    found: list[pickle.PickleBuffer] = []
    try:
        with io.BytesIO() as stream:
            pickler = pickle.Pickler(stream, protocol=5, buffer_callback=found.append)
            if "numpy" in sys.modules:
                pickler.dispatch_table = _ARRAYS
            pickler.dump(value)
            head = stream.getvalue()
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


def engines_cloudpickle() -> str | None:
    """Name of the engine's own copy of cloudpickle that is in use here; None where it is the plain one."""
    return None if _cloudpickle is None else _cloudpickle.__name__


def loads(data: bytes) -> Any:
    """What `dumps` was given. Only for what this project pickled itself: unpickling runs code."""
    import pickle  # noqa: PLC0415 - 3 ms, which an import of this package need not cost

    return pickle.loads(data)  # noqa: S301 - see above


def check_pickles(value: Any) -> None:
    """Raise what `dumps` would raise, without keeping the bytes."""
    _dump(value, _Nowhere())


def check_travels(value: Any) -> None:
    """Raise what pickling a value, or unpickling it, would raise."""
    pickled, tell = dumps(value), sys.unraisablehook
    sys.unraisablehook = lambda raised: None  # of the `__del__` of what is only half there
    try:
        loads(pickled)
    finally:
        sys.unraisablehook = tell


def copied(value: Any) -> Any:
    """A copy for this process, where `copy.deepcopy` makes none: of what holds a module, or a module's lock."""
    import pickle  # noqa: PLC0415 - see `loads`

    with io.BytesIO() as stream:
        kept = _copy(value, stream)
        stream.seek(0)

        class Unpickler(pickle.Unpickler):
            def persistent_load(self, number: int) -> Any:
                return kept[number]

        return Unpickler(stream).load()


def check_copies(value: Any) -> None:
    """Raise what copying a value within this process would raise: code is not copied, nor what it uses."""
    _copy(value, _Nowhere())


def _copy(value: Any, stream: Any) -> list[Any]:
    """Pickle all but the code; gives that, by its number."""
    pickler = _copier()(stream, protocol=5)
    pickler.kept = []
    pickler.dump(value)
    kept: list[Any] = pickler.kept
    return kept


def find_unpicklable(value: Any, path: str, check: Callable[[Any], None] | None = None) -> tuple[str, Any]:
    """The innermost part of a value that does not pickle, and the path to it.

    Args:
        value: Something that does not pickle.
        path: What it is called.
        check: What is asked of it and its parts; None for `check_pickles`.
    """
    check = check or check_pickles
    seen: set[int] = set()
    while True:
        seen.add(id(value))
        for part_path, part in _parts(value, path):
            if id(part) not in seen and not _works(check, part):
                path, value = part_path, part
                break
        else:
            return path, value


class _Nowhere:
    """A file that takes what is written and keeps nothing."""

    def write(self, data: Any) -> int:
        return len(data)

    def seek(self, position: int) -> None:
        """There is nothing to go back to."""

    def truncate(self) -> None:
        """There is nothing to cut off."""


def _dump(value: Any, stream: Any, buffers: list[pickle.PickleBuffer] | None = None, cloudpickle: Any = None) -> None:
    """Pickle; where that fails, once more with all globals of modules that do not pickle by their names."""
    pickler = _pickler(cloudpickle or _cloudpickle)
    options: dict[str, Any] = {} if buffers is None else {"protocol": 5, "buffer_callback": buffers.append}
    with suppress(Exception):  # raised again by the second one, unless names are all that it takes
        pickler(stream, **options).dump(value)
        return
    stream.seek(0)
    stream.truncate()
    if buffers:
        buffers.clear()
    again = _pickler_by_name(cloudpickle or _cloudpickle)(stream, **options)
    again.names = named_globals()
    again.dump(value)


@cache
def _pickler(module: Any) -> Any:
    if module is None:
        import cloudpickle  # noqa: PLC0415 - 8 ms that a reader of files or a type checker need not pay

        module = cloudpickle

    class Pickler(module.Pickler):  # type: ignore[misc]  # without types
        dispatch_table = _Reducers(module.Pickler.dispatch_table)

        def reducer_override(self, thing: Any) -> Any:
            if issubclass(type(thing), _CODE):
                return once_a_process(thing, super().reducer_override(thing))
            return NotImplemented

    return Pickler


@cache
def _pickler_by_name(module: Any) -> Any:
    """One that sends what does not pickle, and is a module's global, as its name."""
    plain: Any = _pickler(module)

    class Pickler(plain):  # type: ignore[misc]  # as above
        names: Mapping[int, tuple[str, str]]

        def reducer_override(self, thing: Any) -> Any:
            if id(thing) in self.names and not _works(plain(_Nowhere()).dump, thing):
                return imported, (*self.names[id(thing)], type(thing).__qualname__)
            return super().reducer_override(thing)

    return Pickler


@cache
def _copier() -> Any:
    class Copier(_pickler(_cloudpickle)):  # type: ignore[misc]  # as above
        kept: list[Any]

        def persistent_id(self, thing: Any) -> int | None:
            if not issubclass(type(thing), (*_CODE, ModuleType)):
                return None
            self.kept.append(thing)
            return len(self.kept) - 1

    return Copier


class _ArrayReducers(dict[type, Any]):
    """How arrays are pickled, beside what `copyreg` knows."""

    def __missing__(self, cls: type) -> Any:
        reduce = array_reducer(cls) or copyreg.dispatch_table.get(cls)
        if reduce is None:
            raise KeyError(cls)
        return reduce


_ARRAYS = _ArrayReducers()


class _Reducers(dict[type, Any]):
    """How instances of a class are pickled, where that is not their own business."""

    def __init__(self, others: ChainMap[type, Any]) -> None:
        super().__init__()
        self._others = others.maps
        reduce_file = others[io.TextIOWrapper]

        def refuse_file(file: io.TextIOWrapper) -> Any:
            # cloudpickle would read a file to its end and send a copy of the text: nobody means that.
            if file in (sys.stdout, sys.stderr):
                return reduce_file(file)
            raise TypeError(f"cannot pickle an open file: {file.name}")

        self[io.TextIOWrapper] = refuse_file

    def __missing__(self, cls: type) -> Any:
        reduce = reducer_for(cls, pickles) or array_reducer(cls)
        if reduce is not None:
            return reduce
        for table in self._others:  # faster than asking the whole, which raises for each
            if cls in table:
                return table[cls]
        raise KeyError(cls)


def pickles(value: Any) -> bool:
    """Whether `dumps` would work."""
    return _works(check_pickles, value)


def _works(check: Callable[[Any], Any], value: Any) -> bool:
    try:
        check(value)
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
        yield from _variables(value, path)
    elif isinstance(value, type):
        yield from ((path, base) for base in value.__bases__)
        yield from ((f"{path}.{name}", item) for name, member in vars(value).items() for item in _unwrapped(member))
    elif not _GLOBAL.search(path) or is_of_script(type(value).__module__):  # a global of a library's says enough
        yield from ((f"{path}.{name}", item) for name, item in _state(value).items())
        yield path, type(value)


def _variables(function: FunctionType, path: str) -> Iterator[tuple[str, Any]]:
    """What a function uses, and others have set."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        with suppress(ValueError):  # it has no value yet
            yield f"{path}'s variable {name}", cell.cell_contents
    for name in _global_names(function.__code__):
        if name in function.__globals__:
            yield f"{path}'s global {name}", function.__globals__[name]


def _global_names(code: CodeType) -> Iterator[str]:
    """The globals that a function uses; also those of functions in it."""
    yield from (step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL")
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _global_names(constant)


def _unwrapped(member: Any) -> Iterator[Any]:
    """The functions behind a method, a property; anything else as it is."""
    if isinstance(member, property):
        yield from (each for each in (member.fget, member.fset, member.fdel) if each is not None)
    elif isinstance(member, staticmethod | classmethod):
        yield member.__func__
    else:
        yield member


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
