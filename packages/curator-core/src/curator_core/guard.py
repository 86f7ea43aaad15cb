# SPDX-License-Identifier: Apache-2.0
"""What code of users may do to whoever calls it: raise anything at all, or fork and return twice.

Whatever it raises is the failure of the work at hand, exceptions outside of `Exception` included: Rust extensions panic
with one, asyncio cancels with one, and an engine that expects an `Exception` would wait for ever for a thread that died
of one. Two exceptions go through: Ctrl-C in the driver, and that of a generator that is closed.
"""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING

from curator_core.interrupts import ends_run

if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["check_failure", "leave_fork", "this_process"]


class _ThisProcess:
    """This process, so that it costs 20 ns to see whether it is still the same one; the system takes 300.

    Attributes:
        pid: Its id.
    """

    __slots__ = ("pid",)

    def __init__(self) -> None:
        self.pid = os.getpid()


this_process = _ThisProcess()
os.register_at_fork(after_in_child=this_process.__init__)  # type: ignore[misc]  # on this one object, and meant


def check_failure(exc: BaseException, pid: int | None = None) -> None:
    """Return where an exception is the failure of the user's code that raised it.

    Args:
        exc: What was raised.
        pid: The process that called that code; this function does not return in a fork of it.

    Raises:
        BaseException: It is not, but a Ctrl-C, or the end of a generator.
    """
    if pid is not None and pid != this_process.pid:
        leave_fork(exc)
    if ends_run(exc):
        raise exc


def leave_fork(exc: BaseException | None = None) -> NoReturn:
    """End this process, which code of users has forked and let return: the run goes on in the one that called it.

    The exit status is what Python gives a process that ends in this way.

    Args:
        exc: What it returned with; None where it returned as usual.
    """
    status = 1
    try:
        status = _exit_status(exc)
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
    finally:
        os._exit(status)


def _exit_status(exc: BaseException | None) -> int:
    if exc is None:
        return 0
    if not isinstance(exc, SystemExit):
        traceback.print_exception(exc)
        return 1
    if exc.code is None:
        return 0
    if isinstance(exc.code, int):
        return exc.code & 0xFF
    print(exc.code, file=sys.stderr)  # noqa: T201 - as Python does
    return 1
