# SPDX-License-Identifier: Apache-2.0
"""A child process: start it, exchange messages with it, end it."""

from __future__ import annotations

import math
import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curator_core._guard.signals import signals_blocked
from curator_core._processes.channel import open_standard_streams, receive, send

if TYPE_CHECKING:
    from curator_core._transport.packed import Packed

__all__ = ["ChildProcess", "DeadError", "LateError"]

_EXIT_S = 10.0  # for a process to exit on its own
_POLL_S = 1.0  # between two checks that the process is alive
# Uses this process's `sys.path`, which engines change at run time, but not its main module, which would run again.
_PROGRAM = "import sys; sys.path[:], sys.argv[:] = {path!r}, {argv!r}; from {module} import main; main(*{arguments!r})"


class DeadError(Exception):
    """The process has died.

    Args:
        how: How it died, such as "was killed by SIGSEGV".
    """

    def __init__(self, how: str) -> None:
        super().__init__(how)
        self.how = how


class LateError(Exception):
    """The process has not answered within the time limit."""


class ChildProcess:
    """A process that answers messages, see `curator_core._processes.child`. Creating this object starts it.

    Args:
        module: The module whose function ``main`` the process calls, with two file descriptors and `arguments`.
        *arguments: Values whose ``repr`` is their code.

    Raises:
        OSError: The process cannot be started.
    """

    def __init__(self, module: str, *arguments: Any) -> None:
        open_standard_streams()
        self._socket, theirs = socket.socketpair()
        lifeline, self._lifeline = os.pipe()
        program = _PROGRAM.format(
            path=[str(entry) for entry in sys.path],
            argv=sys.argv,
            module=module,
            arguments=(theirs.fileno(), lifeline, *arguments),
        )
        try:
            with signals_blocked():
                self._process = subprocess.Popen(  # noqa: S603 - this Python, with our own code
                    # Without the working directory, which may be gone: then Python 3.13.0 cannot import some modules.
                    [sys.executable, "-P", "-c", program],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno(), lifeline],
                )
        except BaseException:
            self._socket.close()
            os.close(self._lifeline)
            raise
        finally:
            theirs.close()
            os.close(lifeline)
        self._arrived = select.poll()
        self._arrived.register(self._socket, select.POLLIN)

    def send(self, message: Packed) -> None:
        """Send a message to the process.

        Raises:
            DeadError: The process has died.
        """
        try:
            send(self._socket, message)
        except OSError as exc:
            raise DeadError(self._how_it_died()) from exc

    def receive(self, timeout_s: float | None = None) -> Packed:
        """Return the next message of the process.

        Args:
            timeout_s: Time limit, in seconds; None for no limit.

        Raises:
            DeadError: The process has died.
            LateError: The process has not sent a message within the time limit.
        """
        try:
            self._await_message(timeout_s)
            return receive(self._socket)
        except (EOFError, OSError) as exc:
            raise DeadError(self._how_it_died()) from exc

    def end(self, *, kill: bool) -> None:
        """End the process, and wait until it has ended. Threads that exchange messages with it get a `DeadError`.

        Args:
            kill: Whether to kill it, with all processes that it has started.
        """
        if kill:
            self._kill()
        with suppress(OSError):  # it has ended already
            self._socket.shutdown(socket.SHUT_RDWR)  # closing is not enough if a fork of this process has a copy
        try:
            self._process.wait(_EXIT_S)
        except subprocess.TimeoutExpired:  # something that it started keeps it alive
            self._kill()
            self._process.wait()

    def close(self) -> None:
        """Release what this process holds for it; call it last, after `end`."""
        self._socket.close()
        os.close(self._lifeline)

    def _kill(self) -> None:
        started = _descendants(self._process.pid)
        self._process.kill()
        for pid in started:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    def _await_message(self, timeout_s: float | None) -> None:
        deadline = time.monotonic() + (math.inf if timeout_s is None else timeout_s)
        while not self._has_arrived(max(0.0, min(_POLL_S, deadline - time.monotonic()))):
            # A process that it started may keep its end of the connection open after it has died.
            if self._process.poll() is not None and not self._has_arrived(0.0):
                raise EOFError
            if time.monotonic() >= deadline:
                raise LateError

    def _has_arrived(self, timeout_s: float) -> bool:
        return bool(self._arrived.poll(math.ceil(timeout_s * 1000)))

    def _how_it_died(self) -> str:
        try:
            status = self._process.wait(_EXIT_S)
        except subprocess.TimeoutExpired:
            return "closed its connection"
        if status >= 0:
            return f"exited with status {status}"
        try:
            return f"was killed by {signal.Signals(-status).name}"
        except ValueError:
            return f"was killed by signal {-status}"


def _descendants(pid: int) -> list[int]:
    """Return the processes that a process has started, and those that these have started; none outside of Linux."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            parent = path.read_text("utf-8", "replace").rpartition(")")[2].split()[1]
            children.setdefault(int(parent), []).append(int(path.parent.name))
    found = [pid]
    for each in found:  # which grows meanwhile
        found += children.get(each, [])
    return found[1:]
