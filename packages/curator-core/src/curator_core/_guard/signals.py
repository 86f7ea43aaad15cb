# SPDX-License-Identifier: Apache-2.0
"""Signals that ask a run to end, in the processes that its driver starts."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["STOP_SIGNALS", "handler_of", "handlers_deferred", "leave_signals_to_driver", "signals_blocked"]


STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_DRIVERS_SIGNALS = (signal.SIGINT, *STOP_SIGNALS)


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Block the driver's signals inside the ``with`` block, to start a process that unblocks them when it is ready.

    A scheduler sends signals to all processes of a job, and a terminal sends Ctrl-C to all of its processes. A process
    that is just starting would die of them.

    In the main thread, handlers are called after the block. That the thread blocks a signal is not enough: the kernel
    gives it to a thread that does not, and Python then calls the handler in the main thread all the same.
    """
    with handlers_deferred():
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _DRIVERS_SIGNALS)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def handlers_deferred() -> Iterator[None]:
    """Call the handlers of the driver's signals after the ``with`` block, if it is in the main thread."""
    with ExitStack() as given_back:  # continues with the other handlers if one of them raises
        if threading.current_thread() is threading.main_thread():
            for number in _DRIVERS_SIGNALS:
                if callable(handler := signal.getsignal(number)):
                    deferred = _Deferred(number, handler)
                    given_back.callback(deferred.end)
                    signal.signal(number, deferred)
        yield


class _Deferred:
    """A handler that calls another one later.

    Args:
        number: The signal.
        handler: The other handler.
    """

    def __init__(self, number: int, handler: Any) -> None:
        self.handler = handler
        self._number = number
        self._has_come = False

    def __call__(self, signum: int, frame: Any) -> None:
        self._has_come = True

    def end(self) -> None:
        """Install the other handler again, and call it if the signal has come."""
        signal.signal(self._number, self.handler)
        if self._has_come:
            self.handler(self._number, None)


def handler_of(number: int) -> Any:
    """Return the handler of a signal, also while it is deferred."""
    handler = signal.getsignal(number)
    while isinstance(handler, _Deferred):
        handler = handler.handler
    return handler


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
