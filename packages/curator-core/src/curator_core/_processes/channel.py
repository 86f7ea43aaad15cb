# SPDX-License-Identifier: Apache-2.0
"""Messages between a worker and the process of an isolated stage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from curator_core._transport.packed import Packed
from curator_core.logs import StageWork

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from logging import LogRecord
    from multiprocessing.connection import Connection

    from curator_core._reports.batch import ErrorInfo

__all__ = ["Answer", "Call", "CallValues", "FailedCall", "receive", "send"]


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


def send(connection: Connection, message: Any) -> None:
    """Send a message; large buffers go beside its pickle and are not copied into it.

    Raises:
        OSError: The other end is closed.
        Exception: The message does not pickle; nothing has been sent.
    """
    packed = Packed.of(message)
    are_readonly = bytes(buffer.readonly for buffer in packed.buffers)
    connection.send_bytes(len(are_readonly).to_bytes(4, "little") + are_readonly + packed.head)
    for buffer in packed.buffers:
        connection.send_bytes(buffer)


def receive(connection: Connection) -> Packed:
    """Return the next message, not opened yet, because that runs user code. Its arrays are writable as they were.

    Raises:
        EOFError: The other end is closed, and all messages have been received.
        OSError: The other end was closed in the middle of a message.
    """
    first = connection.recv_bytes()
    count = int.from_bytes(first[:4], "little")
    are_readonly, head = first[4 : 4 + count], first[4 + count :]
    received = [(connection.recv_bytes(), readonly) for readonly in are_readonly]
    return Packed(head, [buffer if readonly else bytearray(buffer) for buffer, readonly in received])
