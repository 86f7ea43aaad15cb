# SPDX-License-Identifier: Apache-2.0
"""Classes and functions that are pickled by value, because other processes cannot import them from a module.

Each exists once per process, no matter how often it is unpickled: its content is filled in once, and the process that
it came from gets the original back. A class or function with a global name in the script gets the same name in the
worker's main module, so that plain pickle, which stages may use, finds it there.
"""

from __future__ import annotations

import itertools
import sys
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakValueDictionary

from curator_core._transport.process_bound import THIS_PROCESS

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["once_a_process"]

_count = itertools.count()
_tokens: WeakKeyDictionary[Any, tuple[str, int]] = WeakKeyDictionary()  # the process of origin, and a number
_things: WeakValueDictionary[tuple[str, int], Any] = WeakValueDictionary()
_entered: set[str] = set()  # names added to the main module of this process


def once_a_process(thing: Any, reduced: Any) -> Any:
    """Extend cloudpickle's reduction of a class or a function so that each process creates it only once.

    Args:
        thing: The class or function.
        reduced: Its reduction by cloudpickle.
    """
    if reduced is NotImplemented or len(reduced) < 6:  # pickled by name
        return reduced
    name = _name_in_script(thing)
    if not (name or isinstance(thing, type)):
        return reduced
    make, args, state, _, _, fill = reduced
    token = _tokens.get(thing)
    if token is None:
        token = _tokens[thing] = (THIS_PROCESS, next(_count))
        _things[token] = thing
    return _made, (token, make, args), (token, name, fill, state), None, None, _filled


def _name_in_script(thing: Any) -> str:
    is_of_script = thing.__module__ == "__main__" and vars(sys.modules["__main__"]).get(thing.__qualname__) is thing
    return thing.__qualname__ if is_of_script else ""


def _made(token: tuple[str, int], make: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Return the class or function. If it is new in this process, its content is not filled in yet."""
    known = _things.get(token)
    return make(*args) if known is None else known


def _filled(thing: Any, content: tuple[Any, ...]) -> None:
    token, name, fill, state = content
    if _things.get(token) is thing:
        return
    fill(thing, state)
    _tokens[thing] = token
    _things[token] = thing
    main = vars(sys.modules["__main__"])
    if name and (name in _entered or name not in main):  # never replaces a name that the main module defines
        main[name] = thing
        _entered.add(name)
