# SPDX-License-Identifier: Apache-2.0
"""Paths, streams, and their errors, shared by readers and writers, for local and remote files."""

from __future__ import annotations

import errno
import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from curator_core._numbers import is_whole
from curator_core.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "PathLike",
    "absolute",
    "check_count",
    "check_fields",
    "check_skip",
    "filesystem",
    "is_url",
    "local_path",
    "parse_size",
    "reading",
    "writing",
]

PathLike: TypeAlias = "str | os.PathLike[str]"

_LOCAL_SCHEMES = ("file://", "local://")
_URL = re.compile(r"\w[\w+.-]+://")  # fsspec treats a single letter as a drive
_CHAINED = re.compile(r"([a-z]+)::")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", re.IGNORECASE)
_UNITS = {None: 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_PATH_OR_URL = "a path, or an fsspec URL such as s3://bucket/folder"
_LOCAL_PATH = "a path on a local or network file system"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def absolute(path: Any, field: str, expected: str = _PATH_OR_URL) -> str:
    """Make a local path absolute now, because a worker may run in another directory. URLs stay as they are.

    Raises:
        ConfigurationError: It is not a path, or not a valid one on this machine.
    """
    text = _checked(path, field, expected)
    scheme = next((each for each in _LOCAL_SCHEMES if text.startswith(each)), "")
    text = text.removeprefix(scheme)
    if not text:
        raise _not_a_path("not a path", field, path, expected, f"pass the path after {scheme}")
    if is_url(text):
        return text
    expanded = os.path.expanduser(text)  # noqa: PTH111 - pathlib also expands `./~name`, which is a file
    if expanded.startswith("~"):
        hint = "pass the whole path, or ./~name if the name begins with a tilde"
        raise _not_a_path("the home directory of this user is unknown", field, path, expected, hint)
    try:
        return str(Path(expanded).absolute())
    except FileNotFoundError as exc:
        hint = "change to a directory that exists, or pass an absolute path"
        raise _not_a_path("the working directory has been removed", field, path, expected, hint) from exc


def local_path(path: Any, field: str) -> Path:
    """Return the absolute path of a local file or directory, which may not exist.

    Args:
        path: The path; a ``~`` at its beginning is the user's home directory.
        field: What the path is for, for the error.

    Raises:
        ConfigurationError: It is not a path, not a valid one on this machine, or a URL.
    """
    text = absolute(path, field, _LOCAL_PATH)
    if is_url(text):
        raise _not_a_path("a URL is not a local path", field, path, _LOCAL_PATH, "pass a local path, and copy the file")
    return Path(text)


def is_url(path: str) -> bool:
    """Whether a path is an fsspec URL: it begins with ``proto://``, or with ``proto::`` if that is a known protocol.

    Elsewhere, ``://`` and ``::`` are part of a local name, as in ``run::1.jsonl``.
    """
    chained = _CHAINED.match(path)
    if chained is None:
        return _URL.match(path) is not None
    from fsspec.registry import known_implementations, registry  # noqa: PLC0415 - see `filesystem`

    return "://" in path or chained[1] in {*known_implementations, *registry}


def _checked(path: Any, field: str, expected: str) -> str:
    """Return a path as text that the operating system accepts."""
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str) or not text:
        raise _not_a_path("not a path", field, path, expected, "pass a str or a pathlib.Path")
    try:
        encoded = os.fsencode(text)
    except UnicodeEncodeError as exc:
        hint = "decode names that are not Unicode with os.fsdecode"
        raise _not_a_path(f"the path cannot be encoded: {exc.reason}", field, path, expected, hint) from exc
    if b"\0" in encoded:
        raise _not_a_path("a path cannot contain a NUL character", field, path, expected, "remove the character")
    return text


def _not_a_path(problem: str, field: str, given: Any, expected: str, hint: str) -> ConfigurationError:
    return ConfigurationError(problem, field=field, given=given, expected=expected, hint=hint)


def filesystem(path: str, storage_options: Mapping[str, Any]) -> tuple[Any, str]:
    """Return the filesystem of a path, and the path in the form that the filesystem uses.

    Raises:
        ConfigurationError: The path is invalid, or no filesystem is known or installed for the URL.
    """
    from fsspec.core import url_to_fs  # noqa: PLC0415 - 30 ms that a pipeline without files need not pay

    text = absolute(path, "path")
    try:
        if not is_url(text):  # fsspec would split a local name at `::`
            return url_to_fs("/", **storage_options)[0], text
        fs, inner = url_to_fs(text, **storage_options)
    except (ImportError, ValueError) as exc:
        raise ConfigurationError(
            f"there is no filesystem for this URL: {exc}",
            field=path,
            expected="a local path, or a URL whose scheme fsspec knows",
            hint="correct the scheme, or install its package: s3fs for s3://, gcsfs for gs://, adlfs for az://",
        ) from exc
    return fs, inner


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Convert an error of the operating system while reading to a `DataError` that names the file."""
    try:
        yield
    except FileNotFoundError as exc:
        raise DataError(
            "the file does not exist",
            field=path,
            expected="a file that is not moved or deleted between listing and reading",
            hint="find out what moves or deletes files there while the pipeline runs, and run it again",
        ) from exc
    except OSError as exc:
        raise DataError(
            f"the file cannot be read: {_describe(exc)}",
            field=path,
            expected="an intact file that this user may read",
            hint="check its permissions, or create it again",
        ) from exc


@contextmanager
def writing(path: str) -> Iterator[None]:
    """Convert an error of the operating system while writing to a `DataError` that names the file."""
    try:
        yield
    except OSError as exc:
        no_room = exc.errno in _NO_ROOM
        raise DataError(
            f"the file cannot be written: {_describe(exc)}",
            field=path,
            expected="a directory that this user may write to, with space for the file",
            hint="free up space there, or write elsewhere; files that were already written are complete"
            if no_room
            else "check the permissions of the directory, or write elsewhere",
        ) from exc


def _describe(exc: OSError) -> str:
    if exc.errno is None:
        return str(exc) or type(exc).__name__
    return f"{exc.strerror} (errno {exc.errno}, {errno.errorcode.get(exc.errno, 'unknown')})"


def check_count(field: str, value: Any) -> int | None:
    """Return the value if it is a count of 1 or more, or None.

    Raises:
        ConfigurationError: It is something else.
    """
    if value is None or is_whole(value, 1):
        return value
    raise ConfigurationError(
        "invalid count",
        field=field,
        given=value,
        expected="None, or a whole number, 1 or more",
    )


def check_skip(field: str, value: Any) -> bool:
    """Return whether to skip what is bad: ``"skip"`` rather than ``"raise"``.

    Raises:
        ConfigurationError: The value is neither of them.
    """
    if value in ("raise", "skip"):
        return bool(value == "skip")
    raise ConfigurationError(f"invalid value for {field}", field=field, given=value, expected="'raise' or 'skip'")


def parse_size(field: str, value: Any) -> int | None:
    """Return a size in bytes, from a number or from text such as ``"64MiB"``; None for None.

    Raises:
        ConfigurationError: It is something else.
    """
    if isinstance(value, str):
        match = _SIZE.fullmatch(value.strip())
        if match:
            number, unit = match.groups()
            return check_count(field, int(float(number) * _UNITS[unit and unit.lower()]))
    elif value is None or is_whole(value, 1):
        return value
    raise ConfigurationError(
        "invalid size",
        field=field,
        given=value,
        expected="a number of bytes, or text such as '64MiB' or '1.5 GB'",
    )


def check_fields(value: Any) -> list[str] | None:
    """Return the value if it is a list of column names, or None for all columns.

    Raises:
        ConfigurationError: It is something else.
    """
    if value is None:
        return None
    if isinstance(value, list | tuple) and value and all(isinstance(name, str) for name in value):
        return list(value)
    raise ConfigurationError(
        "invalid column names",
        field="fields",
        given=value,
        expected="None for all columns, or a list of at least one name",
        hint=f"pass [{value!r}]" if isinstance(value, str) else None,
    )
