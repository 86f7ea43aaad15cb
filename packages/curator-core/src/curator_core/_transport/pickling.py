# SPDX-License-Identifier: Apache-2.0
"""The one way to pickle objects, for another process or for later, and to find the part that does not pickle."""

from __future__ import annotations

import dis
import io
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from curator_core._guard.user_code import check_failure
from curator_core._transport.arrays import array_reducer
from curator_core._transport.by_value import once_a_process
from curator_core._transport.process_bound import imported, is_of_script, named_globals, reducer_for

if TYPE_CHECKING:
    import pickle
    from collections import ChainMap
    from collections.abc import Iterator

__all__ = [
    "check_copies",
    "check_pickles",
    "check_travels",
    "copied",
    "dump_into",
    "dumps",
    "dumps_plain",
    "engines_cloudpickle",
    "find_unpicklable",
    "loads",
    "pickles",
    "use_cloudpickle",
]

_cloudpickle: Any = None  # set by an engine that has its own copy
_CODE = (type, FunctionType)
_GLOBAL = re.compile(r"'s global \w+$")


def dumps(value: Any) -> bytes:
    """Pickle for another process; everything that crosses to another process goes through here.

    Functions and classes that cannot be imported from a module travel by value: lambdas work. Objects that belong to
    a process and have a name travel as that name: see `process_bound`. An open file is rejected.
    """
    with io.BytesIO() as stream:
        dump_into(stream, value)
        return stream.getvalue()


def dumps_plain(value: Any) -> bytes:
    """Return what `dumps` returns, in a fifth of the time if it consists of plain values.

    Plain pickle does not ask Python about each object, as the cloudpickle of `dumps` does.
    """
    import pickle  # noqa: PLC0415 - 3 ms, which an import of this package should not cost

    try:
        return pickle.dumps(value, protocol=5)
    except BaseException as exc:  # noqa: BLE001 - such as an instance of a user's str subclass among the plain values
        check_failure(exc)
        return dumps(value)


def dump_into(
    stream: Any, value: Any, buffers: list[pickle.PickleBuffer] | None = None, cloudpickle: Any = None
) -> None:
    """Pickle to a stream. If that fails, pickle again with names in place of modules' globals that do not pickle.

    Args:
        stream: The stream to write to.
        value: The value.
        buffers: Collects the large buffers of the value, which are not copied into the pickle; None to copy them.
        cloudpickle: An engine's own copy of cloudpickle to use; None for the one of `use_cloudpickle`.
    """
    pickler = _pickler(cloudpickle or _cloudpickle)
    options: dict[str, Any] = {} if buffers is None else {"protocol": 5, "buffer_callback": buffers.append}
    with suppress(Exception):  # raised again by the second attempt, unless names are enough
        pickler(stream, **options).dump(value)
        return
    stream.seek(0)
    stream.truncate()
    if buffers:
        buffers.clear()
    again = _pickler_by_name(cloudpickle or _cloudpickle)(stream, **options)
    again.names = named_globals()
    again.dump(value)


def use_cloudpickle(module: Any) -> None:
    """Pickle with an engine's own copy of cloudpickle from now on.

    A class that was pickled by value is recognized only by the copy of cloudpickle that unpickled it: with another
    copy, the driver would get back tasks of a second class of the same name.
    """
    global _cloudpickle  # noqa: PLW0603 - one way to pickle for the whole process
    _cloudpickle = module


def engines_cloudpickle() -> str | None:
    """Return the name of the engine's own copy of cloudpickle in use here; None for the plain one."""
    return None if _cloudpickle is None else _cloudpickle.__name__


def loads(data: bytes) -> Any:
    """Return the value that `dumps` pickled. Only for data that this project pickled: unpickling runs code."""
    import pickle  # noqa: PLC0415 - 3 ms, which an import of this package should not cost

    return pickle.loads(data)  # noqa: S301 - see above


def check_pickles(value: Any) -> None:
    """Raise the error that `dumps` would raise, without keeping the bytes."""
    dump_into(_Nowhere(), value)


def check_travels(value: Any) -> None:
    """Raise the error that pickling or unpickling a value would raise."""
    pickled, tell = dumps(value), sys.unraisablehook
    sys.unraisablehook = lambda raised: None  # from the `__del__` of objects that are only half restored
    try:
        loads(pickled)
    finally:
        sys.unraisablehook = tell


def copied(value: Any) -> Any:
    """Copy a value that `copy.deepcopy` cannot copy because it has a module, or a module's lock, in it."""
    import pickle  # noqa: PLC0415 - see `loads`

    with io.BytesIO() as stream:
        kept = _copy(value, stream)
        stream.seek(0)

        class Unpickler(pickle.Unpickler):
            def persistent_load(self, number: int) -> Any:
                return kept[number]

        return Unpickler(stream).load()


def check_copies(value: Any) -> None:
    """Raise the error that copying a value in this process would raise: code, and what it uses, is not copied."""
    _copy(value, _Nowhere())


def _copy(value: Any, stream: Any) -> list[Any]:
    """Pickle everything but the code, and return the code: the pickle refers to it by index."""
    pickler = _copier()(stream, protocol=5)
    pickler.kept = []
    pickler.dump(value)
    kept: list[Any] = pickler.kept
    return kept


def find_unpicklable(value: Any, path: str, check: Callable[[Any], None] | None = None) -> tuple[str, Any]:
    """Return the path to the innermost part of a value that does not pickle, and that part.

    Args:
        value: A value that does not pickle.
        path: The name of the value, which begins the path.
        check: The check that the value fails; None for `check_pickles`.
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
    """A file that discards what is written to it."""

    def write(self, data: Any) -> int:
        return len(data)

    def seek(self, position: int) -> None:
        """Do nothing: no bytes are kept."""

    def truncate(self) -> None:
        """Do nothing: no bytes are kept."""


@cache
def _pickler(module: Any) -> Any:
    if module is None:
        import cloudpickle  # noqa: PLC0415 - 8 ms that a reader of files or a type checker should not pay

        module = cloudpickle

    class Pickler(module.Pickler):  # type: ignore[misc]  # untyped
        dispatch_table = _Reducers(module.Pickler.dispatch_table)

        def reducer_override(self, thing: Any) -> Any:
            if issubclass(type(thing), _CODE):
                return once_a_process(thing, super().reducer_override(thing))
            return NotImplemented

    return Pickler


@cache
def _pickler_by_name(module: Any) -> Any:
    """Return a pickler that sends a module's global as its name if it does not pickle."""
    plain: Any = _pickler(module)

    class Pickler(plain):  # type: ignore[misc]  # untyped
        names: Mapping[int, tuple[str, str]]

        def reducer_override(self, thing: Any) -> Any:
            if id(thing) in self.names and not _works(plain(_Nowhere()).dump, thing):
                return imported, (*self.names[id(thing)], type(thing).__qualname__)
            return super().reducer_override(thing)

    return Pickler


@cache
def _copier() -> Any:
    class Copier(_pickler(_cloudpickle)):  # type: ignore[misc]  # untyped
        kept: list[Any]

        def persistent_id(self, thing: Any) -> int | None:
            if not issubclass(type(thing), (*_CODE, ModuleType)):
                return None
            self.kept.append(thing)
            return len(self.kept) - 1

    return Copier


class _Reducers(dict[type, Any]):
    """Reducers for classes whose instances do not decide on their own how they are pickled."""

    def __init__(self, others: ChainMap[type, Any]) -> None:
        super().__init__()
        self._others = others.maps
        reduce_file = others[io.TextIOWrapper]

        def refuse_file(file: io.TextIOWrapper) -> Any:
            # cloudpickle would read the rest of a file and send a copy of the text, which is never intended.
            if file in (sys.stdout, sys.stderr):
                return reduce_file(file)
            raise TypeError(f"cannot pickle an open file: {file.name}")

        self[io.TextIOWrapper] = refuse_file

    def __missing__(self, cls: type) -> Any:
        reduce = reducer_for(cls, pickles) or array_reducer(cls)
        if reduce is not None:
            return reduce
        for table in self._others:  # faster than asking the ChainMap, which raises for each miss
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
    elif not _GLOBAL.search(path) or is_of_script(type(value).__module__):  # for a library's global, the name is enough
        yield from ((f"{path}.{name}", item) for name, item in _state(value).items())
        yield path, type(value)


def _variables(function: FunctionType, path: str) -> Iterator[tuple[str, Any]]:
    """Yield the variables that a function uses and that are set outside of it."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        with suppress(ValueError):  # it has no value yet
            yield f"{path}'s variable {name}", cell.cell_contents
    for name in _global_names(function.__code__):
        if name in function.__globals__:
            yield f"{path}'s global {name}", function.__globals__[name]


def _global_names(code: CodeType) -> Iterator[str]:
    """Yield the globals that a function uses, including those of the functions inside it."""
    yield from (step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL")
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _global_names(constant)


def _unwrapped(member: Any) -> Iterator[Any]:
    """Yield the functions behind a method or a property; anything else as it is."""
    if isinstance(member, property):
        yield from (each for each in (member.fget, member.fset, member.fdel) if each is not None)
    elif isinstance(member, staticmethod | classmethod):
        yield member.__func__
    else:
        yield member


def _state(value: Any) -> dict[str, Any]:
    """Return the state of an object that pickle would use."""
    try:
        state = value.__getstate__()
    except BaseException as exc:  # noqa: BLE001 - code of users; without a state there is nothing to search
        check_failure(exc)
        return {}
    found: dict[str, Any] = {}
    for part in state if isinstance(state, tuple) else (state,):  # a pair if a class has slots
        if isinstance(part, dict):
            found |= part
    return found
