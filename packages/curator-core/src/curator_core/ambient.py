# SPDX-License-Identifier: Apache-2.0
"""Observers that watch every run of this process, without being named in it.

For what is switched on from outside a program, such as ``opentelemetry-instrument``. A program that names its
observers itself gives them to the run.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from curator_core.errors import ExecutorError
from curator_core.report import RunObserver

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["ambient_observers", "watch_all_runs"]

_lock = threading.Lock()


class _Asked:
    """That somebody asked for an observer."""

    def __init__(self, observer: RunObserver) -> None:
        self.observer = observer


_watching: list[_Asked] = []


def watch_all_runs(observer: RunObserver) -> Callable[[], None]:
    """Have an observer watch every run that begins in this process from now on, on any executor.

    It stays out of a run that was given an observer of its class.

    Args:
        observer: The observer. It watches a run once, also where it was asked for twice.

    Returns:
        What ends it, where nobody else has asked for the same observer. Runs under way are watched to their end;
        further calls change nothing.

    Raises:
        ExecutorError: It is no observer.
    """
    if not isinstance(observer, RunObserver):
        raise ExecutorError(
            "this is no RunObserver",
            field="observer",
            given=observer,
            expected="an instance of a subclass of RunObserver",
            hint=f"call the class: {observer.__name__}()" if isinstance(observer, type) else "subclass RunObserver",
        )
    asked = _Asked(observer)
    with _lock:
        _watching.append(asked)
    return lambda: _forget(asked)


def ambient_observers(given: Sequence[Any]) -> tuple[RunObserver, ...]:
    """Who watches a run beside the observers that it was given."""
    with _lock:
        watching = {id(asked.observer): asked.observer for asked in _watching}
    return tuple(one for one in watching.values() if not any(isinstance(known, type(one)) for known in given))


def _forget(asked: _Asked) -> None:
    with _lock:
        _watching[:] = [known for known in _watching if known is not asked]
