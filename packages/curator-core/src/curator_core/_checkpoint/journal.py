# SPDX-License-Identifier: Apache-2.0
"""An append-only file of JSON records that survives crashes and full disks, and reports lost records.

A record is a line: eight hex digits of the CRC-32 of its JSON, a space, and the JSON, which is ASCII. Lines are
independent, so a torn or damaged line does not affect others.
"""

from __future__ import annotations

import logging
import os
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curator_core._checkpoint.files import open_regular, sync_directory, write_all
from curator_core._files.paths import reading, writing
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
    """A journal to write to, from one process and one thread at a time.

    Records are buffered in memory until there are many or some time has passed, and are then written and synced
    together. A failed write may leave a torn line, which readers skip; its records are still in memory, and the next
    sync writes them again.

    Args:
        path: The file; created if missing.
        max_records: How many records may be buffered.
        max_seconds: Time in seconds after a sync from which the next record causes another sync.
        clock: Returns monotonic seconds.

    Raises:
        DataError: It cannot be opened, or is not a regular file.
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
        """Add a record, which is safe after the next sync.

        Args:
            record: A JSON object.

        Raises:
            DataError: JSON cannot represent the record, and it was not added; or a sync was due and failed: see `sync`.
        """
        self._lines.append(self._line(record))
        if len(self._lines) >= self._max_records or self._clock() - self._synced_at >= self._max_seconds:
            self.sync()

    def write(self) -> None:
        """Pass all records to the operating system, so that they survive the end of this process, but not a power loss.

        Raises:
            DataError: They cannot be written. They are still in memory: call this again after freeing up space.
        """
        if not self._lines:
            return
        data = b"".join(self._lines)
        with writing(self._path):
            torn_before, self._is_torn = self._is_torn, True  # until the file has all data
            write_all(self._descriptor, b"\n" + data if torn_before else data)
        self._is_torn = False
        self._lines.clear()
        self._is_synced = False

    def sync(self) -> None:
        """Write all records, and sync them to disk.

        Raises:
            DataError: See `write`.
        """
        self.write()
        if not self._is_synced:
            with writing(self._path):
                os.fsync(self._descriptor)
            self._is_synced = True
        self._synced_at = self._clock()

    def close(self) -> None:
        """Sync, and close the file even if that fails. Closing it again does nothing.

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
                f"JSON cannot represent the record: {exc}",
                field=self._path,
                given=record,
                expected="strings, finite numbers, True, False, None, and lists and dicts of these",
                hint="convert the value before it is recorded",
            ) from exc
        return b"%08x %b\n" % (zlib.crc32(body), body)

    def _inspect(self) -> bool:
        """Return whether the file ends in a torn line; sync the directory of a new file."""
        size = os.fstat(self._descriptor).st_size
        if size == 0:
            sync_directory(Path(self._path).parent)
            return False
        return os.pread(self._descriptor, 1, size - 1) != b"\n"


class JournalContents:
    """The records of a journal, read from the file in each iteration.

    Args:
        path: The file.

    Attributes:
        dropped: Number of torn or damaged lines in the last iteration, so far.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self.dropped = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        from json import loads  # noqa: PLC0415 - see `_encoder`

        self.dropped = 0
        with reading(self._path), os.fdopen(open_regular(self._path, os.O_RDONLY), "rb", _CHUNK) as stream:
            for line in stream:
                record = _parse(line.removesuffix(b"\n"), loads)
                if record is not None:
                    yield record
                elif line != b"\n":  # an empty line ends a torn one before the next record
                    self.dropped += 1
        if self.dropped:
            logger.warning(
                "%s: torn or damaged records, as after a crash: %d; their source tasks will run again",
                self._path,
                self.dropped,
            )


def read_journal(path: str | os.PathLike[str]) -> JournalContents:
    """Return the records of a journal, read one at a time because it may be larger than memory.

    Torn and damaged lines are skipped and counted anywhere in the file, and logged at the end. A last line that lacks
    only its newline is complete.

    Raises:
        DataError: The file cannot be read, or is not a regular file. Raised while iterating.
    """
    return JournalContents(os.fspath(path))


def _encoder() -> Callable[[Any], str]:
    from json import JSONEncoder  # noqa: PLC0415 - would add 2 ms to each import of this package

    return JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def _parse(line: bytes, loads: Callable[[str], Any]) -> dict[str, Any] | None:
    """Return the record of a line; None if the line is incomplete or damaged."""
    body = line[_HEAD:]
    if line[:_HEAD] != b"%08x " % zlib.crc32(body):
        return None
    try:
        record = loads(body.decode("ascii"))
    except (ValueError, RecursionError):  # the checksum matches, but another program wrote this
        return None
    return record if isinstance(record, dict) else None
