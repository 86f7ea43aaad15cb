# SPDX-License-Identifier: Apache-2.0
"""That Ctrl-C is heard, whatever this thread was doing when it came."""

from __future__ import annotations

import _thread
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["heard_interrupts"]

_AGAIN_AFTER_S = 0.1


@contextmanager
def heard_interrupts() -> Iterator[None]:
    """Raise `KeyboardInterrupt` again where it was raised in a ``__del__`` or a callback, which swallow it.

    Python prints an exception that nobody can be given and goes on. Engines drop thousands of references with
    finalisers, so that a run that only waits would go on for ever after a Ctrl-C that came in one of them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Ctrl-C is the main thread's
        return
    told_before = sys.unraisablehook

    def tell(unraisable: sys.UnraisableHookArgs) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            _interrupt_soon()
        else:
            told_before(unraisable)

    sys.unraisablehook = tell
    try:
        yield
    finally:
        sys.unraisablehook = told_before


def _interrupt_soon() -> None:
    # Not at once: it would be raised in the hook that this is called from, and be swallowed there, too.
    timer = threading.Timer(_AGAIN_AFTER_S, _thread.interrupt_main)
    timer.daemon = True
    timer.start()
