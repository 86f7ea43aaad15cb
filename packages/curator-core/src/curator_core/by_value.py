# SPDX-License-Identifier: Apache-2.0
"""Classes and functions that travel by value, since no module that others can import has them.

There is one of each in a process, however often it comes: it is filled once, and the process that it is from gets its
own back. What the script calls by a name has that name in the worker's main module as well, so that plain pickle,
which stages may use, finds it there.
"""

from __future__ import annotations

import itertools
import sys
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakValueDictionary

from curator_core.process_bound import THIS_PROCESS

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["once_a_process"]

_count = itertools.count()
_tokens: WeakKeyDictionary[Any, tuple[str, int]] = WeakKeyDictionary()  # the process that it is from, and a number
_things: WeakValueDictionary[tuple[str, int], Any] = WeakValueDictionary()
_entered: set[str] = set()  # names in the main module of this process


def once_a_process(thing: Any, reduced: Any) -> Any:
    """What cloudpickle makes of a class or a function, so that it is made once in a process.

    Args:
        thing: The class or function.
        reduced: How cloudpickle pickles it.
    """
    if reduced is NotImplemented or len(reduced) < 6:  # goes by name
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
    """The thing, still to be filled where it is new here."""
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
    if name and (name in _entered or name not in main):  # never in the place of what the main module has itself
        main[name] = thing
        _entered.add(name)
