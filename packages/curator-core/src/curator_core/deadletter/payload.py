# SPDX-License-Identifier: Apache-2.0
"""A failed task as bytes: as JSON where that loses nothing, else pickled.

What is JSON can be had back without executing anything, by anyone, with any version. A pickle runs code of its own
when it is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from curator_core._guard.user_code import check_failure
from curator_core._transport.exceptions import message_of
from curator_core._transport.pickling import dump_parts, load_parts
from curator_core.tasks import UNSEEN, DocumentBatch, EmptyTask, FileGroupTask, Task, new_state, stamp, state_of

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Payload", "PayloadKind", "pack_task", "unpack"]

PayloadKind: TypeAlias = Literal["json", "pickle", "none"]
"""How a task is kept: ``"none"`` where it is not, and the note says why."""

_PLAIN = {cls.__name__: cls for cls in (Task, EmptyTask, FileGroupTask, DocumentBatch)}
# What such a task has in it. `Task[int](…)` notes what it was called as, which means nothing at run time.
_PLAIN_FIELDS = {"data", "dataset_name", "_state", "__orig_class__"}
_SCALARS = frozenset({str, int, float, bool, type(None)})
_MAX_DEPTH = 100  # far below what the recursion of JSON's own code allows, wherever it is called from
_MAX_REASON = 500  # characters of what an exception says


class Payload(NamedTuple):
    """A task on its way into a letter.

    Attributes:
        kind: How it is kept.
        task_id: Its id.
        task_class: Its class, with the module.
        head: The JSON text, or the pickle without its buffers; empty where the task is not kept.
        buffers: The memory of arrays that may be written to, which the pickle refers to.
        size: Bytes that it takes, also where it is too large to be kept.
        note: Why it is not kept.
    """

    kind: PayloadKind
    task_id: str
    task_class: str
    head: bytes = b""
    buffers: Sequence[bytes | memoryview] = ()
    size: int = 0
    note: str = ""


def pack_task(task: Any, max_bytes: int) -> Payload:
    """A task as bytes, with its id and notes, and without its history. The task stays as it is.

    Never raises what the task's own code raises: the payload's note has it.

    Args:
        task: A task as it came into the stage that it failed in.
        max_bytes: A task that takes more is not kept.
    """
    cls = type(task)
    without = Payload("none", state_of(task)[0], f"{cls.__module__}.{cls.__qualname__}")
    raw = task.__dict__.get("data")
    if isinstance(raw, bytes | bytearray) and len(raw) > max_bytes:  # not pickled first: memory may be short already
        return _too_large(without, len(raw), max_bytes)
    try:
        text = _as_json(task, max_bytes)
        head, buffers = (text, []) if text is not None else _as_pickle(task)
    except BaseException as exc:  # noqa: BLE001 - pickling runs code of users
        check_failure(exc)
        reason = f"{type(exc).__name__}: {message_of(exc)}"
        return without._replace(note=f"the task does not pickle: {reason[:_MAX_REASON]}")
    size = len(head) + sum(buffer.nbytes for buffer in buffers)
    if size > max_bytes:
        return _too_large(without, size, max_bytes)
    kind: PayloadKind = "pickle" if text is None else "json"
    return without._replace(kind=kind, head=head, buffers=tuple(map(bytes, buffers)), size=size)


def unpack(payload: Payload) -> Any:
    """The task of a payload, with its id and notes on it. Only for what is trusted: unpickling runs code.

    Its arrays are as writable as they were.

    Args:
        payload: One that has a task.
    """
    if payload.kind == "json":
        task, notes = _from_json(payload)
    else:
        task, notes = load_parts(payload.head, map(bytearray, payload.buffers))
    stamp(task, new_state(payload.task_id, metadata=notes))
    return task


def _too_large(without: Payload, size: int, max_bytes: int) -> Payload:
    return without._replace(size=size, note=f"the task takes {size:,} bytes, and max_bytes is {max_bytes:,}")


def _as_pickle(task: Any) -> tuple[bytes, list[Any]]:
    """The task and, beside it, its notes: a class may leave the framework's state out of its pickle."""
    state = state_of(task)
    stamp(task, UNSEEN)  # not the history: it is long, and of a run that is over
    try:
        return dump_parts((task, state[2]), only_writable=True)
    finally:
        stamp(task, state)


def _as_json(task: Any, max_bytes: int) -> bytes | None:
    """The task as JSON; None where that would lose something."""
    import json  # noqa: PLC0415 - failures are rare, and an import of this package is not

    if _PLAIN.get(type(task).__name__) is not type(task):
        return None
    body = {"data": task.data, "dataset_name": task.dataset_name, "notes": state_of(task)[2]}
    known = _PLAIN_FIELDS
    if isinstance(task, FileGroupTask):
        known = known | {"byte_range"}
        body |= {"byte_range": list(task.byte_range)} if task.byte_range else {}
    if not task.__dict__.keys() <= known:
        return None
    if not _is_plain(body, max_bytes):
        return None
    try:
        return json.dumps(body, ensure_ascii=False).encode()
    except ValueError:  # half a surrogate pair, or a number of too many digits
        return None


def _from_json(payload: Payload) -> tuple[Any, dict[str, Any] | None]:
    import json  # noqa: PLC0415 - as above

    body = json.loads(payload.head)
    cls = _PLAIN[payload.task_class.rpartition(".")[2]]
    if "byte_range" in body:
        return FileGroupTask(body["data"], body["dataset_name"], tuple(body["byte_range"])), body["notes"]
    return cls(body["data"], body["dataset_name"]), body["notes"]


def _is_plain(value: Any, max_values: int) -> bool:
    """Whether JSON gives a value back as it is: no tuples, no keys but text, no subclasses, not too deep or many.

    Level by level, so that what contains itself comes to an end.
    """
    level = [value]
    for _ in range(_MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            kind = type(item)
            if kind is dict:
                if any(type(key) is not str for key in item):
                    return False
                below.extend(item.values())
            elif kind is list:
                below.extend(item)
            elif kind not in _SCALARS:
                return False
            if len(below) > max_values:
                return False
        if not below:
            return True
        level = below
    return False
