# SPDX-License-Identifier: Apache-2.0
"""Converts a failed task to bytes: to JSON if that loses nothing, otherwise to a pickle.

Reading JSON executes nothing and works with any version. Loading a pickle runs code from the pickle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from curator_core._guard.user_code import check_failure
from curator_core._transport.exceptions import message_of
from curator_core._transport.packed import Packed
from curator_core.tasks import UNSEEN, DocumentBatch, EmptyTask, FileGroupTask, Task, new_state, stamp, state_of

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Payload", "PayloadKind", "pack_task", "unpack"]

PayloadKind: TypeAlias = Literal["json", "pickle", "none"]
"""How a task is stored: ``"none"`` if it is not, and the note says why."""

_PLAIN = {cls.__name__: cls for cls in (Task, EmptyTask, FileGroupTask, DocumentBatch)}
# The attributes of these tasks. `Task[int](…)` sets `__orig_class__`, which has no meaning at run time.
_PLAIN_FIELDS = {"data", "dataset_name", "_state", "__orig_class__"}
_SCALARS = frozenset({str, int, float, bool, type(None)})
_MAX_DEPTH = 100  # far below the recursion limit of the json module, however deep the caller is
_MAX_REASON = 500  # characters of an exception's message


class Payload(NamedTuple):
    """A task in the form in which a letter stores it.

    Attributes:
        kind: How the task is stored.
        task_id: Its id.
        task_class: Its class, with the module.
        head: The JSON text, or the pickle without its buffers; empty if the task is not stored.
        buffers: The memory of writable arrays, which the pickle refers to.
        size: Size of the task in bytes, even if it is too large to be stored.
        note: Why the task is not stored.
    """

    kind: PayloadKind
    task_id: str
    task_class: str
    head: bytes = b""
    buffers: Sequence[bytes | memoryview] = ()
    size: int = 0
    note: str = ""


def pack_task(task: Any, max_bytes: int) -> Payload:
    """Convert a task to bytes, with its id and notes, and without its history. Does not change the task.

    If the task's own code raises, the payload's note has the exception.

    Args:
        task: The task as it entered the stage in which it failed.
        max_bytes: Size above which a task is not stored.
    """
    cls = type(task)
    without = Payload("none", state_of(task)[0], f"{cls.__module__}.{cls.__qualname__}")
    raw = task.__dict__.get("data")
    if isinstance(raw, bytes | bytearray) and len(raw) > max_bytes:  # checked before pickling: memory may be scarce
        return _too_large(without, len(raw), max_bytes)
    try:
        text = _as_json(task, max_bytes)
        packed = _as_pickle(task) if text is None else Packed(text)
    except BaseException as exc:  # noqa: BLE001 - pickling runs user code
        check_failure(exc)
        reason = f"{type(exc).__name__}: {message_of(exc)}"
        return without._replace(note=f"the task cannot be pickled: {reason[:_MAX_REASON]}")
    size = packed.nbytes
    if size > max_bytes:
        return _too_large(without, size, max_bytes)
    kind: PayloadKind = "pickle" if text is None else "json"
    return without._replace(kind=kind, head=packed.head, buffers=tuple(map(bytes, packed.buffers)), size=size)


def unpack(payload: Payload) -> Any:
    """Return the task of a payload, with its id and notes. Unpickling runs code, so the payload must be trusted.

    Arrays are writable if they were writable before.

    Args:
        payload: A payload that contains a task.
    """
    if payload.kind == "json":
        task, notes = _from_json(payload)
    else:
        task, notes = Packed(payload.head, map(bytearray, payload.buffers)).open()
    stamp(task, new_state(payload.task_id, metadata=notes))
    return task


def _too_large(without: Payload, size: int, max_bytes: int) -> Payload:
    return without._replace(size=size, note=f"the task takes {size:,} bytes, but max_bytes is {max_bytes:,}")


def _as_pickle(task: Any) -> Packed:
    """Pickle the task and, separately, its notes: a class may omit the framework's state from its pickle."""
    state = state_of(task)
    stamp(task, UNSEEN)  # omits the history, which is long, and belongs to a run that is over
    try:
        return Packed.of((task, state[2]), only_writable=True)
    finally:
        stamp(task, state)


def _as_json(task: Any, max_bytes: int) -> bytes | None:
    """Return the task as JSON; None if that would lose something."""
    import json  # noqa: PLC0415 - failures are rare, but imports of this package are frequent

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
    except ValueError:  # an unpaired surrogate, or a number with too many digits
        return None


def _from_json(payload: Payload) -> tuple[Any, dict[str, Any] | None]:
    import json  # noqa: PLC0415 - see `_as_json`

    body = json.loads(payload.head)
    cls = _PLAIN[payload.task_class.rpartition(".")[2]]
    if "byte_range" in body:
        return FileGroupTask(body["data"], body["dataset_name"], tuple(body["byte_range"])), body["notes"]
    return cls(body["data"], body["dataset_name"]), body["notes"]


def _is_plain(value: Any, max_values: int) -> bool:
    """Whether JSON restores a value exactly: no tuples, no subclasses, only text as keys, not too deep or too many.

    Checks level by level, so that the check of a value that contains itself ends.
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
