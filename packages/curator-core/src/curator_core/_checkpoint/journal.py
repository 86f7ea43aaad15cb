# SPDX-License-Identifier: Apache-2.0
"""An append-only file of JSON records that survives crashes and full disks, and says what did not survive.

A record is a line: eight hex digits of the CRC-32 of its JSON, a space, and the JSON, which is ASCII. Each line stands
on its own, so that one that is torn or damaged takes no other along.
"""

from __future__ import annotations

import logging
import os
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curator_core._checkpoint.files import open_regular, reading, sync_directory, write_all, writing
from curator_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Self

__all__ = ["Journal", "JournalContents", "read_journal"]

logger = logging.getLogger(__name__)

_MAX_RECORDS = 1000
_MAX_SECONDS = 1.0
_CHUNK = 1 << 20  # bytes read at a time
_HEAD = 9  # the digits and the space


class Journal:
    """A journal that is written to, by one process and one thread at a time.

    Records gather in memory until there are many or some time has passed, and are then written and synced together.
    What a failed write has left behind is a torn line, which readers skip; its records are still in memory, and the
    next sync writes them again.

    Args:
        path: The file; made where it is missing.
        max_records: How many records may gather.
        max_seconds: How long after a sync the next record brings on another one.
        clock: Monotonic seconds.

    Raises:
        DataError: It cannot be opened, or is no regular file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_records: int = _MAX_RECORDS,
        max_seconds: float = _MAX_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = os.fspath(path)
        self._max_records = max_records
        self._max_seconds = max_seconds
        self._clock = clock
        self._lines: list[bytes] = []
        self._is_synced = True
        self._encode = _encoder()
        with writing(self._path):
            self._descriptor = open_regular(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
            try:
                self._is_torn = self._inspect()
            except BaseException:
                os.close(self._descriptor)
                raise
        self._synced_at = clock()

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record; it is safe once it is synced.

        Args:
            record: A JSON object.

        Raises:
            DataError: It has no form in JSON, and is not added; or a sync was due and failed: see `sync`.
        """
        self._lines.append(self._line(record))
        if len(self._lines) >= self._max_records or self._clock() - self._synced_at >= self._max_seconds:
            self.sync()

    def write(self) -> None:
        """Have the operating system know of all records: they outlive this process, but not a loss of power.

        Raises:
            DataError: They cannot be written. They are still in memory: call it again after making room.
        """
        if not self._lines:
            return
        data = b"".join(self._lines)
        with writing(self._path):
            torn_before, self._is_torn = self._is_torn, True  # until the file has all of it
            write_all(self._descriptor, b"\n" + data if torn_before else data)
        self._is_torn = False
        self._lines.clear()
        self._is_synced = False

    def sync(self) -> None:
        """Have the disk know of all records.

        Raises:
            DataError: As `write`.
        """
        self.write()
        if not self._is_synced:
            with writing(self._path):
                os.fsync(self._descriptor)
            self._is_synced = True
        self._synced_at = self._clock()

    def close(self) -> None:
        """Sync, and close the file, whether that worked or not. Closing it again does nothing.

        Raises:
            DataError: The last records could not be written, and are lost.
        """
        if self._descriptor < 0:
            return
        try:
            self.sync()
        finally:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _line(self, record: Mapping[str, Any]) -> bytes:
        try:
            body = self._encode(dict(record)).encode("ascii")
        except (TypeError, ValueError, RecursionError) as exc:
            raise DataError(
                f"the record has no form in JSON: {exc}",
                field=self._path,
                given=record,
                expected="texts, finite numbers, True, False, None, and lists and dicts of these",
                hint="convert the value before it is recorded",
            ) from exc
        return b"%08x %b\n" % (zlib.crc32(body), body)

    def _inspect(self) -> bool:
        """Whether the file ends in a torn line; a new one is made known to the disk."""
        size = os.fstat(self._descriptor).st_size
        if size == 0:
            sync_directory(Path(self._path).parent)
            return False
        return os.pread(self._descriptor, 1, size - 1) != b"\n"


class JournalContents:
    """The records of a journal, read from the file each time it is iterated over.

    Args:
        path: The file.

    Attributes:
        dropped: How many lines the last iteration found torn or damaged so far.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self.dropped = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        from json import loads  # noqa: PLC0415 - as above

        self.dropped = 0
        with reading(self._path), os.fdopen(open_regular(self._path, os.O_RDONLY), "rb", _CHUNK) as stream:
            for line in stream:
                record = _parse(line.removesuffix(b"\n"), loads)
                if record is not None:
                    yield record
                elif line != b"\n":  # which is written before what follows a torn line
                    self.dropped += 1
        if self.dropped:
            logger.warning(
                "%s: %d records are torn or damaged, as after a crash; these source tasks will be run again",
                self._path,
                self.dropped,
            )


def read_journal(path: str | os.PathLike[str]) -> JournalContents:
    """The records of a journal, one at a time: it may be larger than memory.

    What is torn or damaged is skipped and counted wherever it stands, and told in the log at the end. A last line that
    lacks nothing but its end of line is whole.

    Raises:
        DataError: While iterating: the file cannot be read, or is no regular file.
    """
    return JournalContents(os.fspath(path))


def _encoder() -> Callable[[Any], str]:
    from json import JSONEncoder  # noqa: PLC0415 - 2 ms, which an import of this package need not cost

    return JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def _parse(line: bytes, loads: Callable[[str], Any]) -> dict[str, Any] | None:
    """The record of a line; None where it is no whole one."""
    body = line[_HEAD:]
    if line[:_HEAD] != b"%08x " % zlib.crc32(body):
        return None
    try:
        record = loads(body.decode("ascii"))
    except (ValueError, RecursionError):  # the right checksum of something else: not ours
        return None
    return record if isinstance(record, dict) else None
