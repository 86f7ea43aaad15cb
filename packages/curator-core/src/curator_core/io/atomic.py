# SPDX-License-Identifier: Apache-2.0
"""Files that appear under their names once they are complete, or not at all."""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["atomic_file"]

logger = logging.getLogger(__name__)

_NAME_LIMIT = 64  # characters of the final name in a temporary one, which must not outgrow what a name may be
_OPEN_FILES = "/proc/self/fd"  # where Linux shows them: the way to give a name to one that has none


@contextmanager
def atomic_file(fs: Any, path: str) -> Iterator[BinaryIO]:
    """A file that appears under its name once it is complete, or not at all.

    On local disks it has no name before, where the system can do that: nothing is left of it when its writer is
    killed. Elsewhere it is written under another name in the same directory, one that begins with a dot, and then
    renamed; object stores, which cannot rename, copy it on their side. It replaces a file of that name. Where anything
    fails, nothing is left behind.

    Args:
        fs: The fsspec filesystem.
        path: The final name, as the filesystem writes it.
    """
    parent, _, name = path.rpartition("/")
    # Random, so that two attempts at the same task never write into one file.
    temporary = f"{parent}/.{name[:_NAME_LIMIT]}.{os.urandom(6).hex()}.tmp"
    nameless = _open_nameless(parent) if _is_local(fs) else None
    try:
        if nameless is None:
            with fs.open(temporary, "wb") as stream:
                yield stream
            _rename(fs, temporary, path)
        else:
            with nameless:
                yield nameless
                nameless.flush()
                _name(nameless.fileno(), temporary, path)
    except BaseException:
        _remove(fs, temporary)
        raise


def _open_nameless(directory: str) -> BinaryIO | None:
    """A file of a directory without a name; None where the system or the file system knows no such thing."""
    if not (hasattr(os, "O_TMPFILE") and Path(_OPEN_FILES).is_dir()):
        return None
    try:
        descriptor = os.open(directory, os.O_TMPFILE | os.O_WRONLY, 0o666)  # less the user's umask, as any file
    except OSError:  # what is wrong with the directory, if that is it, the attempt with a name will say
        return None
    return os.fdopen(descriptor, "wb")


def _name(descriptor: int, temporary: str, path: str) -> None:
    """Give a file its name; where that is taken, by way of another, since only renaming replaces a file."""
    source = f"{_OPEN_FILES}/{descriptor}"
    try:
        os.link(source, path, src_dir_fd=descriptor)  # with a directory, which is not needed, the link is followed
    except FileExistsError:
        os.link(source, temporary, src_dir_fd=descriptor)
        Path(temporary).replace(path)


def _rename(fs: Any, source: str, target: str) -> None:
    from fsspec import AbstractFileSystem  # noqa: PLC0415 - it is loaded: there is a filesystem

    if _is_local(fs):
        Path(source).replace(target)  # fs.mv would put the file into a directory of that name, in silence
    elif type(fs).mv is not AbstractFileSystem.mv:
        fs.mv(source, target)
    else:  # as its mv would, but that takes the paths for patterns, which a directory's name may look like
        fs.cp_file(source, target)
        fs.rm_file(source)


def _is_local(fs: Any) -> bool:
    from fsspec.implementations.local import LocalFileSystem  # noqa: PLC0415 - as above

    return isinstance(fs, LocalFileSystem)


def _remove(fs: Any, path: str) -> None:
    try:
        fs.rm_file(path)
    except FileNotFoundError:
        return
    except Exception:  # the error that led here is the one to show
        logger.warning("a temporary file could not be removed: %s", path, exc_info=True)
