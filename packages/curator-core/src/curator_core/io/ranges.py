# SPDX-License-Identifier: Apache-2.0
"""Large files in ranges of bytes. A line, or a row group, belongs to the range that its first byte is in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from curator_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["DEFAULT_SPLIT", "check_size", "lines_from", "ranges_of"]

DEFAULT_SPLIT = "64MiB"

_CHUNK = 1 << 20  # bytes read at once


def ranges_of(size: int, limit: int) -> Iterator[tuple[int, int]]:
    """Ranges of `limit` bytes, the last one smaller.

    Not of equal sizes: so the ranges of a file stay what they are, but for the last, when something is appended to it.
    """
    return ((start, min(start + limit, size)) for start in range(0, size, limit))


def check_size(size: int | None, stop: int, path: str) -> None:
    """See that a file still has the range that it is to be read in.

    Raises:
        DataError: It has become smaller.
    """
    if size is not None and size < stop:
        raise DataError(
            "the file is smaller than when it was listed",
            field=path,
            given=f"{size:,} bytes",
            expected=f"at least {stop:,} bytes: a file that stays as it is from listing to reading",
            hint="see what changes files there while the pipeline runs, and run it again",
        )


def lines_from(stream: Any, start: int, stop: int) -> tuple[int, Iterator[bytes]]:
    """Where the first line begins that starts in a range, and the file's content from there, in chunks.

    Args:
        stream: The file, open for reading.
        start: Where the range begins.
        stop: Where it ends. Where no line starts before, the content is empty.
    """
    if not start:
        return 0, _chunks(stream)
    position = start - 1  # a newline there ends the line before
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
    """Seek; read up to there where the stream cannot, as those of simple HTTP servers."""
    try:
        stream.seek(position)
    except (ValueError, NotImplementedError):  # io.UnsupportedOperation is a ValueError
        while position > 0 and (chunk := stream.read(min(position, _CHUNK))):
            position -= len(chunk)
