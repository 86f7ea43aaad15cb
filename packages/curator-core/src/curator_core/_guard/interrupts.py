# SPDX-License-Identifier: Apache-2.0
"""Deliver Ctrl-C to the run, and distinguish it from a `KeyboardInterrupt` that a stage raises."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["StopSignal", "become_worker", "ends_run", "heard_interrupts"]

_AGAIN_AFTER_S = 0.1
_workers = set[int]()  # the id of this process, if it is a worker


class StopSignal(KeyboardInterrupt):
    """Raised in the main thread by a signal that asks the run to end. The caller of the run gets a `RunStopped`.

    It is a `KeyboardInterrupt` because stages, engines, and libraries do not catch that one, or clean up and raise it
    again. A `SystemExit` raised in a stage is a failure of the stage.

    Args:
        number: The signal.
        not_delivered: To be called if Python swallowed the exception.
    """

    def __init__(self, number: int, not_delivered: Callable[[], None]) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number
        self.not_delivered = not_delivered


def become_worker() -> None:
    """Mark this process as a worker, whose driver decides how to handle a Ctrl-C."""
    _workers.add(os.getpid())


def ends_run(exc: BaseException) -> bool:
    """Whether an exception is Ctrl-C, or closes a generator in the driver, and so is not a failure of a stage.

    Python raises `KeyboardInterrupt` only in the main thread. In any other thread, and in a worker, a stage raised it.
    """
    kind = type(exc)  # `isinstance` would ask the exception, which may override `__class__`
    if os.getpid() in _workers:
        return False
    if issubclass(kind, KeyboardInterrupt):
        return threading.current_thread() is threading.main_thread()
    return issubclass(kind, GeneratorExit)


@contextmanager
def heard_interrupts() -> Iterator[None]:
    """Raise `KeyboardInterrupt` again if it was raised in a ``__del__`` or a callback, which swallow it.

    Python prints an exception that it cannot propagate, and continues. Engines drop thousands of references with
    finalizers, so a Ctrl-C that arrives in one of them would leave a run that only waits running forever.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread gets Ctrl-C
        return
    hook_before = sys.unraisablehook
    again: list[threading.Timer] = []

    def on_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
        if isinstance(unraisable.exc_value, StopSignal):
            unraisable.exc_value.not_delivered()
        elif issubclass(unraisable.exc_type, KeyboardInterrupt):
            # Not at once: it would be raised in this hook, and swallowed here too.
            again.append(threading.Timer(_AGAIN_AFTER_S, _thread.interrupt_main))
            again[-1].daemon = True
            again[-1].start()
        else:
            hook_before(unraisable)

    sys.unraisablehook = on_unraisable
    try:
        yield
        if any(timer.is_alive() for timer in again):  # the block finished before the interrupt was raised again
            raise KeyboardInterrupt
    finally:
        for timer in again:
            timer.cancel()
        if sys.unraisablehook is on_unraisable:
            sys.unraisablehook = hook_before
