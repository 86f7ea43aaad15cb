# SPDX-License-Identifier: Apache-2.0
"""JSON Lines: one JSON object per line."""

from __future__ import annotations

import codecs
import gzip
import json
from contextlib import contextmanager
from datetime import date, datetime, time
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from curator_core._bad_record import BadRecord, misshapen
from curator_core._files.paths import PathLike, check_skip
from curator_core.errors import ConfigurationError, DataError
from curator_core.io.compression import READABLE, check_compression, chunks_of, compression_of
from curator_core.io.partitioning import FilePartitioningStage
from curator_core.io.ranges import DEFAULT_SPLIT, lines_from
from curator_core.io.reader import FileReader, ListingReader
from curator_core.io.records import RecordReader
from curator_core.io.writer import Content, FileWriter, chosen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from curator_core.tasks import DocumentBatch

__all__ = ["JsonlReader", "JsonlReaderStage", "JsonlWriter"]

_EXTENSIONS = (".jsonl", ".json", ".ndjson")
_COMPRESSIONS = {"gzip": ".gz", "bz2": ".bz2", "xz": ".xz"}
_SCALARS = frozenset({str, int, float, bool, type(None)})
_FAILURES = (TypeError, ValueError, RecursionError)  # of the encoder and of `_check_keys`
_EXPECTED = "text, numbers, true, false, null, and lists of these, or dicts of these whose keys are text"


class JsonlReaderStage(FileReader):
    """Reads the JSON Lines files of a group, with records as dicts.

    Blank lines and a byte order mark at the start are ignored. A group without records emits no task, and counts as
    filtered. All members or frames of a compressed file are read; a truncated file is an error. For a task with a byte
    range, the lines that begin in the range are read.

    Args:
        fields: Fields of a record to keep, if it has them; None for all.
        records_per_batch: Maximum number of records in a task, which may combine several files of a group. None creates
            one task per group, which keeps the group's id.
        on_bad_line: ``"raise"``, or ``"skip"`` to skip a line that is not a JSON object or not in the encoding. The
            metric ``skipped_lines`` counts skipped lines. If more than a line is broken, that is an error anyway: a
            file without a single good line, a truncated compressed file, or a line that contains several records.
        encoding: Encoding of the text. A newline must be one byte, so UTF-16 and UTF-32 are not supported.
        compression: ``"infer"`` depends on the file's name; or ``"gzip"``, ``"bz2"``, ``"xz"``, ``"lzma"``, ``"zip"``
            (with one file), ``"zstd"`` or ``"lz4"`` (extra ``compression``); or None.
        storage_options: Options of the fsspec filesystem.

    Raises:
        ConfigurationError: An argument is invalid.
        DataError: A file is missing, cannot be read or decompressed, or is truncated, or a line is broken. Raised while
            the pipeline runs.
    """

    def __init__(
        self,
        fields: Sequence[str] | None = None,
        records_per_batch: int | None = None,
        on_bad_line: Literal["raise", "skip"] = "raise",
        encoding: str = "utf-8",
        compression: str | None = "infer",
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(fields, records_per_batch, storage_options, skip=check_skip("on_bad_line", on_bad_line))
        self._encoding = _check_encoding(encoding)
        if compression is not None:
            check_compression(compression, READABLE)
        self._compression = compression

    def _pieces(
        self, stream: Any, name: str, path: str, byte_range: tuple[int, int] | None
    ) -> Iterator[dict[str, Any]]:
        compression = compression_of(name) if self._compression == "infer" else self._compression
        reader = RecordReader(path, self._encoding, self._fields, skip=self._skip, compressed=compression is not None)
        if byte_range is None:
            yield from reader.read(chunks_of(stream, compression, path))
        elif compression is not None:
            raise _no_range(byte_range, compression, path)
        else:
            first, chunks = lines_from(stream, *byte_range)
            yield from reader.read(chunks, first, byte_range[1])
        if reader.skipped:
            self._count_skipped("skipped_lines", reader.skipped, path, reader.describe_skipped())

    def _join(self, pieces: list[Any], paths: Sequence[str]) -> list[Any]:
        del paths
        return pieces

    def _split(self, pieces: Iterable[Any], size: int, paths: Sequence[str]) -> Iterator[list[Any]]:
        del paths
        records = iter(pieces)
        while batch := list(islice(records, size)):
            yield batch


class JsonlReader(ListingReader):
    """Lists JSON Lines files and reads them: `FilePartitioningStage`, then `JsonlReaderStage`.

    Use the two stages directly to change their settings (``with_``), or to list files in another way.

    Args:
        file_paths: Files, directories, globs, and fsspec URLs.
        files_per_partition: Maximum number of files in a group; 1 if neither this nor ``blocksize`` is given.
        blocksize: Maximum size of a group in bytes, as stored: a number, or text such as ``"64MiB"``.
        fields: Fields of a record to keep; None for all.
        records_per_batch: Maximum number of records in a task; None creates one task per group.
        on_bad_line: ``"raise"`` or ``"skip"``.
        encoding: Encoding of the text.
        compression: ``"infer"`` depends on the file's name.
        file_extensions: Files to take from directories and globs.
        storage_options: Options of the fsspec filesystem.
        split: Maximum number of bytes in a task of a file that is not compressed: a larger file becomes several tasks,
            each with the lines that begin in its range. None reads each file in one task.

    Raises:
        ConfigurationError: An argument is invalid.
        DataError: See `FilePartitioningStage` and `JsonlReaderStage`. Raised while the pipeline runs.
    """

    def __init__(
        self,
        file_paths: PathLike | Sequence[PathLike],
        files_per_partition: int | None = None,
        blocksize: int | str | None = None,
        fields: Sequence[str] | None = None,
        records_per_batch: int | None = None,
        on_bad_line: Literal["raise", "skip"] = "raise",
        encoding: str = "utf-8",
        compression: str | None = "infer",
        file_extensions: Sequence[str] | None = _EXTENSIONS,
        storage_options: Mapping[str, Any] | None = None,
        split: int | str | None = DEFAULT_SPLIT,
    ) -> None:
        if compression not in ("infer", None):  # compressed, whatever the names of the files indicate
            split = None
        super().__init__(
            FilePartitioningStage(file_paths, files_per_partition, blocksize, file_extensions, storage_options, split),
            JsonlReaderStage(fields, records_per_batch, on_bad_line, encoding, compression, storage_options),
        )


class JsonlWriter(FileWriter):
    """Writes each task's records to a JSON Lines file in UTF-8 named after the task's id, or several tasks to one file.

    Writing the same task twice creates the same file, byte for byte. A file appears when it is complete.
    Pipelines whose tasks may have the same ids need separate directories.

    Numpy numbers and arrays are written as JSON numbers and arrays, dates and times in ISO 8601. Keys must be text, at
    any depth: with 1 written as "1", two keys could become one.

    Args:
        path: Directory or fsspec URL to write to; created if missing.
        fields: Columns to write; None for all.
        compression: None, ``"gzip"``, ``"bz2"``, or ``"xz"``; file names end in ``.gz`` and so on.
        allow_nan: Whether to write NaN and infinities as Python does. They are not valid JSON, and most readers other
            than Python's fail on them.
        storage_options: Options of the fsspec filesystem.
        target_size: A number of bytes, or text such as ``"128MiB"``: the consecutive tasks of a batch go into files of
            about this size, as written; see `ParquetWriter`. None for one file per task.
        on_bad_record: ``"raise"``, or ``"skip"`` to skip a record that JSON cannot represent. The metric
            ``skipped_records`` counts skipped records.

    Raises:
        ConfigurationError: An argument is invalid; or, when a run with a target size begins, the directory has files
            of another run.
        DataError: The directory or a file cannot be written, or JSON cannot represent a record. Raised while the
            pipeline runs.
    """

    _format = "JSON Lines"
    _hint = (
        "convert or drop the column before this stage (keys: {str(key): value}; NaN: pass allow_nan=True), or pass "
        "on_bad_record='skip' to skip and count such records"
    )

    def __init__(
        self,
        path: PathLike,
        fields: Sequence[str] | None = None,
        compression: Literal["gzip", "bz2", "xz"] | None = None,
        allow_nan: bool = False,
        storage_options: Mapping[str, Any] | None = None,
        target_size: int | str | None = None,
        on_bad_record: Literal["raise", "skip"] = "raise",
    ) -> None:
        if compression is not None:
            check_compression(compression, _COMPRESSIONS)
        extension = f".jsonl{_COMPRESSIONS.get(compression or '', '')}"
        super().__init__(path, extension, fields, storage_options, target_size, on_bad_record)
        self._compression = compression
        self._allow_nan = allow_nan

    def _content(self, task: DocumentBatch) -> Content:
        records = task.to_records()
        if self._fields is not None:
            records = [chosen(record, self._fields) for record in records]
        try:
            # Its check for values that contain themselves takes a while; without it, they raise RecursionError.
            lines = _lines(records, _encoder(allow_nan=self._allow_nan, check_circular=False))
        except _FAILURES:
            lines = self._sift(records, task)
        data = b"\n".join([*lines, b""])
        return Content(data, len(lines), len(data))

    def _sift(self, records: Sequence[Any], task: DocumentBatch) -> list[bytes]:
        """Return the lines of the good records, found one at a time; bad ones are skipped and counted, or raise."""
        encode = _encoder(allow_nan=self._allow_nan, check_circular=True)
        lines: list[bytes] = []
        bad: dict[int, BadRecord] = {}
        for number, record in enumerate(records):
            if found := _misfit(number, record, encode):
                bad |= self._bad([found])
            else:
                lines.append(_encoded(encode(record)))
        self._count_skipped(bad, task)
        return lines

    def _write(self, contents: Sequence[Content], stream: BinaryIO) -> None:
        with _compressed(stream, self._compression) as out:
            for content in contents:
                out.write(content.data)


def _no_range(byte_range: tuple[int, int], compression: str, path: str) -> DataError:
    return DataError(
        f"cannot read a byte range of a file compressed with {compression}",
        field=path,
        given=byte_range,
        expected="a task of the whole file",
        hint="pass split=None to FilePartitioningStage",
    )


def _check_encoding(encoding: str) -> str:
    try:
        # In UTF-16, the byte of a newline is also part of other characters, so it does not separate lines.
        if b"\n".decode(encoding) == "\n":
            return codecs.lookup(encoding).name
    except (LookupError, TypeError, UnicodeError):
        pass
    raise ConfigurationError(
        "JSON Lines cannot be read in this encoding",
        field="encoding",
        given=encoding,
        expected="an encoding that Python knows, with newlines of one byte",
        hint="convert the files to UTF-8",
    )


@contextmanager
def _compressed(stream: BinaryIO, compression: str | None) -> Iterator[Any]:
    if compression is None:
        yield stream
        return
    if compression == "gzip":
        # Without a name and a time in the header, the same records give the same bytes.
        with gzip.GzipFile(filename="", mode="wb", fileobj=stream, mtime=0) as out:
            yield out
        return
    from fsspec.compression import compr  # noqa: PLC0415 - fsspec is loaded: there is a filesystem

    with compr[compression](stream, mode="wb") as out:
        yield out


def _encoder(**settings: bool) -> Callable[[Any], str]:
    """Return a function that converts a value to JSON. It also converts keys to text: see `_check_keys`."""
    return json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=_plain, **settings).encode


def _lines(records: Sequence[Any], encode: Callable[[Any], str]) -> list[bytes]:
    """Return the lines of records.

    Raises:
        Exception: One of `_FAILURES`: one of them is not a dict that JSON can represent.
    """
    lines = []
    nested = []  # includes records without a "{" at the start, which are not dicts, and with a "{" in their text
    for record in records:
        text = encode(record)
        if text.rfind("{"):
            nested.append(record)
        lines.append(_encoded(text))
    if not all(isinstance(record, dict) for record in nested):
        raise TypeError("a record is not a dict")
    _check_text(chain.from_iterable(records))
    _check_keys(nested)
    return lines


def _encoded(text: str) -> bytes:
    """Return a line in UTF-8."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        # An unpaired surrogate, as found in crawled pages: written as an escape, it is read back unchanged.
        return "".join(c if c.isascii() else json.dumps(c)[1:-1] for c in text).encode("ascii")


def _plain(value: Any) -> Any:
    """Return the JSON equivalent of a value that the encoder does not support: a numpy number or array, or a date."""
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if hasattr(value, "dtype") and hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"type {type(value).__name__} has no JSON equivalent")


def _check_keys(values: Sequence[Any]) -> None:
    """Check that the keys of dicts are text, at any depth, because the encoder converts others: 1 becomes "1".

    Checks all values level by level, which takes a fraction of the time that encoding them takes.

    Args:
        values: Values that were encoded, so they do not contain themselves.

    Raises:
        TypeError: A key is not text.
    """
    while values:
        dicts = [value for value in values if isinstance(value, dict)]
        _check_text(chain.from_iterable(dicts))
        below = [held for value in dicts for held in value.values() if type(held) not in _SCALARS]
        if len(dicts) < len(values):
            below += [held for value in values for held in _items(value) if type(held) not in _SCALARS]
        values = below


def _check_text(keys: Iterable[Any]) -> None:
    for kind in set(map(type, keys)) - {str}:
        if not issubclass(kind, str):
            raise TypeError(f"a dict key is of type {kind.__name__}, not text")


def _items(value: Any) -> Sequence[Any]:
    """Return the values in a list, a tuple, or an array that may contain dicts."""
    if isinstance(value, list | tuple):
        return value
    return [value.tolist()] if getattr(getattr(value, "dtype", None), "hasobject", False) else ()


def _misfit(number: int, record: Any, encode: Callable[[Any], str]) -> BadRecord | None:
    """Return why JSON cannot represent a record; None if it can."""
    if found := misshapen(number, record, set()):
        return found
    for name, value in record.items():
        try:
            encode({name: value})
            _check_keys([value])
        except _FAILURES as exc:
            why = f"has a value in column '{name}' that JSON cannot represent: {exc}"
            return BadRecord(number, name, why, value, _EXPECTED)
    return None
