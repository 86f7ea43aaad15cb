# SPDX-License-Identifier: Apache-2.0
"""What a stage's return annotation says about how many tasks it makes of one."""

from __future__ import annotations

import ast
import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["says_fan_out"]

_MANY = {"list", "tuple", "Sequence", "Iterable", "Iterator", "Generator", "Collection"}
_UNIONS = {"Optional", "Union", "Annotated"}


def says_fan_out(stage: Any, *, batched: bool) -> bool:
    """Whether the annotation names a list, a tuple or an iterator for what is made of one task.

    It is read as text: the names in it may be importable for a type checker only.

    Args:
        stage: The stage.
        batched: Whether it works by ``process_batch``, whose outer list has an entry for each input.
    """
    function = getattr(stage, "_function", None) or (stage.process_batch if batched else stage.process)
    annotation = getattr(function, "__annotations__", {}).get("return")
    if annotation is None:
        return False
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    try:
        returned = ast.parse(text, mode="eval").body
    except SyntaxError:  # an object whose repr is no code
        return False
    if batched:
        return any(_is_many(entry) for each in _alternatives(returned) for entry in _arguments(each))
    return _is_many(returned)


def _is_many(node: ast.expr) -> bool:
    return any(_name(each) in _MANY for each in _alternatives(node))


def _alternatives(node: ast.expr) -> Iterator[ast.expr]:
    """The parts of a union, in whichever way it is written."""
    if isinstance(node, ast.BinOp):
        yield from _alternatives(node.left)
        yield from _alternatives(node.right)
    elif isinstance(node, ast.Subscript) and _name(node) in _UNIONS:
        for argument in _arguments(node):
            yield from _alternatives(argument)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):  # list["Task"] | "Task"
        yield from _alternatives(ast.parse(node.value, mode="eval").body)
    else:
        yield node


def _arguments(node: ast.expr) -> list[ast.expr]:
    if not isinstance(node, ast.Subscript):
        return []
    return node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]


def _name(node: ast.expr) -> str:
    """``list`` for ``list[int]``, ``Iterator`` for ``collections.abc.Iterator[int]``."""
    if isinstance(node, ast.Subscript):
        node = node.value
    if isinstance(node, ast.Attribute):
        return node.attr
    name = node.id if isinstance(node, ast.Name) else ""
    return name.lower() if name in ("List", "Tuple") else name
