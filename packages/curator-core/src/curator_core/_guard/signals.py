# SPDX-License-Identifier: Apache-2.0
"""Signals that ask a run to end, in the processes that its driver starts."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["STOP_SIGNALS", "leave_signals_to_driver", "signals_blocked"]


STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_DRIVERS_SIGNALS = (signal.SIGINT, *STOP_SIGNALS)


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Start a process inside the ``with`` block: it hears the driver's signals once it asks to.

    A scheduler sends them to all processes of a job, and a terminal sends Ctrl-C to all of its. One that is only just
    starting would die of them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _DRIVERS_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_driver() -> None:
    """Have this process go on when a signal comes that asks the run to end: the driver decides what becomes of it.

    Programs that it starts react as usual, and so do processes that it forks, which `terminate` has to end.
    """
    for each in _DRIVERS_SIGNALS:
        signal.signal(each, _go_on)  # not `SIG_IGN`, which programs would inherit
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _DRIVERS_SIGNALS)
    os.register_at_fork(after_in_child=_react_as_usual)


def _go_on(signum: int, frame: Any) -> None:
    """Do nothing."""


def _react_as_usual() -> None:
    for each in STOP_SIGNALS:
        if signal.getsignal(each) is _go_on:
            signal.signal(each, signal.SIG_DFL)
