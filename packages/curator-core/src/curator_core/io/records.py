# SPDX-License-Identifier: Apache-2.0
"""The records of one JSON Lines file, and errors that explain broken lines and files.

Broken lines can be skipped. But some files only look as if they had one broken line: they are truncated, have other
line endings, or are in another format. Skipping that line would silently lose other records, so it is always an error.
"""

from __future__ import annotations

import json
import re
from math import inf
from typing import TYPE_CHECKING, Any

from curator_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["RecordReader", "lines_of"]

_SPACE = " \t\r\n"  # what JSON treats as whitespace
_BOM = "\ufeff"  # the byte order mark
_SHOWN = 80  # characters of a broken line that an error shows
_SEAM = re.compile(f"[\r{_BOM}]")  # may separate the records of a line that contains several

# How files in other formats begin, and what to do with them.
_CONVERT = "the file looks like {}: convert it to UTF-8, with one JSON object per line"
_COMPRESSED = "the file looks like {0}: pass compression='{0}', or give the file a matching extension"
_BEGINNINGS = (
    (b"\xff\xfe\0\0", _CONVERT.format("UTF-32")),
    (b"\0\0\xfe\xff", _CONVERT.format("UTF-32")),
    (b"\xff\xfe", _CONVERT.format("UTF-16")),
    (b"\xfe\xff", _CONVERT.format("UTF-16")),
    (b"\x1f\x8b", _COMPRESSED.format("gzip")),
    (b"BZh", _COMPRESSED.format("bz2")),
    (b"\xfd7zXZ", _COMPRESSED.format("xz")),
    (b"\x28\xb5\x2f\xfd", _COMPRESSED.format("zstd")),
    (b"\x04\x22\x4d\x18", _COMPRESSED.format("lz4")),
    (b"PK\x03\x04", _COMPRESSED.format("zip")),
    (b"PAR1", "the file looks like Parquet: use ParquetReader"),
    (b"[", "the file looks like a JSON array: write one object per line, for example with jq -c '.[]'"),
)
_SPREAD = "the objects seem to span several lines: write each on one line, for example with jq -c ."
_CR_ONLY = "the lines end in a lone carriage return: convert them, for example with tr '\\r' '\\n'"
_MARKED = "remove it, or pass encoding='utf-8-sig', which ignores a byte order mark at the start of any line"
_JOINED = "concatenate the files with a newline between them and without byte order marks"


class RecordReader:
    """Reads the records of one JSON Lines file.

    Args:
        path: The name of the file in errors.
        encoding: The encoding of the text.
        fields: The fields of a record to keep; None for all.
        skip: Whether to skip broken lines.
        compressed: Whether the file is compressed.

    Attributes:
        skipped: How many broken lines were skipped.
    """

    def __init__(self, path: str, encoding: str, fields: Sequence[str] | None, *, skip: bool, compressed: bool) -> None:
        self._path = path
        self._encoding = encoding
        self._fields = fields
        self._skip = skip
        self._compressed = compressed
        self._start = 0  # offset of the first line
        self._number = 0  # number of the current line, counted from there
        self._offset = 0  # offset of the current line
        self._end = 0  # offset up to which the file was read
        self._has_records = False
        self._first_skipped: tuple[DataError, str, bytes] | None = None
        self._is_cut_off = False  # whether the last line was skipped and has no newline
        self.skipped = 0

    def read(self, chunks: Iterable[bytes], start: int = 0, stop: float = inf) -> Iterator[dict[str, Any]]:
        """Yield the records in the content of the file.

        Args:
            chunks: The content.
            start: Offset of the content in the file, which must be the start of a line.
            stop: Lines that begin at this offset or later are not read.

        Raises:
            DataError: A line is broken and must not be skipped, or the file is not JSON Lines or is truncated.
        """
        self._start = self._offset = self._end = start
        for line in lines_of(self._counted(chunks)):
            if self._offset >= stop:
                break
            self._number += 1
            try:
                record = self._parse(line)
            except DataError as exc:
                self._leave_out(exc, line)
            else:
                if record is not None:
                    self._has_records = True
                    yield record
            self._offset += len(line) + 1
        if self._first_skipped and not self._has_records and not start:
            raise self._no_line_is_good(*self._first_skipped)

    def describe_skipped(self) -> str:
        """Return a description of the skipped lines, for a log."""
        first = self._first_skipped[1] if self._first_skipped else "unknown"
        cut_off = "; the last line is one of them and has no newline: the file may be truncated"
        return f"broken lines skipped: {self.skipped}; the first one is {first}{cut_off if self._is_cut_off else ''}"

    def _counted(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self._end += len(chunk)
            yield chunk

    @property
    def _where(self) -> str:
        return f"the line at byte {self._offset}" if self._start else f"line {self._number}"

    def _parse(self, line: bytes) -> dict[str, Any] | None:
        """Return the record of a line; None for a blank line."""
        try:
            text = line.decode(self._encoding)
            if not self._offset:
                text = text.removeprefix(_BOM)
            if not text.strip(_SPACE):
                return None
            record = json.loads(text)
        except UnicodeDecodeError as exc:
            raise self._not_in_encoding(exc) from exc
        except json.JSONDecodeError as exc:
            raise self._broken(f"is not JSON: {exc.msg} at character {exc.pos + 1}", line, text) from exc
        except (ValueError, RecursionError) as exc:  # a number of 5,000 digits, 5,000 nested brackets
            raise self._broken(f"cannot be parsed as JSON: {exc}", line, text) from exc
        if not isinstance(record, dict):
            raise self._broken("is JSON, but not an object", line, text)
        if self._fields is None:
            return record
        return {name: record[name] for name in self._fields if name in record}

    def _leave_out(self, exc: DataError, line: bytes) -> None:
        """Skip and count a broken line.

        Raises:
            DataError: Broken lines must not be skipped, or more than this line is broken.
        """
        fault = self._fault_of_file(exc, line)
        if fault is not None:
            raise fault from exc.__cause__
        if not self._skip:
            raise exc
        self.skipped += 1
        self._first_skipped = self._first_skipped or (exc, self._where, line[:_SHOWN])
        self._is_cut_off = self._is_last_without_newline(line)

    # --- errors -----------------------------------------------------------------------------------------

    def _fault_of_file(self, exc: DataError, line: bytes) -> DataError | None:
        """Return the error if the whole file is broken, so that skipping the line would lose more than the line."""
        cause = exc.__cause__
        unreadable = isinstance(cause, UnicodeDecodeError | json.JSONDecodeError)
        if unreadable and self._compressed and self._is_last_without_newline(line):
            return self._truncated(line)
        if not isinstance(cause, json.JSONDecodeError):
            return None
        text = cause.doc
        if any(_is_object(piece) for piece in _SEAM.split(text)):
            return self._several(text)
        begins = text.strip(_SPACE)
        if self._is_first_content and (begins == "{" or begins[0] == "["):
            return self._fault(f"{self._where} begins a value that continues on the next lines", text, _hint(line))
        return None

    @property
    def _is_first_content(self) -> bool:
        return not (self._has_records or self.skipped or self._start)

    def _is_last_without_newline(self, line: bytes) -> bool:
        return self._end == self._offset + len(line)

    def _several(self, text: str) -> DataError:
        if text.startswith(_BOM):
            return self._fault(f"{self._where} begins with a byte order mark, as in concatenated files", text, _MARKED)
        if _BOM in text:
            return self._fault(
                f"{self._where} belongs to two concatenated files, the second with a byte order mark", text, _JOINED
            )
        return self._fault(f"{self._where} consists of several lines, separated by carriage returns", text, _CR_ONLY)

    def _truncated(self, line: bytes) -> DataError:
        return self._fault(
            f"the file is truncated: its last line, {self._where}, has no newline and is not complete JSON",
            line,
            "create the file again from its source; its text was truncated before it was compressed",
        )

    def _no_line_is_good(self, first: DataError, _: str, line: bytes) -> DataError:
        count = "the only line is" if self.skipped == 1 else f"all {self.skipped:,} lines are"
        return self._fault(f"{count} broken: {first.message}", line, first.hint)

    def _fault(self, problem: str, given: str | bytes, hint: str | None) -> DataError:
        return DataError(
            problem,
            field=self._path,
            given=given[:_SHOWN],
            expected="one JSON object per line, with a newline between lines",
            hint=hint,
        )

    def _broken(self, problem: str, line: bytes, text: str) -> DataError:
        return DataError(
            f"{self._where} {problem}",
            field=self._path,
            given=text[:_SHOWN],
            expected="one JSON object per line",
            hint=self._hint(line) or "fix the line, or pass on_bad_line='skip' to skip and count such lines",
        )

    def _not_in_encoding(self, exc: UnicodeDecodeError) -> DataError:
        start = max(0, exc.start - _SHOWN // 2)
        return DataError(
            f"{self._where} is not {self._encoding}: byte 0x{exc.object[exc.start]:02x} at offset "
            f"{self._offset + exc.start} of the file: {exc.reason}",
            field=self._path,
            given=exc.object[start : exc.start + _SHOWN // 2],
            expected=f"text in {self._encoding}",
            hint=self._hint(exc.object)
            or "convert the file, or pass its encoding=…; on_bad_line='skip' skips such lines",
        )

    def _hint(self, line: bytes) -> str | None:
        return None if self._has_records or self._start else _hint(line)


def lines_of(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines in chunks of a file, without newlines, including a last line that has none."""
    pending: list[bytes] = []  # pieces of one line, which may be long: joined once
    for chunk in chunks:
        first, *rest = chunk.split(b"\n")
        pending.append(first)
        if rest:
            yield b"".join(pending)
            yield from rest[:-1]
            pending = [rest[-1]]
    last = b"".join(pending)
    if last:
        yield last


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _hint(line: bytes) -> str | None:
    """Return what to do about a file with this line instead of its first record; None if its format is unknown."""
    text = line.removeprefix(_BOM.encode()).strip()
    for beginning, hint in _BEGINNINGS:
        if text.startswith(beginning):
            return hint
    if b"\0" in text:
        return _CONVERT.format("UTF-16")
    return _SPREAD if text == b"{" else None
