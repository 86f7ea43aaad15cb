# SPDX-License-Identifier: Apache-2.0
"""The processes that a run starts, including orphans, which this process adopts. Linux only."""

from __future__ import annotations

import ctypes
import os
import time
from contextlib import suppress

import psutil

__all__ = ["adopt_orphans", "find", "wait_until_alone", "waited_for", "worker_of"]

_PR_SET_CHILD_SUBREAPER = 36
_SHOWN = 100  # characters of a command
_waited_for: set[int] = set()  # processes whose `Popen` must get their exit status


def adopt_orphans() -> None:
    """Keep all future descendants of this process below it, however detached."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "this process cannot adopt orphans")


def find(title: str) -> list[int]:
    """Return the descendants of this process whose command begins with a title."""
    return [process.pid for process in _alive() if _command(process).startswith(title)]


def worker_of(pid: int) -> int:
    """Return the worker of a stage: the process itself, or the parent of an isolated one; 0 if it has ended."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        return process.ppid() if "curator_core._processes" in " ".join(process.cmdline()) else pid
    return 0


def wait_until_alone(seconds: float) -> list[str]:
    """Wait until this process has no descendants; return the commands of those that remain."""
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
                    os.waitpid(process.pid, os.WNOHANG)  # adopted: no other code waits for it
    return found


def waited_for(pid: int) -> None:
    """Let the code that started a process wait for its end."""
    _waited_for.add(pid)


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()).strip("\0 ")[:_SHOWN]
    except psutil.Error:  # it has ended
        return ""
