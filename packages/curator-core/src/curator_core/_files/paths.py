# SPDX-License-Identifier: Apache-2.0
"""Paths, streams and their errors: what readers and writers share. One way for local and remote files."""

from __future__ import annotations

import errno
import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from curator_core.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "PathLike",
    "absolute",
    "check_count",
    "check_fields",
    "filesystem",
    "is_url",
    "parse_size",
    "reading",
    "writing",
]

PathLike: TypeAlias = "str | os.PathLike[str]"

_LOCAL_SCHEMES = ("file://", "local://")
_URL = re.compile(r"\w[\w+.-]+://")  # one letter is a drive for fsspec
_CHAINED = re.compile(r"([a-z]+)::")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", re.IGNORECASE)
_UNITS = {None: 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def absolute(path: Any, field: str) -> str:
    """A local path made absolute here and now, since a worker may run in another directory. URLs stay.

    Raises:
        ConfigurationError: It is not a path, or cannot be one on this machine.
    """
    text = _checked(path, field)
    for scheme in _LOCAL_SCHEMES:
        text = text.removeprefix(scheme)
    if is_url(text):
        return text
    expanded = os.path.expanduser(text)  # noqa: PTH111 - pathlib expands `./~name` as well, which is a file
    if expanded.startswith("~"):
        hint = "give the whole path, or ./~name where the name begins with a tilde"
        raise _not_a_path("no home directory of this user is known", field, path, hint)
    try:
        return str(Path(expanded).absolute())
    except FileNotFoundError as exc:
        hint = "change to a directory that exists, or give an absolute path"
        raise _not_a_path("the working directory has been removed", field, path, hint) from exc


def is_url(path: str) -> bool:
    """Whether a path is an fsspec URL: it begins with ``proto://``, or with ``proto::`` where that is a protocol.

    Elsewhere ``://`` and ``::`` are part of a local name, as in ``run::1.jsonl``.
    """
    chained = _CHAINED.match(path)
    if chained is None:
        return _URL.match(path) is not None
    from fsspec.registry import known_implementations, registry  # noqa: PLC0415 - as below

    return "://" in path or chained[1] in {*known_implementations, *registry}


def _checked(path: Any, field: str) -> str:
    """A path as text that the operating system takes."""
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str) or not text:
        raise _not_a_path("not a path", field, path, "give a str or a pathlib.Path")
    try:
        encoded = os.fsencode(text)
    except UnicodeEncodeError as exc:
        hint = "decode names that are not Unicode with os.fsdecode"
        raise _not_a_path(f"the path cannot be encoded: {exc.reason}", field, path, hint) from exc
    if b"\0" in encoded:
        raise _not_a_path("a path cannot have a NUL character", field, path, "remove the character")
    return text


def _not_a_path(problem: str, field: str, given: Any, hint: str) -> ConfigurationError:
    expected = "a path, or an fsspec URL such as s3://bucket/folder"
    return ConfigurationError(problem, field=field, given=given, expected=expected, hint=hint)


def filesystem(path: str, storage_options: Mapping[str, Any]) -> tuple[Any, str]:
    """The filesystem of a path, and the path as that filesystem writes it.

    Raises:
        ConfigurationError: It cannot be a path, or no filesystem is known or installed for the URL.
    """
    from fsspec.core import url_to_fs  # noqa: PLC0415 - 30 ms that a pipeline without files need not pay

    text = absolute(path, "path")
    try:
        if not is_url(text):  # fsspec would take `::` in a local name apart
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
    """Turn an error of the operating system while reading into a `DataError` that names the file."""
    try:
        yield
    except FileNotFoundError as exc:
        raise DataError(
            "the file is not there",
            field=path,
            expected="a file that stays where it is from listing to reading",
            hint="see what moves or deletes files there while the pipeline runs, and run it again",
        ) from exc
    except OSError as exc:
        raise DataError(
            f"the file cannot be read: {_describe(exc)}",
            field=path,
            expected="a file that is intact and that this user may read",
            hint="see to its permissions, or make it again",
        ) from exc


@contextmanager
def writing(path: str) -> Iterator[None]:
    """Turn an error of the operating system while writing into a `DataError` that names the file."""
    try:
        yield
    except OSError as exc:
        no_room = exc.errno in _NO_ROOM
        raise DataError(
            f"the file cannot be written: {_describe(exc)}",
            field=path,
            expected="a directory that this user may write to, with room for the file",
            hint="make room there, or write elsewhere; what was written before is complete"
            if no_room
            else "see to the permissions of the directory, or write elsewhere",
        ) from exc


def _describe(exc: OSError) -> str:
    if exc.errno is None:
        return str(exc) or type(exc).__name__
    return f"{exc.strerror} (errno {exc.errno}, {errno.errorcode.get(exc.errno, 'unknown')})"


def check_count(field: str, value: Any) -> int | None:
    """A count, 1 or more, or None.

    Raises:
        ConfigurationError: It is something else.
    """
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ConfigurationError(
        "this is no count",
        field=field,
        given=value,
        expected="None, or a whole number, 1 or more",
    )


def parse_size(field: str, value: Any) -> int | None:
    """Return bytes: of a number, or of text such as ``"64MiB"``; None for None.

    Raises:
        ConfigurationError: It is something else.
    """
    if isinstance(value, str):
        match = _SIZE.fullmatch(value.strip())
        if match:
            number, unit = match.groups()
            return check_count(field, int(float(number) * _UNITS[unit and unit.lower()]))
    elif value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise ConfigurationError(
        "this is no size",
        field=field,
        given=value,
        expected="a number of bytes, or text such as '64MiB' or '1.5 GB'",
    )


def check_fields(value: Any) -> list[str] | None:
    """Names of columns, or None for all of them.

    Raises:
        ConfigurationError: It is something else.
    """
    if value is None:
        return None
    if isinstance(value, list | tuple) and value and all(isinstance(name, str) for name in value):
        return list(value)
    raise ConfigurationError(
        "these are no names of columns",
        field="fields",
        given=value,
        expected="None for all columns, or a list of at least one name",
        hint=f"write [{value!r}]" if isinstance(value, str) else None,
    )
