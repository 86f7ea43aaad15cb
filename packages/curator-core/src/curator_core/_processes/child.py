# SPDX-License-Identifier: Apache-2.0
"""The start and the end of the code in a child process, and the loop between them: it answers messages."""

from __future__ import annotations

import faulthandler
import fcntl
import os
import socket
import sys
import threading
import time
import traceback
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING

from curator_core._guard.interrupts import become_worker
from curator_core._guard.signals import leave_signals_to_driver
from curator_core._processes.channel import open_standard_streams, receive, send
from curator_core.logs import mark_records

if TYPE_CHECKING:
    from collections.abc import Callable

    from curator_core._transport.packed import Packed

__all__ = ["serve"]

_EXIT_S = 10.0  # for the threads of stages to end after the connection is closed


def serve(
    fd: int, lifeline: int, answer: Callable[[Packed], Packed], on_stop: Callable[[], None] = lambda: None
) -> None:
    """Answer the messages from a connection until it is closed.

    Args:
        fd: File descriptor of the connection.
        lifeline: File descriptor of a pipe that nothing is sent through. Its other end closes when the owner ends.
        answer: Returns the answer to a message; called in this thread.
        on_stop: Called in another thread when `STOP` arrives.
    """
    become_worker()
    leave_signals_to_driver()
    open_standard_streams()
    faulthandler.enable(2)  # prints where in a stage's code the process crashed
    for each in (fd, lifeline):
        os.set_inheritable(each, False)  # processes that a stage starts must not keep them open
    _die_with_owner(lifeline)
    mark_records()
    try:
        _answer_all(socket.socket(fileno=fd), answer, on_stop)
    except BaseException:  # noqa: BLE001 - the threads of stages would keep a process alive that answers no messages
        traceback.print_exc()
        _flush()
        os._exit(1)
    threading.Thread(target=_exit_late, name="curator-exit", daemon=True).start()


def _answer_all(connection: socket.socket, answer: Callable[[Packed], Packed], on_stop: Callable[[], None]) -> None:
    messages: SimpleQueue[Packed | None] = SimpleQueue()
    threading.Thread(target=_listen, args=(connection, messages, on_stop), name="curator-calls", daemon=True).start()
    while (message := messages.get()) is not None:  # in the main thread, which some stages require
        answered = answer(message)
        try:
            send(connection, answered)
        except OSError:
            return
        del message, answered  # frees them while this waits for the next message


def _listen(connection: socket.socket, messages: SimpleQueue[Packed | None], on_stop: Callable[[], None]) -> None:
    """Receive messages in a thread, which notices a closed connection even while a stage is busy."""
    with suppress(EOFError, OSError):
        while True:
            message = receive(connection)
            if message.head:
                messages.put(message)
            else:  # `STOP`
                on_stop()
            del message
    messages.put(None)


def _die_with_owner(lifeline: int) -> None:
    """Make the kernel end this process when its owner ends, even while C code blocks the interpreter."""
    with suppress(OSError, AttributeError):  # if not supported, this process ends when its stage returns
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)


def _exit_late() -> None:
    time.sleep(_EXIT_S)
    os._exit(1)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
