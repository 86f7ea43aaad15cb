# SPDX-License-Identifier: Apache-2.0
"""Decompression that detects truncated files: data that ends before its format's end marker is an error.

`fsspec.compression` does not do that: some of the packages that it wraps treat the end of the data as the end of the
stream, read only the first of several streams, or ignore what follows it. Also, the formats that it knows depend on
what is installed. Here all formats go through one loop, and are known by name even if they cannot be read.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from typing import TYPE_CHECKING, Any
from zipfile import ZipFile

from curator_core.errors import ConfigurationError, DataError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["READABLE", "SUFFIXES", "check_compression", "chunks_of", "compression_of"]

_CHUNK = 1 << 20  # bytes read at once
_COMPRESSED_CHUNK = 1 << 16  # bytes read at once from a compressed file: they may decompress to 1,000 times as many
_LONGEST_WINDOW = 31  # log2 of bytes: crawls are published as `zstd --long=31`, which must be allowed explicitly


def _zstd() -> Any:
    """Return a decompressor of one zstd frame, from whichever package is installed."""
    try:
        import backports.zstd as zstd  # noqa: PLC0415 - an extra
    except ImportError:
        import zstandard  # noqa: PLC0415 - many environments have it already

        return zstandard.ZstdDecompressor(max_window_size=1 << _LONGEST_WINDOW).decompressobj()
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _LONGEST_WINDOW})


def _lz4() -> Any:
    import lz4.frame  # noqa: PLC0415 - an extra

    return lz4.frame.LZ4FrameDecompressor()


# For each format, a function that creates a decompressor of one member of a file: it has `decompress`, `eof`, and
# `unused_data`.
_DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    "gzip": lambda: zlib.decompressobj(16 + zlib.MAX_WBITS),
    "bz2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ),  # by default it treats zeros as an empty `lzma` stream
    "lzma": lzma.LZMADecompressor,
    "zstd": _zstd,
    "lz4": _lz4,
}
_PADDED = ("gzip", "xz")  # zeros may follow their members

READABLE = ("infer", *_DECOMPRESSORS, "zip")
"""The compressions that a reader can be asked for; ``"infer"`` depends on the file's name."""

SUFFIXES = {
    ".gz": "gzip",
    ".bz2": "bz2",
    ".xz": "xz",
    ".lzma": "lzma",
    ".zst": "zstd",
    ".lz4": "lz4",
    ".zip": "zip",
}
"""Compressions by file extension, in lower case."""


def check_compression(value: Any, known: Iterable[str]) -> None:
    """Check the name of a compression.

    Raises:
        ConfigurationError: It is not one of the known names.
    """
    if value not in tuple(known):
        raise ConfigurationError("unknown compression", **unknown_name("compression", str(value), known, "compression"))


def compression_of(name: str) -> str | None:
    """Return the compression that the extension of a file indicates; None if it indicates none."""
    _, dot, last = name.lower().rpartition(".")
    return SUFFIXES.get(dot + last)


def chunks_of(stream: Any, compression: str | None, path: str) -> Iterator[bytes]:
    """Yield the decompressed content of a file in chunks, including all members if it has several.

    Args:
        stream: The file, open for reading.
        compression: A compression in `SUFFIXES`, or None.
        path: The name of the file in errors.

    Raises:
        ConfigurationError: The package that reads this compression is not installed.
        DataError: The file has another compression, is damaged, or ends before its last member ends.
    """
    if compression is None:
        return iter(lambda: stream.read(_CHUNK), b"")
    if compression == "zip":
        return _unzipped(stream, path)
    return _decompressed(stream, compression, path)


def _decompressed(stream: Any, compression: str, path: str) -> Iterator[bytes]:
    member = _new(compression, path)
    while data := stream.read(_COMPRESSED_CHUNK):
        while data:
            if member.eof:
                data = data.lstrip(b"\0") if compression in _PADDED else data
                if not data:
                    break
                member = _new(compression, path)
            try:
                content = member.decompress(data)
            except Exception as exc:  # each package has its own errors
                raise _damaged(str(exc) or type(exc).__name__, path) from exc
            yield content
            data = member.unused_data if member.eof else b""
    if not member.eof:
        raise _damaged("truncated: it ends before the compressed data ends", path)


def _new(compression: str, path: str) -> Any:
    try:
        return _DECOMPRESSORS[compression]()
    except ImportError as exc:
        raise ConfigurationError(
            f"reading {compression} needs a package that cannot be imported: {exc}",
            field=path,
            expected="the extra 'compression'",
            hint="pip install 'curator-core[compression]'",
        ) from exc


def _unzipped(stream: Any, path: str) -> Iterator[bytes]:
    """Yield the content of the only file of an archive."""
    try:
        with ZipFile(stream) as archive:
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
            if len(names) == 1:
                with archive.open(names[0]) as file:
                    yield from iter(lambda: file.read(_CHUNK), b"")
                return
    except OSError:  # the file itself cannot be read
        raise
    except Exception as exc:
        raise _damaged(str(exc) or type(exc).__name__, path) from exc
    raise DataError(
        f"the archive contains {len(names)} files, but compressed text must be a single file",
        field=path,
        given=names,
        expected="an archive of one file",
        hint=f"read the files in the archive: 'zip://*.jsonl::{path}'",
    )


def _damaged(problem: str, path: str) -> DataError:
    return DataError(
        f"the file cannot be decompressed: {problem}",
        field=path,
        expected="a complete file, compressed as its name indicates",
        hint="copy or create the file again, or pass compression=… if its name is misleading",
    )
