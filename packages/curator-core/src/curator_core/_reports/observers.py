# SPDX-License-Identifier: Apache-2.0
"""Observers of runs, and those that watch every run of this process without being passed to it.

The latter are for tools that are enabled from outside a program, such as ``opentelemetry-instrument``. A program that
creates its own observers passes them to the run instead.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from curator_core.errors import ExecutorError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from curator_core._reports.batch import BatchReport, RunInfo, WorkerReport
    from curator_core.results import RunResult

__all__ = ["RunObserver", "ambient_observers", "watch_all_runs"]


class RunObserver:
    """Watches a run through its reports. Override the methods that you need.

    Calls come from one thread at a time, in the driver process, in the order in which reports arrive. An
    exception in an observer never reaches the run: it is logged, and the only later call is `on_run_end`.
    """

    def on_run_start(self, run: RunInfo) -> None:
        """Called when the run begins; nothing has been set up yet."""

    def on_batch(self, report: BatchReport) -> None:
        """Called when a batch, or one attempt at it, has ended."""

    def on_worker(self, report: WorkerReport) -> None:
        """Called when a worker was set up, failed in setup, or ended."""

    def trace_of(self, run_id: str) -> str:
        """Return the trace that it writes for a run that has begun, as 32 hex digits; empty if it writes none."""
        del run_id
        return ""

    def on_run_end(self, result: RunResult, error: BaseException | None) -> None:
        """Called once when the run is over, even after an error or Ctrl-C."""


_lock = threading.Lock()


class _Asked:
    """A request for an observer; two requests for the same observer are distinct objects."""

    def __init__(self, observer: RunObserver) -> None:
        self.observer = observer


_watching: list[_Asked] = []


def watch_all_runs(observer: RunObserver) -> Callable[[], None]:
    """Add an observer to every run that begins in this process from now on, on any executor.

    A run that was given an observer of the same class does not get this one.

    Args:
        observer: The observer. If it is added more than once, it still watches each run only once.

    Returns:
        A function that stops watching, unless the same observer was also added elsewhere. Runs in progress are watched
        to their end. Calling the function again has no effect.

    Raises:
        ExecutorError: ``observer`` is not a `RunObserver`.
    """
    if not isinstance(observer, RunObserver):
        raise ExecutorError(
            "the observer is not a RunObserver",
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
    """Return the observers that watch a run in addition to those that it was given."""
    with _lock:
        watching = {id(asked.observer): asked.observer for asked in _watching}
    return tuple(one for one in watching.values() if not any(isinstance(known, type(one)) for known in given))


def _forget(asked: _Asked) -> None:
    with _lock:
        _watching[:] = [known for known in _watching if known is not asked]
