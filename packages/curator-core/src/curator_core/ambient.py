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
_watching: list[RunObserver] = []


def watch_all_runs(observer: RunObserver) -> Callable[[], None]:
    """Have an observer watch every run that begins in this process from now on, on any executor.

    It stays out of a run that was given an observer of its class: nothing is reported twice.

    Args:
        observer: The observer. Asking twice for the same one changes nothing.

    Returns:
        What ends it. Runs under way are watched to their end; further calls change nothing.

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
    with _lock:
        if not any(known is observer for known in _watching):
            _watching.append(observer)
    return lambda: _forget(observer)


def ambient_observers(given: Sequence[Any]) -> tuple[RunObserver, ...]:
    """Who watches a run beside the observers that it was given."""
    with _lock:
        watching = tuple(_watching)
    return tuple(one for one in watching if not any(isinstance(known, type(one)) for known in given))


def _forget(observer: RunObserver) -> None:
    with _lock:
        _watching[:] = [known for known in _watching if known is not observer]
