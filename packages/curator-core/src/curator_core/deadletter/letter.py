# SPDX-License-Identifier: Apache-2.0
"""Dead letters: the details of a failure, and the format of their files.

A file is one line of JSON (``head -1 x.letter | python -m json.tool``), followed by the concatenated parts of the
payload, whose lengths are in ``parts`` in that line. The line ends with a checksum of everything else, which detects
damage, not malice.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from curator_core._files.names import file_name
from curator_core._numbers import is_whole
from curator_core.deadletter.payload import Payload, PayloadKind
from curator_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["SUFFIX", "Letter", "damaged", "decode", "encode", "letter_path", "parse_header"]

SUFFIX = ".letter"

_FORMAT = "curator dead letter"
_VERSION = 1
_MAX_TEXT = 64_000  # bytes of a traceback or message; the middle of a longer one is omitted
_DIGEST_SIZE = 16  # bytes
_SEAL = b', "checksum": "'


@dataclass(frozen=True, kw_only=True)
class Letter:
    """The details of a task that failed for good.

    Attributes:
        task_id: The id of the task.
        stage: Name of the stage in which it failed.
        stage_index: Position of the stage in the plan, from 0.
        attempts: Number of attempts.
        error_type: Qualified name of the exception's class.
        error_message: Message of the exception.
        error_traceback: Its formatted traceback, as in `ErrorInfo`; beginning and end, up to 64 kB.
        error_doing: What the stage was doing, as in `ErrorInfo`.
        worker_id: The id of the worker of the last attempt.
        node_id: The id of the worker's node.
        pid: The process id of the worker.
        run_id: The id of the run.
        trace_id: The id of the run's trace; empty if there is none.
        pipeline: Name of the pipeline.
        failed_at: Time of the failure, in Unix seconds.
        task_class: The task's class, with its module.
        payload_kind: How the task is stored: ``"json"``, ``"pickle"``, or ``"none"``.
        payload_bytes: Size of the task in bytes, even if it is too large to be stored.
        payload_note: Why the task is not stored.
        version: Version of the file format.
    """

    task_id: str
    stage: str
    stage_index: int = 0
    attempts: int = 1
    error_type: str = ""
    error_message: str = ""
    error_traceback: str = ""
    error_doing: str = ""
    worker_id: str = ""
    node_id: str = ""
    pid: int = 0
    run_id: str = ""
    trace_id: str = ""
    pipeline: str = ""
    failed_at: float = 0.0
    task_class: str = ""
    payload_kind: PayloadKind = "none"
    payload_bytes: int = 0
    payload_note: str = ""
    version: int = _VERSION

    @property
    def failed_at_utc(self) -> str:
        """Time of the failure, as ISO 8601 text in UTC."""
        return datetime.fromtimestamp(self.failed_at, UTC).isoformat(timespec="milliseconds")


def letter_path(stage: str, task_id: str) -> str:
    """Return the fixed path of the letter of a task and stage, below the directory of dead letters.

    Different names have different paths, and no path leads out of the directory.
    """
    return f"{file_name(stage)}/{file_name(task_id)}{SUFFIX}"


# --- writing --------------------------------------------------------------------------------------------


def encode(letter: Letter, payload: Payload) -> list[bytes | memoryview]:
    """Return the file of a letter, in parts to write one after the other.

    Args:
        letter: The details of the failure; those about the payload are taken from the payload.
        payload: The task.
    """
    letter = _filled_in(letter, payload)
    parts = [] if payload.kind == "none" else [payload.head, *payload.buffers]
    header = {
        "format": _FORMAT,
        **asdict(letter),
        "failed_at_utc": letter.failed_at_utc,
        "parts": [len(part) for part in parts],
    }
    body = json.dumps(header).removesuffix("}").encode()
    return [body + _SEAL + _checksum([body, *parts]) + b'"}\n', *parts]


def _filled_in(letter: Letter, payload: Payload) -> Letter:
    return replace(
        letter,
        error_message=_cut(letter.error_message),
        error_traceback=_cut(letter.error_traceback),
        task_class=payload.task_class,
        payload_kind=payload.kind,
        payload_bytes=payload.size,
        payload_note=payload.note,
        version=_VERSION,
    )


def _cut(text: str) -> str:
    """Shorten a long text by omitting its middle, because the beginning and the end are the most informative."""
    data = text.encode(errors="backslashreplace")
    if len(data) <= _MAX_TEXT:
        return text
    first, last = data[: _MAX_TEXT // 4], data[-_MAX_TEXT * 3 // 4 :]
    left_out = len(data) - len(first) - len(last)
    return f"{first.decode(errors='ignore')}\n… {left_out:,} bytes omitted …\n{last.decode(errors='ignore')}"


def _checksum(parts: Iterable[bytes | memoryview]) -> bytes:
    state = blake2b(digest_size=_DIGEST_SIZE)
    for part in parts:
        state.update(part)
    return state.hexdigest().encode()


# --- reading --------------------------------------------------------------------------------------------


def decode(data: bytes, path: str) -> tuple[Letter, Payload]:
    """Return the arguments of `encode` for a file. Nothing in it is executed; buffers are views of the file's bytes.

    Raises:
        DataError: It is not a letter, or a damaged one.
    """
    end = data.find(b"\n")
    line, rest = data[: max(end, 0)], memoryview(data)[end + 1 :]
    letter, sizes = parse_header(line, path)
    if sum(sizes) != len(rest):
        raise damaged(path, f"its payload has {len(rest):,} bytes instead of the {sum(sizes):,} in its first line")
    parts = []
    for size in sizes:
        parts.append(rest[:size])
        rest = rest[size:]
    body, _, checksum = line.rpartition(_SEAL)
    if checksum.removesuffix(b'"}') != _checksum([body, *parts]):
        raise damaged(path, "its checksum does not match")
    head, buffers = bytes(parts[0]) if parts else b"", parts[1:]
    kind, note = letter.payload_kind, letter.payload_note
    return letter, Payload(kind, letter.task_id, letter.task_class, head, buffers, letter.payload_bytes, note)


def parse_header(line: bytes, path: str) -> tuple[Letter, list[int]]:
    """Return the letter in the first line of a file, and the sizes of the payload's parts.

    Does not verify the checksum, which needs the whole file.

    Raises:
        DataError: It is not a letter, or it is damaged or has a later version.
    """
    try:
        header = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise damaged(path, f"its first line is not JSON: {exc}" if line else "its first line is incomplete") from exc
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise damaged(path, "its first line is not the header of a letter")
    version = header.get("version")
    if isinstance(version, int) and version > _VERSION:
        raise DataError(
            f"unknown version {version} of a dead letter",
            field=path,
            expected=f"version {_VERSION}",
            hint="read it with the version of curator-core that wrote it, or a later one",
        )
    values = {name: _checked(header, name, kind, path) for name, kind in _kinds().items()}
    sizes = header.get("parts")
    if not isinstance(sizes, list) or not all(is_whole(size, 0) for size in sizes):
        raise damaged(path, "its 'parts' are not sizes")
    if bool(sizes) != (values["payload_kind"] != "none"):
        raise damaged(path, f"its payload is '{values['payload_kind']}', in {len(sizes)} parts")
    return Letter(**values), sizes


def damaged(path: str, why: str) -> DataError:
    """Return the error about a file that is damaged, or never was a letter."""
    return DataError(
        f"not a dead letter, or a damaged one: {why}",
        field=path,
        expected="a complete and unchanged file",
        hint="copy it again from its original location, or move it elsewhere: its task can still be recreated from the "
        "source, by the id in the name of the file",
    )


@cache
def _kinds() -> dict[str, Any]:
    return get_type_hints(Letter)


def _checked(header: dict[str, Any], name: str, kind: Any, path: str) -> Any:
    value = header.get(name)
    choices = get_args(kind)  # of a Literal
    if value in choices if choices else type(value) is kind or (kind is float and type(value) is int):
        return value
    raise damaged(path, f"its '{name}' is missing or has the wrong type")
