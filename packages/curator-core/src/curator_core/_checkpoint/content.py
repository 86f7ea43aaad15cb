# SPDX-License-Identifier: Apache-2.0
"""Digests of the content of values: the same in every process, whatever the hash seed and the addresses of objects.

Each part of a value has a digest, and the digest of a container is computed from those of its parts. Everything that is
hashed has a tag and its length, so that different values never produce the same input. An object of an unknown type is
reduced as pickle would reduce it, but not pickled: the result of the reduction is walked in the same way.

Digests are compared with those of earlier runs. They may differ between libraries and between versions of libraries.
"""

from __future__ import annotations

import copyreg
import sys
from collections import OrderedDict
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cached_property, lru_cache
from hashlib import blake2b
from pathlib import PurePath, PureWindowsPath
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any

from curator_core._foreign import BoxedTask
from curator_core._guard.user_code import check_failure
from curator_core._transport.exceptions import message_of
from curator_core.errors import DataError
from curator_core.tasks import Task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["content_id", "qualified_name", "value_digest"]

_DIGEST_BYTES = 16
_HEX_DIGITS = 20
_MAX_DEPTH = 100  # deeper than any data, and far from the interpreter's recursion limit
_CACHED = 1024  # names of attributes
_PROTOCOL = 4  # the last pickle protocol that keeps buffers in the pickle


def content_id(task: Any) -> str:
    """Return an id for a source task that does not provide its own, based on its class and content.

    The framework's state and the notes in ``metadata`` do not count. Two tasks with the same content have the same id.

    Returns:
        ``c`` and 20 hex digits.

    Raises:
        DataError: It contains an object without comparable content, such as an open file, or it contains itself.
    """
    return "c" + value_digest(
        task.content if isinstance(task, BoxedTask) else task,
        "task",
        f"define get_deterministic_id() in class {type(task).__name__}, to return an id that is the same in every run",
    )


def value_digest(value: Any, name: str, hint: str | None = None) -> str:
    """Return a digest of a value.

    Args:
        value: The value.
        name: The name of the value in errors.
        hint: The hint of errors.

    Returns:
        20 hex digits.

    Raises:
        DataError: A part of it has no comparable content, or contains itself.
    """
    try:
        return _Walk().digest(value).hex()[:_HEX_DIGITS]
    except _Stuck as stuck:
        raise DataError(
            f"cannot compute a digest of this value: {stuck.reason}",
            field=f"{name}{stuck.path}",
            given=stuck.value,
            expected="data that can be pickled, without circular references",
            hint=hint,
        ) from stuck.__cause__


def qualified_name(thing: Any) -> str:
    """Return the module and name of a class or function."""
    return f"{getattr(thing, '__module__', None) or ''}.{thing.__qualname__}"


class _Stuck(Exception):  # noqa: N818 - it never leaves this module
    """A part of a value cannot be walked.

    Attributes:
        reason: The reason.
        value: The part.
        path: The path from the whole value to the part.
    """

    def __init__(self, reason: str, value: Any) -> None:
        super().__init__(reason)
        self.reason = reason
        self.value = value
        self.path = ""


class _Walk:
    """Computes the digest of a value by walking through its parts."""

    def __init__(self) -> None:
        # By id: the object, so that it stays alive, and its digest. An object that is found again before it has a
        # digest contains itself.
        self._seen: dict[int, tuple[Any, bytes | None]] = {}
        self._depth = 0

    def digest(self, value: Any) -> bytes:
        scalar = _SCALARS.get(type(value))
        if scalar is not None:
            return _node(type(value).__name__, scalar(value))
        known = self._seen.get(id(value))
        if known is not None:
            if known[1] is None:
                raise _Stuck("it contains itself", value)
            return known[1]
        if self._depth == _MAX_DEPTH:
            raise _Stuck(f"it is more than {_MAX_DEPTH} levels deep", value)
        self._seen[id(value)] = value, None
        self._depth += 1
        found = self._digest_object(value)
        self._depth -= 1
        self._seen[id(value)] = value, found
        return found

    def _digest_object(self, value: Any) -> bytes:
        walk = _CONTAINERS.get(type(value)) or _walker_of(value)
        try:
            return walk(self, value)
        except _Stuck:
            raise
        except BaseException as exc:  # user code or a C library may raise anything
            check_failure(exc)
            raise _Stuck(message_of(exc) or type(exc).__name__, value) from exc

    # --- containers -------------------------------------------------------------------------------------

    def sequence(self, value: Any) -> bytes:
        return _node(type(value).__name__, *self._parts(enumerate(value), "[{!r}]"))

    def members(self, value: Any) -> bytes:
        """Return the digest of a set, or of an instance of a subclass."""
        tag = qualified_name(type(value))
        extra = self.digest(getattr(value, "__dict__", None))
        return _node(tag, extra, *sorted(map(self.digest, value)))

    def mapping(self, value: Any) -> bytes:
        return _node("dict", *sorted(self._entries(value.items(), "[{!r}]")))

    def dataclass(self, value: Any) -> bytes:
        """Return the digest of a dataclass: of its fields, and of other attributes that were set on it."""
        return _node("dataclass", _class(value), *self._attributes(_fields_of(value)))

    def choice(self, value: Any) -> bytes:
        """Return the digest of an enum member's name, because its value may be `auto`. Some flags have no name."""
        return _node("enum", _class(value), self.digest(value.name if value.name is not None else value.value))

    def path(self, value: PurePath) -> bytes:
        return _node("path", b"windows" if isinstance(value, PureWindowsPath) else b"posix", _text(str(value)))

    # --- objects, reduced as by pickle ------------------------------------------------------------------

    def reduced(self, value: Any) -> bytes:
        """Return the digest of any other object."""
        reducer = copyreg.dispatch_table.get(type(value))
        found = reducer(value) if reducer is not None else value.__reduce_ex__(_PROTOCOL)
        if isinstance(found, str):  # the name of a global
            return _node("global", _text(getattr(value, "__module__", None) or ""), _text(found))
        make, arguments, state, items, pairs, setter = (*found, None, None, None, None)[:6]
        entries = self._entries(pairs or (), "[{!r}]")
        return _node(
            "object",
            _class(value),
            self.digest(make),
            self.digest(arguments),
            self._state(state),
            _node("items", *self._parts(enumerate(items or ()), "[{!r}]")),
            _node("pairs", *(entries if isinstance(value, OrderedDict) else sorted(entries))),
            self.digest(setter),
        )

    def _state(self, state: Any) -> bytes:
        """Return the digest of a state: usually a dict of attributes, or a pair of dicts if the class has slots."""
        slots: Any = None
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):
            state, slots = state
        parts = [
            _node("attributes", *self._attributes(part.items())) if isinstance(part, dict) else self.digest(part)
            for part in (state, slots)
        ]
        return _node("state", *parts)

    # --- code -------------------------------------------------------------------------------------------

    def function(self, value: FunctionType) -> bytes:
        """Return the digest of a function's name, defaults, and captured variables. Its code is not considered."""
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        captured = [(name, part) for name, cell in cells for part in _contents(cell) if part is not value]
        return _node(
            "function",
            _text(qualified_name(value)),
            self.digest(value.__defaults__),
            self.digest(value.__kwdefaults__),
            *self._entries(captured, "'s variable {}"),
        )

    def method(self, value: Any) -> bytes:
        """Return the digest of a bound method, or of a C function, which is bound to its module."""
        return _node("method", _text(value.__name__), self.digest(value.__self__))

    def named(self, value: Any) -> bytes:
        """Return the digest of a class or a module."""
        if isinstance(value, ModuleType):
            return _node("module", _text(value.__name__))
        return _node("class", _text(qualified_name(value)))

    # --- arrays and tables ------------------------------------------------------------------------------

    def array(self, value: Any) -> bytes:
        """Return the digest of a numpy array or scalar."""
        kind = repr(value.dtype.descr).encode()
        content = self.digest(value.tolist()) if value.dtype.hasobject else value.tobytes()
        return _node("array", _class(value), kind, repr(value.shape).encode(), content)

    def table(self, value: Any) -> bytes:
        """Return the digest of an Arrow table, batch, or array, independent of its memory layout."""
        pa = sys.modules["pyarrow"]
        if isinstance(value, pa.RecordBatch):
            table = pa.Table.from_batches([value])
        else:
            table = value if isinstance(value, pa.Table) else pa.table({"": value})
        hashed = _Hashed()
        with pa.ipc.new_stream(pa.PythonFile(hashed, mode="w"), table.schema) as stream:
            stream.write_table(_tidy(table))
        return _node("table", _class(value), hashed.digest())

    # --- parts ------------------------------------------------------------------------------------------

    def _parts(self, items: Iterable[tuple[Any, Any]], path: str) -> Iterator[bytes]:
        """Yield the digest of each value. If that fails, prepend the position of the value to the error's path."""
        for name, value in items:
            try:
                yield self.digest(value)
            except _Stuck as stuck:
                stuck.path = path.format(name) + stuck.path
                raise

    def _entries(self, pairs: Iterable[tuple[Any, Any]], path: str) -> Iterator[bytes]:
        """Yield the digests of each key and value."""
        for pair in pairs:
            yield self.digest(pair[0]) + next(self._parts([pair], path))

    def _attributes(self, pairs: Iterable[tuple[Any, Any]]) -> list[bytes]:
        parts = []
        for name, value in pairs:
            try:
                parts.append((_name(name) if type(name) is str else self.digest(name)) + self.digest(value))
            except _Stuck as stuck:
                stuck.path = f".{name}{stuck.path}"
                raise
        return sorted(parts)


class _Hashed:
    """A file object that computes the digest of what is written to it."""

    closed = False

    def __init__(self) -> None:
        self._hash = blake2b(digest_size=_DIGEST_BYTES)
        self.digest = self._hash.digest

    def write(self, data: Any) -> int:
        self._hash.update(data)
        return len(data)

    def flush(self) -> None:
        """Do nothing."""


def _node(tag: str, *parts: bytes) -> bytes:
    name = tag.encode()
    hashed = blake2b(len(name).to_bytes(8, "little") + name, digest_size=_DIGEST_BYTES)
    for part in parts:
        hashed.update(len(part).to_bytes(8, "little"))
        hashed.update(part)
    return hashed.digest()


def _text(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _class(value: Any) -> bytes:
    return _text(qualified_name(type(value)))


@lru_cache(_CACHED)
def _name(name: str) -> bytes:
    """Return the digest of the name of an attribute."""
    return _node("str", _text(name))


def _view(value: memoryview) -> bytes:
    return f"{value.format} {value.shape} ".encode() + value.tobytes()


def _contents(cell: Any) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:  # the variable has no value yet
        return []


def _fields_of(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the fields of a dataclass and its other attributes, except for cached properties and framework state."""
    names = {field.name for field in fields(value)}
    yield from ((name, getattr(value, name)) for name in names)
    for name, held in getattr(value, "__dict__", {}).items():
        if name in names:
            continue
        is_cached = isinstance(getattr(type(value), name, None), cached_property)
        is_framework = name == "_state" and isinstance(value, Task)
        if not (is_cached or is_framework):
            yield name, held


def _tidy(table: Any) -> Any:
    """Copy a table to one chunk, without the memory beneath nulls and outside the rows."""
    pa = sys.modules["pyarrow"]
    try:
        copy = table.take(pa.array(range(len(table)), pa.int64()))
    except pa.ArrowNotImplementedError:  # `take` does not support some newer types
        copy = pa.concat_tables([table, table.schema.empty_table()])
    return copy.combine_chunks()


def _walker_of(value: Any) -> Callable[[_Walk, Any], bytes]:
    for kinds, walk in _KINDS:
        if isinstance(value, kinds):
            return walk
    numpy, arrow = sys.modules.get("numpy"), sys.modules.get("pyarrow")
    if numpy is not None and (type(value) is numpy.ndarray or isinstance(value, numpy.generic)):
        return _Walk.array
    if arrow is not None and isinstance(value, (arrow.Table, arrow.RecordBatch, arrow.Array, arrow.ChunkedArray)):
        return _Walk.table
    return _Walk.dataclass if is_dataclass(value) and not isinstance(value, _BUILTIN) else _Walk.reduced


_SCALARS: dict[type, Callable[[Any], bytes]] = {
    type(None): lambda _: b"",
    bool: lambda value: b"%d" % value,
    int: lambda value: b"%x" % value,
    float: lambda value: value.hex().encode(),
    str: _text,
    bytes: bytes,
    bytearray: bytes,
    memoryview: _view,
}
_CONTAINERS: dict[type, Callable[[_Walk, Any], bytes]] = {
    list: _Walk.sequence,
    tuple: _Walk.sequence,
    dict: _Walk.mapping,
    FunctionType: _Walk.function,
}
_KINDS: tuple[tuple[Any, Callable[[_Walk, Any], bytes]], ...] = (
    ((set, frozenset), _Walk.members),
    ((type, ModuleType), _Walk.named),
    ((MethodType, BuiltinFunctionType), _Walk.method),
    (Enum, _Walk.choice),
    (PurePath, _Walk.path),
)
_BUILTIN = (
    list,
    tuple,
    dict,
    str,
    bytes,
    bytearray,
    int,
    float,
    complex,
)  # a dataclass derived from one of these has content beyond its fields
