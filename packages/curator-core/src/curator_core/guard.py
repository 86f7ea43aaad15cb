# SPDX-License-Identifier: Apache-2.0
"""Guards calls of user code, which may raise anything at all, or fork and return twice.

Whatever it raises is a failure of the task, also what is not an `Exception`: Rust extensions panic with such an
exception, asyncio cancels with one, and Xenna's threads die of one unseen. In the driver two exceptions are passed on:
`KeyboardInterrupt` in the main thread, which is Ctrl-C, and `GeneratorExit`, which closes a generator.
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
    """Raise an exception again unless it is a failure of the user code that raised it.

    Args:
        exc: What was raised.
        pid: The process that called that code. In a fork of it this function does not return.

    Raises:
        BaseException: The exception given, where it is Ctrl-C or closes a generator.
    """
    if pid is not None and pid != this_process.pid:
        leave_fork(exc)
    if ends_run(exc):
        raise exc


def leave_fork(exc: BaseException | None = None) -> NoReturn:
    """End this process, a fork in which user code has returned to us: the run goes on in the process that forked.

    The exit status is what Python gives a process that ends in this way.

    Args:
        exc: What the code raised; None where it returned.
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
