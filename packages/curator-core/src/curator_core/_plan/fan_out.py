# SPDX-License-Identifier: Apache-2.0
"""Whether a stage fans out or is asynchronous, read from the annotations and the definition of its method."""

from __future__ import annotations

import ast
import inspect
import types
from typing import TYPE_CHECKING, Annotated, Any, ForwardRef, NamedTuple, Union, get_args, get_origin

from curator_core.stages import FunctionStage

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["is_asynchronous", "says_fan_out"]

_MANY = {"list", "tuple", "Sequence", "Iterable", "Iterator", "Generator", "Collection"}
_MANY |= {"AsyncIterable", "AsyncIterator", "AsyncGenerator"}
_UNIONS = {"Optional", "Union"}
_OLD_NAMES = {"List": "list", "Tuple": "tuple"}


class _Type(NamedTuple):
    """The name of a type, and its arguments in brackets: ``list`` and ``Task`` for ``list[Task]``."""

    name: str = ""
    arguments: tuple[Any, ...] = ()


def says_fan_out(stage: Any, *, batched: bool) -> bool:
    """Whether the return annotation declares a list, a tuple, or an iterator for the outputs of one task.

    A string annotation is parsed, not evaluated: its names may be importable only for a type checker.

    Args:
        stage: The stage.
        batched: Whether it implements ``process_batch``, whose outer list has an entry for each input.
    """
    function = _function(stage, batched=batched)
    returned = _read(getattr(function, "__annotations__", {}).get("return"))
    if batched:
        return any(_is_many(entry) for each in _alternatives(returned) for entry in each.arguments)
    return _is_many(returned)


def is_asynchronous(stage: Any, *, batched: bool) -> bool:
    """Whether the stage's method is a coroutine function or an asynchronous generator function.

    Args:
        stage: The stage.
        batched: Whether it implements ``process_batch``.
    """
    function = _function(stage, batched=batched)  # not unwrapped: a wrapper may make it synchronous
    call = getattr(function, "__call__", None)  # noqa: B004 - for an instance whose class has an async __call__
    candidates = (function, getattr(function, "func", None), call)
    return any(inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each) for each in candidates)


def _function(stage: Any, *, batched: bool) -> Any:
    if isinstance(stage, FunctionStage):
        return stage.function
    return stage.process_batch if batched else stage.process


def _is_many(declared: _Type) -> bool:
    return any(each.name in _MANY for each in _alternatives(declared))


def _alternatives(declared: _Type) -> Iterator[_Type]:
    """Yield the members of a union, in either notation."""
    if declared.name in _UNIONS:
        for argument in declared.arguments:
            yield from _alternatives(argument)
    else:
        yield declared


def _read(annotation: Any) -> _Type:
    if isinstance(annotation, ForwardRef):
        annotation = annotation.__forward_arg__
    if isinstance(annotation, str):
        return _read_text(annotation)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _read(arguments[0])
    if origin is None:
        return _named(getattr(annotation, "__name__", ""))
    name = "Union" if origin in (Union, types.UnionType) else getattr(origin, "__name__", "")
    return _named(name, *map(_read, arguments))


def _read_text(text: str) -> _Type:
    try:
        return _read_node(ast.parse(text, mode="eval").body)
    except SyntaxError:  # a note, not a type
        return _Type()


def _read_node(node: ast.expr) -> _Type:
    match node:
        case ast.BinOp():
            return _Type("Union", (_read_node(node.left), _read_node(node.right)))
        case ast.Constant(value=str(text)):  # list["Task"]
            return _read_text(text)
        case ast.Subscript():
            outer = _read_node(node.value).name
            inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            return _read_node(inner[0]) if outer == "Annotated" else _named(outer, *map(_read_node, inner))
        case ast.Attribute():  # collections.abc.Iterator
            return _named(node.attr)
        case ast.Name():
            return _named(node.id)
        case _:
            return _Type()


def _named(name: str, *arguments: _Type) -> _Type:
    return _Type(_OLD_NAMES.get(name, name), arguments)
