# SPDX-License-Identifier: Apache-2.0
"""Exceptions as plain data for the way to another process: their classes, arguments, and attributes.

Pickle would rebuild an exception by calling code of its class, which may fail (many classes take two arguments and pass
one on), hang, or end the process. Here that code is not called: the class is found by name, its built-in base creates
the object, and arguments and attributes that are plain values are restored. An argument that is not a plain value is
carried as its text, and an attribute that is not a plain value is dropped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard, TypeVar

from curator_core._guard.user_code import check_failure
from curator_core._transport.pickling import dumps, loads
from curator_core.errors import short_repr

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

__all__ = ["is_a", "message_of", "pack_exception", "traceback_of", "unpack_exception"]

_E = TypeVar("_E", bound=BaseException)

_MAX_BYTES = 64_000  # a larger exception, such as one with its payload, is described and not carried
_MAX_DEPTH = 8
_MAX_VALUES = 10_000
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a class created at run time
_LISTS = (list, tuple, set, frozenset)
_PLAIN = frozenset(
    {
        *(f"builtins.{name}" for name in ("NoneType", "bool", "int", "float", "complex", "str", "bytes")),
        *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta")),
        "decimal.Decimal",
        "uuid.UUID",
    }
)
_ABSENT = object()
_FRAMES = BaseException.__dict__["__traceback__"]


class _Packed(NamedTuple):
    """An exception, or an exception nested in the arguments or attributes of another."""

    cls: type[BaseException]
    args: tuple[Any, ...]
    attributes: Mapping[str, Any]


def is_a(exc: BaseException | None, classes: type[_E] | tuple[type[_E], ...]) -> TypeGuard[_E]:
    """Check as `isinstance` does, but without the exception's ``__getattribute__``, which may raise."""
    return issubclass(type(exc), classes)


def traceback_of(exc: BaseException) -> TracebackType | None:
    """Return the traceback of an exception without its ``__getattribute__``, which may raise."""
    frames: TracebackType | None = _FRAMES.__get__(exc)
    return frames


def message_of(exc: BaseException) -> str:
    """Return the message of an exception as a plain string, even if its ``__str__`` raises."""
    try:
        return str.__str__(str(exc))  # an instance of a user's subclass of str would travel with the report
    except BaseException as broken:  # noqa: BLE001 - a broken __str__ must not hide the error
        check_failure(broken)
        return f"<its __str__ raised {type(broken).__name__}>"


def pack_exception(exc: BaseException) -> bytes | None:
    """Return an exception as bytes; None if it is too large, or its class cannot be pickled."""
    try:
        packed = dumps(_Packer().pack(exc))
    except BaseException as broken:  # noqa: BLE001 - such as from a user's metaclass; the report describes it anyway
        check_failure(broken)
        return None
    return packed if len(packed) <= _MAX_BYTES else None


def unpack_exception(data: bytes) -> BaseException | None:
    """Return an exception that `pack_exception` packed; None if its class is not available. Only for trusted data."""
    try:
        return _unpack(loads(data))
    except BaseException as broken:  # noqa: BLE001 - a class that is only importable on the worker
        check_failure(broken)
        return None


class _Packer:
    """Packs one exception. Values that occur more than once, or that exceed the limits, are not carried."""

    def __init__(self) -> None:
        self._left = _MAX_VALUES
        self._seen: set[int] = set()

    def pack(self, exc: BaseException, depth: int = _MAX_DEPTH) -> _Packed:
        self._seen.add(id(exc))
        reduced: Any = _built_in(type(exc)).__reduce__(exc)  # the class, its arguments, and attributes if there are any
        args, state = reduced[1], reduced[2] if len(reduced) > 2 else {}
        carried = [self._carried(value, depth) for value in args]
        attributes = {name: self._carried(value, depth) for name, value in state.items()}
        return _Packed(
            type(exc),
            tuple(short_repr(value) if new is _ABSENT else new for value, new in zip(args, carried, strict=True)),
            {name: value for name, value in attributes.items() if value is not _ABSENT},
        )

    def _carried(self, value: Any, depth: int) -> Any:
        """Return a value if it is plain at all levels, with containers copied; `_ABSENT` if it is not."""
        kind = type(value)
        self._left -= 1
        if self._left < 0:
            return _ABSENT
        if f"{kind.__module__}.{kind.__qualname__}" in _PLAIN:
            return value
        if not depth or id(value) in self._seen:
            return _ABSENT
        if isinstance(value, BaseException):
            return self.pack(value, depth - 1)
        if kind in _LISTS:
            parts = [self._carried(part, depth - 1) for part in value]
            return _ABSENT if any(part is _ABSENT for part in parts) else kind(parts)
        if kind is dict:
            pairs = [(self._carried(key, depth - 1), self._carried(item, depth - 1)) for key, item in value.items()]
            return _ABSENT if any(part is _ABSENT for pair in pairs for part in pair) else dict(pairs)
        return _ABSENT


def _unpack(packed: _Packed) -> BaseException:
    base = _built_in(packed.cls)
    args = _restored(packed.args)
    exc: BaseException = base.__new__(packed.cls, *args)
    base.__init__(exc, *args)
    for name, value in packed.attributes.items():
        object.__setattr__(exc, name, _restored(value))
    return exc


def _restored(value: Any) -> Any:
    """Return a carried value with the exceptions in it rebuilt."""
    if isinstance(value, _Packed):
        return _unpack(value)
    if type(value) in _LISTS:
        return type(value)(map(_restored, value))
    return {key: _restored(item) for key, item in value.items()} if type(value) is dict else value


def _built_in(cls: type[BaseException]) -> type[BaseException]:
    """Return the nearest base class that is built into Python."""
    return next(base for base in cls.__mro__ if not base.__flags__ & _HEAP_TYPE and issubclass(base, BaseException))
