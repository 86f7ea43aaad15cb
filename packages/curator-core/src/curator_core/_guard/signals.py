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
    """Block the driver's signals inside the ``with`` block, to start a process that unblocks them when it is ready.

    A scheduler sends signals to all processes of a job, and a terminal sends Ctrl-C to all of its processes. A process
    that is just starting would die of them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _DRIVERS_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_driver() -> None:
    """Ignore signals that ask the run to end in this process, because its driver decides when it ends.

    Programs that it starts react to the signals as usual, and so do its forks, because `terminate` must end them.
    """
    for each in _DRIVERS_SIGNALS:
        signal.signal(each, _ignore)  # not `SIG_IGN`, which programs would inherit
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _DRIVERS_SIGNALS)
    os.register_at_fork(after_in_child=_react_as_usual)


def _ignore(signum: int, frame: Any) -> None:
    """Do nothing."""


def _react_as_usual() -> None:
    for each in STOP_SIGNALS:
        if signal.getsignal(each) is _ignore:
            signal.signal(each, signal.SIG_DFL)
