# SPDX-License-Identifier: Apache-2.0
"""Which files there are, in groups."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from curator_core.batches import FileGroupTask
from curator_core.errors import ConfigurationError, DataError
from curator_core.io.files import PathLike, absolute, check_count, filesystem, reading
from curator_core.stage import ProcessingStage
from curator_core.task import EmptyTask

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

__all__ = ["FilePartitioningStage"]

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", re.IGNORECASE)
_UNITS = {None: 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_MAGIC = re.compile(r"[*?\[]")


class _File(NamedTuple):
    name: str
    size: int | None


class FilePartitioningStage(ProcessingStage[EmptyTask, FileGroupTask]):
    """A source: lists files and hands them on in groups, sorted by name.

    The order, the groups and so the ids of the tasks are the same for the same files, in whatever order the
    filesystem lists them. Directories are searched with all that is below them; links to directories are not
    followed. In what is listed, names that begin with a dot are passed over, and so are directories whose
    name begins with an underscore: unfinished output of other programs is kept in such places.

    The names of all files are in memory at once; the tasks are made one by one.

    Args:
        file_paths: Files, directories, globs (``*``, ``**``, ``?``, ``[ab]``) and fsspec URLs of such, one or
            several. A file that is found twice is taken once.
        files_per_partition: How many files a group holds at the most. 1 where neither this nor ``blocksize``
            is given.
        blocksize: How many bytes a group holds at the most, as stored: a number, or text such as ``"64MiB"``.
            A file that is larger makes a group of its own.
        file_extensions: Which files to take from directories and globs, such as ``[".jsonl"]``; None for
            all. A compressed file goes by the extension before: ``a.jsonl.gz`` is one of those. A file that
            is named in full is taken whatever its name.
        storage_options: Options of the fsspec filesystem, such as ``{"anon": True}``.

    Raises:
        ConfigurationError: A setting makes no sense, or there is no filesystem for a URL.
        DataError: At one of the paths there is nothing to read. Raised while the pipeline runs.
    """

    def __init__(
        self,
        file_paths: PathLike | Sequence[PathLike],
        files_per_partition: int | None = None,
        blocksize: int | str | None = None,
        file_extensions: Sequence[str] | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        paths = [file_paths] if isinstance(file_paths, str | os.PathLike) else list(file_paths)
        if not paths:
            raise ConfigurationError(
                "no paths are given", field="file_paths", given=file_paths, expected="at least one path"
            )
        self._paths = [absolute(path, f"file_paths[{number}]") for number, path in enumerate(paths)]
        self._max_files = check_count("files_per_partition", files_per_partition)
        self._max_bytes = _parse_size(blocksize)
        if self._max_files is None and self._max_bytes is None:
            self._max_files = 1
        self._extensions = _check_extensions(file_extensions)
        self._storage_options = dict(storage_options or {})

    def outputs(self) -> tuple[list[str], list[str]]:
        """The paths, in ``data``."""
        return ["data"], []

    def process(self, task: EmptyTask) -> Iterator[FileGroupTask]:
        """List the files and group them; ``task`` is not looked at, but for its dataset name."""
        found = {file.name: file for path in self._paths for file in self._list(path)}
        for group in self._group(found[name] for name in sorted(found)):
            yield FileGroupTask([file.name for file in group], task.dataset_name)

    def _group(self, files: Iterable[_File]) -> Iterator[list[_File]]:
        group: list[_File] = []
        size = 0
        for file in files:
            # What a server does not tell the size of is taken for a whole block.
            file_size = (self._max_bytes or 0) if file.size is None else file.size
            full = len(group) == self._max_files
            overfull = self._max_bytes is not None and size + file_size > self._max_bytes
            if group and (full or overfull):
                yield group
                group, size = [], 0
            group.append(file)
            size += file_size
        if group:
            yield group

    def _list(self, path: str) -> list[_File]:
        with reading(path):
            fs, inner = filesystem(path, self._storage_options)
            fs.invalidate_cache()  # an earlier run in this process may have left a listing behind
            if fs.isfile(inner):
                return [_File(_url(fs, inner, path), fs.info(inner).get("size"))]
            listed = _listed(fs, inner)
        wanted = [file for file in listed if self._has_extension(file.name)]
        if not wanted:
            raise self._nothing_found(path, [file.name for file in listed])
        return [_File(_url(fs, file.name, path), file.size) for file in wanted]

    def _has_extension(self, name: str) -> bool:
        if self._extensions is None:
            return True
        from fsspec.utils import compressions  # noqa: PLC0415 - it is loaded: there is a filesystem

        name = name.lower()
        stem, _, last = name.rpartition(".")
        return name.endswith(self._extensions) or (last in compressions and stem.endswith(self._extensions))

    def _nothing_found(self, path: str, listed: list[str]) -> DataError:
        if listed:
            wanted = ", ".join(self._extensions or ())
            return DataError(
                f"none of the {len(listed)} files found has the right extension",
                field=path,
                given=min(listed),
                expected=f"names that end in {wanted}, or in one of those and a compression such as .gz",
                hint="correct the path, or give file_extensions=[…]",
            )
        return DataError(
            "there are no files here",
            field=path,
            expected="a file, a directory with files in it, or a glob that matches files",
            hint="correct the path; ** in a glob stands for any number of directories",
        )


def _listed(fs: Any, path: str) -> list[_File]:
    """What is below a directory, or matches a glob, by the filesystem's own names."""
    from fsspec.implementations.local import LocalFileSystem  # noqa: PLC0415 - it is loaded: there is a filesystem

    if fs.isdir(path):
        if isinstance(fs, LocalFileSystem):
            return list(_walk(path))
        found, root = fs.find(path, detail=True), path
    elif pattern := _MAGIC.search(path):
        found, root = fs.glob(path, detail=True), path[: pattern.start()].rpartition("/")[0]
    else:
        with suppress(FileNotFoundError):
            fs.info(path)  # isfile and isdir say no where they may not look: this one says why
        return []
    infos = [info for name, info in found.items() if not _is_passed_over(name.removeprefix(root))]
    return [_File(info["name"], info.get("size")) for info in infos if not _is_directory(fs, info)]


def _walk(root: str) -> Iterator[_File]:
    """What is below a local directory. fsspec's own search leaves out what it may not list, in silence."""
    for directory, below, names in os.walk(root, onerror=_raise):
        below[:] = [name for name in below if not name.startswith((".", "_"))]
        for name in names:
            if not name.startswith("."):
                path = f"{directory.rstrip('/')}/{name}"
                yield _File(path, _size(path))


def _raise(exc: OSError) -> None:
    raise exc


def _size(path: str) -> int | None:
    try:
        return Path(path).stat().st_size
    except FileNotFoundError:  # a link to nothing, or gone by now: who reads it will say so
        return None


def _is_passed_over(name: str) -> bool:
    *directories, last = name.split("/")
    return last.startswith(".") or any(part.startswith((".", "_")) for part in directories)


def _is_directory(fs: Any, info: Mapping[str, Any]) -> bool:
    return info["type"] == "directory" or (info["type"] != "file" and bool(fs.isdir(info["name"])))


def _url(fs: Any, name: str, given: str) -> str:
    """A path that can be opened without knowing the filesystem: absolute where local, else a URL."""
    from fsspec.implementations.local import LocalFileSystem  # noqa: PLC0415 - it is loaded: there is a filesystem

    if isinstance(fs, LocalFileSystem):
        return name
    _, chained, rest = given.partition("::")  # zip://*.jsonl::s3://bucket/archive.zip
    return f"{fs.unstrip_protocol(name)}{chained}{rest}"


def _parse_size(value: Any) -> int | None:
    if isinstance(value, str):
        match = _SIZE.fullmatch(value.strip())
        if match:
            number, unit = match.groups()
            return check_count("blocksize", int(float(number) * _UNITS[unit and unit.lower()]))
    elif value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise ConfigurationError(
        "this is no size",
        field="blocksize",
        given=value,
        expected="a number of bytes, or text such as '64MiB' or '1.5 GB'",
    )


def _check_extensions(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, str) and value and all(isinstance(e, str) and e.startswith(".") for e in value):
        return tuple(extension.lower() for extension in value)
    raise ConfigurationError(
        "these are no file extensions",
        field="file_extensions",
        given=value,
        expected="None, or a list of texts that begin with a dot",
        hint="for example ['.jsonl', '.json']",
    )
