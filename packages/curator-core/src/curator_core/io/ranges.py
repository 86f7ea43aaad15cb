# SPDX-License-Identifier: Apache-2.0
"""Byte ranges of large files. A line, or a row group, belongs to the range that contains its first byte."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from curator_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["DEFAULT_SPLIT", "check_size", "lines_from", "ranges_of"]

DEFAULT_SPLIT = "64MiB"

_CHUNK = 1 << 20  # bytes read at once


def ranges_of(size: int, limit: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of `limit` bytes; the last one may be smaller.

    The file is not divided equally, so that appending to it does not change its ranges, except for the last one.
    """
    return ((start, min(start + limit, size)) for start in range(0, size, limit))


def check_size(size: int | None, stop: int, path: str) -> None:
    """Check that a file still contains the range to read.

    Raises:
        DataError: The file has become smaller.
    """
    if size is not None and size < stop:
        raise DataError(
            "the file is smaller than when it was listed",
            field=path,
            given=f"{size:,} bytes",
            expected=f"at least {stop:,} bytes: a file that does not change between listing and reading",
            hint="find out what changes files there while the pipeline runs, and run it again",
        )


def lines_from(stream: Any, start: int, stop: int) -> tuple[int, Iterator[bytes]]:
    """Return the offset of the first line that begins in a range, and the file's content from there, in chunks.

    Args:
        stream: The file, open for reading.
        start: Offset at which the range begins.
        stop: Offset at which the range ends. If no line begins in the range, the content is empty.
    """
    if not start:
        return 0, _chunks(stream)
    position = start - 1  # a newline there ends the previous line
    _go_to(stream, position)
    while position < stop - 1 and (chunk := stream.read(_CHUNK)):
        newline = chunk.find(b"\n", 0, stop - 1 - position)
        if newline >= 0:
            return position + newline + 1, _chunks(stream, chunk[newline + 1 :])
        position += len(chunk)
    return stop, iter(())


def _chunks(stream: Any, first: bytes = b"") -> Iterator[bytes]:
    if first:
        yield first
    while chunk := stream.read(_CHUNK):
        yield chunk


def _go_to(stream: Any, position: int) -> None:
    """Seek to a position, or read up to it if the stream cannot seek, as with simple HTTP servers."""
    try:
        stream.seek(position)
    except (ValueError, NotImplementedError):  # io.UnsupportedOperation is a ValueError
        while position > 0 and (chunk := stream.read(min(position, _CHUNK))):
            position -= len(chunk)
