# SPDX-License-Identifier: Apache-2.0
"""Compressed streams, read to the end that their format marks. An end of data before it is an error.

Not by way of `fsspec.compression`: of the packages that it wraps, some take the end of data for the end of a stream,
read the first of several streams only, or ignore what comes after it. Which formats it knows depends on what is
installed. Here all formats go through one loop, and are known by name whether or not they can be read.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from typing import TYPE_CHECKING, Any
from zipfile import ZipFile

from curator_core.errors import ConfigurationError, DataError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["SUFFIXES", "check_compression", "chunks_of", "compression_of"]

_CHUNK = 1 << 20  # bytes read at once
_COMPRESSED_CHUNK = 1 << 16  # of a compressed file: it may become a thousand times as long
_LONGEST_WINDOW = 31  # log2 of bytes: crawls are published as `zstd --long=31`, which has to be asked for


def _zstd() -> Any:
    """A decompressor of one zstd frame, by whichever package is there."""
    try:
        import backports.zstd as zstd  # noqa: PLC0415 - an extra
    except ImportError:
        import zstandard  # noqa: PLC0415 - what many have installed already

        return zstandard.ZstdDecompressor(max_window_size=1 << _LONGEST_WINDOW).decompressobj()
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _LONGEST_WINDOW})


def _lz4() -> Any:
    import lz4.frame  # noqa: PLC0415 - an extra

    return lz4.frame.LZ4FrameDecompressor()


# For each format a function that makes a decompressor of one member of a file: with `decompress`, `eof`, `unused_data`.
_DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    "gzip": lambda: zlib.decompressobj(16 + zlib.MAX_WBITS),
    "bz2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ),  # of itself it takes zeros for an empty stream of `lzma`
    "lzma": lzma.LZMADecompressor,
    "zstd": _zstd,
    "lz4": _lz4,
}
_PADDED = ("gzip", "xz")  # their members may have zeros after them
_FORMATS = (*_DECOMPRESSORS, "zip")

SUFFIXES = {
    ".gz": "gzip",
    ".bz2": "bz2",
    ".xz": "xz",
    ".lzma": "lzma",
    ".zst": "zstd",
    ".lz4": "lz4",
    ".zip": "zip",
}
"""Which compression a file's name says, by its end in lower case."""


def check_compression(value: Any) -> str | None:
    """A compression's name, ``"infer"``, or None.

    Raises:
        ConfigurationError: It is something else.
    """
    if value is None or value in ("infer", *_FORMATS):
        return value  # type: ignore[no-any-return] # it is one of the names
    known = unknown_name("compression", str(value), ["infer", *_FORMATS])
    raise ConfigurationError("unknown compression", **{**known, "field": "compression"})


def compression_of(name: str) -> str | None:
    """The compression that a file's name says; None where it says none."""
    _, dot, last = name.lower().rpartition(".")
    return SUFFIXES.get(dot + last)


def chunks_of(stream: Any, compression: str | None, path: str) -> Iterator[bytes]:
    """The content of a file in chunks, decompressed; of all its members, where it has several.

    Args:
        stream: The file as it is stored, open for reading.
        compression: A name of `SUFFIXES`, or None.
        path: What errors call it.

    Raises:
        ConfigurationError: The package that reads this compression is not installed.
        DataError: The file is not compressed like that, is damaged, or ends before its last member does.
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
            except Exception as exc:  # each package has errors of its own
                raise _damaged(str(exc) or type(exc).__name__, path) from exc
            yield content
            data = member.unused_data if member.eof else b""
    if not member.eof:
        raise _damaged("truncated: it ends before the compressed data do", path)


def _new(compression: str, path: str) -> Any:
    try:
        return _DECOMPRESSORS[compression]()
    except ImportError as exc:
        raise ConfigurationError(
            f"reading {compression} needs a package that does not import here: {exc}",
            field=path,
            expected="the extra 'compression'",
            hint="pip install 'curator-core[compression]'",
        ) from exc


def _unzipped(stream: Any, path: str) -> Iterator[bytes]:
    """The one file of an archive."""
    try:
        with ZipFile(stream) as archive:
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
            if len(names) == 1:
                with archive.open(names[0]) as file:
                    yield from iter(lambda: file.read(_CHUNK), b"")
                return
    except OSError:  # of the file itself
        raise
    except Exception as exc:
        raise _damaged(str(exc) or type(exc).__name__, path) from exc
    raise DataError(
        f"the archive holds {len(names)} files, and only one can be read as compressed text",
        field=path,
        given=names,
        expected="an archive of one file",
        hint=f"read those in the archive: 'zip://*.jsonl::{path}'",
    )


def _damaged(problem: str, path: str) -> DataError:
    return DataError(
        f"the file cannot be decompressed: {problem}",
        field=path,
        expected="a complete file, compressed as its name says",
        hint="copy or make the file again, or give compression=… where its name misleads",
    )
