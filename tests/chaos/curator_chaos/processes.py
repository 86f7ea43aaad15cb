# SPDX-License-Identifier: Apache-2.0
"""The processes that a run starts, also those whose parent was killed: this process adopts them. Linux only."""

from __future__ import annotations

import ctypes
import os
import time
from contextlib import suppress

import psutil

__all__ = ["adopt_orphans", "find", "wait_until_alone", "waited_for", "worker_of"]

_PR_SET_CHILD_SUBREAPER = 36
_SHOWN = 100  # characters of a command
_waited_for: set[int] = set()  # processes whose `Popen` is to learn how they ended


def adopt_orphans() -> None:
    """From now on whatever is started below this process stays below it, however detached."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "this process cannot adopt orphans")


def find(title: str) -> list[int]:
    """Processes below this one whose command begins so."""
    return [process.pid for process in _alive() if _command(process).startswith(title)]


def worker_of(pid: int) -> int:
    """The worker that a stage runs in, or that holds the process which it runs in; 0 where that has ended."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        return process.ppid() if "curator_core.isolated" in " ".join(process.cmdline()) else pid
    return 0


def wait_until_alone(seconds: float) -> list[str]:
    """Wait until nothing runs below this process; gives the commands of what still does."""
    deadline = time.monotonic() + seconds
    while (left := _alive()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return [command for process in left if (command := _command(process))]


def _alive() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
            elif process.ppid() == os.getpid() and process.pid not in _waited_for:
                with suppress(ChildProcessError):
                    os.waitpid(process.pid, os.WNOHANG)  # adopted, and nobody else's to wait for
    return found


def waited_for(pid: int) -> None:
    """Leave a process's end to who started it."""
    _waited_for.add(pid)


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()).strip("\0 ")[:_SHOWN]
    except psutil.Error:  # it has ended
        return ""
