# SPDX-License-Identifier: Apache-2.0
"""A process with one stage: start it, call the stage in it, end it."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from curator_core._guard.signals import signals_blocked
from curator_core._processes.channel import Answer, receive, send
from curator_core._transport.pickling import engines_cloudpickle

if TYPE_CHECKING:
    from curator_core._processes.channel import Call

__all__ = ["DeadError", "LateError", "StageProcess"]

_EXIT_S = 10.0  # for a process to exit on its own
_POLL_S = 1.0  # between two checks that the process is alive
# Uses this process's `sys.path`, which engines change at run time, but not its main module, which would run again.
_PROGRAM = "import sys; sys.path[:] = {path!r}; from curator_core._processes.child import main; main(*{arguments!r})"


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


class StageProcess:
    """A process with one stage. Creating this object starts it.

    Raises:
        OSError: The process cannot be started.
    """

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        lifeline, self._lifeline = os.pipe()
        try:
            arguments = (theirs.fileno(), lifeline, engines_cloudpickle(), logging.getLogger().getEffectiveLevel())
            path = [str(entry) for entry in sys.path]
            with signals_blocked():
                self._process = subprocess.Popen(  # noqa: S603 - this Python, with our own code
                    [sys.executable, "-c", _PROGRAM.format(path=path, arguments=arguments)],
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
        self._connection = Connection(os.dup(self._socket.fileno()))

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def ask(self, call: Call, timeout_s: float | None = None) -> Answer:
        """Call the stage in the process, and return the answer.

        Args:
            call: The call.
            timeout_s: Time limit, in seconds; None for no limit.

        Raises:
            DeadError: The process has died.
            LateError: The process has not answered within the time limit. It continues with the call.
            Exception: The call does not pickle, or the answer cannot be unpickled.
        """
        try:
            send(self._connection, call)
            self._await_answer(timeout_s)
            message = receive(self._connection)
        except (EOFError, ConnectionError) as exc:
            raise DeadError(self._how_it_died()) from exc
        answer: Answer = message.open()
        return answer

    def end(self, *, kill: bool) -> None:
        """End the process, and wait until it has ended."""
        if kill:
            self._process.kill()
        else:
            self._socket.shutdown(socket.SHUT_RDWR)  # closing is not enough if a fork of the worker has a copy
        try:
            self._process.wait(_EXIT_S)
        except subprocess.TimeoutExpired:  # something that the stage started keeps it alive
            self._process.kill()
            self._process.wait()
        self._connection.close()
        self._socket.close()
        os.close(self._lifeline)

    def _await_answer(self, timeout_s: float | None) -> None:
        waited_since, limit = time.monotonic(), math.inf if timeout_s is None else timeout_s
        while not self._connection.poll(max(0.0, min(_POLL_S, waited_since + limit - time.monotonic()))):
            # A process that the stage started may keep its end of the connection open after it has died.
            if self._process.poll() is not None and not self._connection.poll():
                raise EOFError
            if time.monotonic() - waited_since >= limit:
                raise LateError

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
