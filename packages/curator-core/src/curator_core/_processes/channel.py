# SPDX-License-Identifier: Apache-2.0
"""Messages between a process and its child: how they are sent, and those of an isolated stage."""

from __future__ import annotations

import os
from struct import Struct
from typing import TYPE_CHECKING, Any, NamedTuple

from curator_core._transport.packed import Packed
from curator_core.logs import StageWork

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from logging import LogRecord
    from socket import socket

    from curator_core._reports.batch import ErrorInfo

__all__ = ["STOP", "Answer", "Call", "CallValues", "FailedCall", "open_standard_streams", "receive", "send"]

_START = Struct("<IQ")  # the number of buffers, and the size of the pickle
_SIZE = Struct("<Q?")  # of a buffer, and whether it is read-only

STOP = Packed(b"")
"""A message without an answer. It asks the child to stop its current work."""


class Call(NamedTuple):
    """A request to the process.

    Attributes:
        method: The stage's method to call. Two names are not methods: ``"load"`` sends the stage, and the exceptions of
            its ``retry_on``; ``"call_all"`` calls an asynchronous stage several times.
        arguments: The arguments of the method.
        work: What the worker is working on, for log records.
        metrics: The metrics recorded for the batch so far.
    """

    method: str
    arguments: tuple[Any, ...]
    work: StageWork = StageWork()
    metrics: Mapping[str, float | str] = {}


class FailedCall(NamedTuple):
    """A failure in place of the value of one of several calls.

    Attributes:
        error: The exception that the stage raised.
        is_of_retry_on: Whether it matches the stage's ``retry_on``.
        is_canceled: Whether the call was canceled because another one failed.
    """

    error: ErrorInfo
    is_of_retry_on: bool
    is_canceled: bool = False


class CallValues(list[Any]):
    """The results of several calls: the value of each, or a `FailedCall` if it failed."""


class Answer(NamedTuple):
    """The result of a call.

    Attributes:
        value: The value that the stage returned, with a generator read into a list; `CallValues` for several calls.
        error: The exception that the stage raised; None if it returned.
        is_of_retry_on: Whether that exception matches the stage's ``retry_on``.
        notes: The ``metadata`` of each task after the call, None for a task without any; empty if no task has any.
        metrics: The metrics recorded for the batch so far.
        cpu_ns: CPU time of the thread that called the stage, in nanoseconds; 0 if the call was not given tasks.
        logs: Records of WARNING and above that were logged meanwhile.
    """

    value: Any = None
    error: ErrorInfo | None = None
    is_of_retry_on: bool = False
    notes: Sequence[dict[str, Any] | None] = ()
    metrics: Mapping[str, float | str] = {}
    cpu_ns: int = 0
    logs: Sequence[LogRecord] = ()


def open_standard_streams() -> None:
    """Open closed standard streams, such as those of a daemon: new pipes and sockets would get their numbers."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number: this one; stays open


def send(connection: socket, message: Packed) -> None:
    """Send a message; its buffers are not copied.

    Raises:
        OSError: The other end is closed.
    """
    sizes = [_SIZE.pack(memoryview(each).nbytes, memoryview(each).readonly) for each in message.buffers]
    connection.sendall(_START.pack(len(sizes), len(message.head)) + b"".join(sizes) + message.head)
    for each in message.buffers:
        connection.sendall(each)


def receive(connection: socket) -> Packed:
    """Return the next message, not opened yet, because that runs user code. Its arrays are writable as they were.

    Raises:
        EOFError: The other end is closed.
        OSError: The other end is closed, and has not received everything.
    """
    count, length = _START.unpack(_read(connection, _START.size))
    sizes = [*_SIZE.iter_unpack(_read(connection, count * _SIZE.size))]
    head = bytes(_read(connection, length))
    buffers = [(memoryview(_read(connection, size)), readonly) for size, readonly in sizes]
    return Packed(head, [each.toreadonly() if readonly else each for each, readonly in buffers])


def _read(connection: socket, size: int) -> bytearray:
    data = bytearray(size)
    left = memoryview(data)
    while left:
        count = connection.recv_into(left)
        if not count:
            raise EOFError
        left = left[count:]
    return data
