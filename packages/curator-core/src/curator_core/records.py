# SPDX-License-Identifier: Apache-2.0
"""The standard library's `NamedTuple` and frozen `dataclass` with slots, cheaper to define.

The standard library compiles source text for each class: six methods for a frozen dataclass, and each annotation of a
NamedTuple, since all annotations are text under ``from __future__ import annotations``. For the thirty such classes of
this package, that took about a third of its import. Here `dataclasses` does its work when one of its results is
first looked up, and annotations stay text. The classes are otherwise the same, and type checkers see the standard
library's. Modules also import `dataclasses.dataclass` for type checking, because documentation tools recognize only
that name.
"""

from __future__ import annotations

import dataclasses
from collections import namedtuple
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["NamedTuple", "dataclass"]

_METHODS = ("__init__", "__repr__", "__eq__", "__hash__", "__setattr__", "__delattr__", "__getstate__", "__setstate__")
_GENERATED: tuple[str, ...] = ("__dataclass_fields__", "__dataclass_params__", "__match_args__", *_METHODS)
if hasattr(dataclasses, "_replace"):  # Python 3.13 has it, for `copy.replace`
    _GENERATED = ("__replace__", *_GENERATED)
_OF_EVERY_CLASS = ("__dict__", "__weakref__")
_OF_NAMED_TUPLES = ("__slots__", "__module__", "__qualname__")  # what `namedtuple` makes, or has been given


class _Pending:
    """Stands in for an attribute that `dataclasses` generates, until it is first looked up.

    Args:
        finish: Makes the finished dataclass; its keyword arguments override the options of the decorator.
    """

    def __init__(self, finish: Callable[..., type]) -> None:
        self._finish = finish

    def __set_name__(self, owner: type, name: str) -> None:
        self._owner, self._name = owner, name

    def __get__(self, instance: object, owner: type) -> Any:
        present = vars(self._owner)
        if present[self._name] is self:  # no other thread was faster
            self._settle(present)
        found = present[self._name]
        return found.__get__(instance, owner) if hasattr(found, "__get__") else found

    def _settle(self, present: Mapping[str, Any]) -> None:
        if self._name == "__init__":  # the one that an import needs, where a module makes an instance
            names, finished = ["__init__"], vars(self._finish(repr=False, eq=False, slots=False))
        else:
            names, finished = [name for name in present if isinstance(present[name], _Pending)], vars(self._finish())
        for name in names:
            setattr(self._owner, name, finished[name])


def _dataclass(**options: bool) -> Any:
    def define(given: type) -> type:
        name, bases = given.__name__, given.__bases__
        written = {key: value for key, value in vars(given).items() if key not in _OF_EVERY_CLASS}
        written["__qualname__"] = given.__qualname__

        def finish(**others: bool) -> type:
            return dataclasses.dataclass(**{**options, **others})(type(name, bases, dict(written)))

        fields = tuple(written["__annotations__"])
        kept = {key: value for key, value in written.items() if key not in fields}
        pending = {key: _Pending(finish) for key in _GENERATED}
        return type(name, bases, {**pending, **kept, "__slots__": fields})

    return define


class _NamedTupleType(type):
    def __new__(cls, name: str, bases: tuple[type, ...], written: dict[str, Any]) -> Any:
        if not bases:
            return super().__new__(cls, name, bases, written)
        fields = tuple(written["__annotations__"])
        defaults = [written[field] for field in fields if field in written]
        make: Any = namedtuple  # which type checkers know with literal arguments only
        made = make(name, fields, defaults=defaults, module=written["__module__"])
        made.__qualname__ = written["__qualname__"]
        made.__new__.__annotations__ = written["__annotations__"]
        for key, value in written.items():
            if key not in fields and key not in _OF_NAMED_TUPLES:
                setattr(made, key, value)
        return made


class _NamedTuple(metaclass=_NamedTupleType):
    pass


if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
    from typing import NamedTuple as NamedTuple
else:
    dataclass, NamedTuple = _dataclass, _NamedTuple
