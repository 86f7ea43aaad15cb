# SPDX-License-Identifier: Apache-2.0
"""Messages between a worker and the process that holds its stage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from curator_core._transport.pickling import dump_parts, load_parts
from curator_core.logs import StageWork

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from logging import LogRecord
    from multiprocessing.connection import Connection

    from curator_core._reports.batch import ErrorInfo

__all__ = ["Answer", "Call", "CallValues", "FailedCall", "Message", "receive", "send"]


class Call(NamedTuple):
    """What the process is to do.

    Attributes:
        method: Of the stage; ``"hold"`` gives it the stage, and the exceptions of its ``retry_on``, and ``"call_all"``
            has an asynchronous one called several times.
        arguments: What it is given.
        work: What the worker is at, for log records.
        metrics: What has been recorded of the batch so far.
    """

    method: str
    arguments: tuple[Any, ...]
    work: StageWork = StageWork()
    metrics: Mapping[str, float | str] = {}


class FailedCall(NamedTuple):
    """Stands where the value of one of several calls would be.

    Attributes:
        error: What the stage raised.
        is_of_retry_on: Whether that is of its ``retry_on``.
        is_canceled: Whether it was canceled because another one failed.
    """

    error: ErrorInfo
    is_of_retry_on: bool
    is_canceled: bool = False


class CallValues(list[Any]):
    """What several calls gave: values, and a `FailedCall` for each that failed."""


class Answer(NamedTuple):
    """What came of it.

    Attributes:
        value: What the stage returned; a generator was read to its end. Of several calls `CallValues`.
        error: What it raised instead, if it did.
        is_of_retry_on: Whether that is of its ``retry_on``.
        notes: What tasks that it was given say in their ``metadata`` afterwards; None where they say nothing.
        metrics: What has been recorded of the batch until now.
        cpu_ns: CPU time of the thread that called it, where it was work on tasks.
        logs: What was logged meanwhile at WARNING and above.
    """

    value: Any = None
    error: ErrorInfo | None = None
    is_of_retry_on: bool = False
    notes: Sequence[dict[str, Any] | None] = ()
    metrics: Mapping[str, float | str] = {}
    cpu_ns: int = 0
    logs: Sequence[LogRecord] = ()


class Message:
    """A message that has come and is not opened yet: that runs code of users.

    Args:
        head: Its pickle.
        buffers: The large buffers that were sent beside it.
    """

    def __init__(self, head: bytes, buffers: Sequence[bytes | bytearray]) -> None:
        self._head = head
        self._buffers = buffers

    def open(self) -> Any:
        """What was sent; arrays in it can be written to where they could be before.

        Raises:
            BaseException: It does not unpickle.
        """
        return load_parts(self._head, self._buffers)


def send(connection: Connection, message: Any) -> None:
    """Send a message; large buffers go beside its pickle and are not copied into it.

    Raises:
        OSError: There is nobody at the other end.
        Exception: The message does not pickle; nothing has been sent.
    """
    head, buffers = dump_parts(message)
    connection.send_bytes(len(buffers).to_bytes(4, "little") + bytes(buffer.readonly for buffer in buffers) + head)
    for buffer in buffers:
        connection.send_bytes(buffer)


def receive(connection: Connection) -> Message:
    """The next message.

    Raises:
        EOFError: There is nobody at the other end, and nothing more to come.
        OSError: Likewise, in the middle of a message.
    """
    first = connection.recv_bytes()
    count = int.from_bytes(first[:4], "little")
    are_readonly, head = first[4 : 4 + count], first[4 + count :]
    received = [(connection.recv_bytes(), readonly) for readonly in are_readonly]
    return Message(head, [buffer if readonly else bytearray(buffer) for buffer, readonly in received])
