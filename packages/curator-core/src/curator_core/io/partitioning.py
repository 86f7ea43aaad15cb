# SPDX-License-Identifier: Apache-2.0
"""The source that lists files and groups them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from curator_core._files.atomic import is_local
from curator_core._files.paths import PathLike, absolute, check_count, filesystem, parse_size, reading
from curator_core.errors import ConfigurationError, DataError
from curator_core.io.compression import SUFFIXES, compression_of
from curator_core.io.listing import Found, LeftOut, list_files
from curator_core.io.ranges import ranges_of
from curator_core.stages import ProcessingStage
from curator_core.tasks import EmptyTask, FileGroupTask

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["FilePartitioningStage"]

logger = logging.getLogger(__name__)


class FilePartitioningStage(ProcessingStage[EmptyTask, FileGroupTask]):
    """A source that lists files and emits them in groups, sorted by name.

    The order of files, the groups, and therefore the ids of the tasks are the same for the same files, in whatever
    order the filesystem lists them. Directories are searched recursively, and links are followed. Names that begin with
    a dot and directories whose name begins with an underscore are skipped, because other programs keep unfinished
    output there. One warning lists what was skipped (hidden names, other extensions, broken links, directories that
    match a pattern), and the metric ``files_left_out`` counts it.

    The names of all files are in memory at once; the tasks are created one by one.

    Args:
        file_paths: Files, directories, globs (``*``, ``**``, ``?``, ``[ab]``), and fsspec URLs of these, one or
            several. An existing file or directory whose name looks like a glob is used under that exact name. A file
            that is found more than once, under its own name or through links, is listed once.
        files_per_partition: Maximum number of files in a group; 1 if neither this nor ``blocksize`` is given.
        blocksize: Maximum size of a group in bytes, as stored: a number, or text such as ``"64MiB"``. A larger file
            forms its own group, or is split.
        file_extensions: Files to take from directories and globs, such as ``[".jsonl"]``; None for all. The extension
            of a compression is ignored: ``a.jsonl.gz`` is one of these files. A file that is named in full is always
            taken.
        storage_options: Options of the fsspec filesystem, such as ``{"anon": True}``.
        split: Maximum number of bytes of one file in a task. A larger file that is not compressed becomes several
            tasks, each with a ``byte_range``, for stages that respect it, such as the readers of this module. Limited
            to ``blocksize``, if that is given as well. None for tasks of whole files.

    Raises:
        ConfigurationError: An argument is invalid, or there is no filesystem for a URL.
        DataError: One of the paths has nothing to read. Raised while the pipeline runs.
    """

    def __init__(
        self,
        file_paths: PathLike | Sequence[PathLike],
        files_per_partition: int | None = None,
        blocksize: int | str | None = None,
        file_extensions: Sequence[str] | None = None,
        storage_options: Mapping[str, Any] | None = None,
        split: int | str | None = None,
    ) -> None:
        given: Any = file_paths
        is_one = isinstance(given, str | bytes | os.PathLike) or not isinstance(given, Iterable)
        paths = [given] if is_one else list(given)
        if not paths:
            raise ConfigurationError(
                "no paths were given", field="file_paths", given=file_paths, expected="at least one path"
            )
        self._paths = [absolute(path, f"file_paths[{number}]") for number, path in enumerate(paths)]
        self._max_files = check_count("files_per_partition", files_per_partition)
        self._max_bytes = parse_size("blocksize", blocksize)
        self._split = parse_size("split", split)
        if self._split is not None and self._max_bytes is not None:
            self._split = min(self._split, self._max_bytes)
        if self._max_files is None and self._max_bytes is None:
            self._max_files = 1
        self._extensions = _check_extensions(file_extensions)
        self._storage_options = dict(storage_options or {})

    def outputs(self) -> tuple[list[str], list[str]]:
        """Return the outputs: paths in ``data``."""
        return ["data"], []

    def process(self, task: EmptyTask) -> Iterator[FileGroupTask]:
        """List and group the files. Of ``task``, only the dataset name is used."""
        left_out = LeftOut()
        found: dict[str, Found] = {}
        for path in self._paths:
            for file in self._list(path, left_out):
                found[file.real] = min(file, found.get(file.real, file), key=lambda file: file.rank)
        left_out.discard(file.name for file in found.values())
        if left_out:
            self.metrics.add("files_left_out", len(left_out))
            logger.warning("skipped while listing files: %s", left_out)
        for group in self._group(sorted(found.values())):
            paths, ranges = [file.name for file in group], self._ranges(group[0])
            yield from (FileGroupTask(paths, task.dataset_name, byte_range) for byte_range in ranges)

    def _ranges(self, file: Found) -> Iterable[tuple[int, int] | None]:
        """Return the ranges that a file is split into; None means the whole file."""
        if self._split is None or not self._is_split(file):
            return [None]
        return ranges_of(file.size or 0, self._split)

    def _is_split(self, file: Found) -> bool:
        if self._split is None or file.size is None or file.size <= self._split:
            return False
        return file.is_divisible and compression_of(file.name) is None

    def _group(self, files: Iterable[Found]) -> Iterator[list[Found]]:
        group: list[Found] = []
        size = 0
        for file in files:
            # A file whose size the server does not report counts as a whole block.
            file_size = (self._max_bytes or 0) if file.size is None else file.size
            full = len(group) == self._max_files
            overfull = self._max_bytes is not None and size + file_size > self._max_bytes
            if group and (full or overfull or self._is_split(file) or self._is_split(group[-1])):
                yield group
                group, size = [], 0
            group.append(file)
            size += file_size
        if group:
            yield group

    def _list(self, path: str, left_out: LeftOut) -> list[Found]:
        with reading(path):
            fs, inner = filesystem(path, self._storage_options)
            fs.invalidate_cache()  # it may contain a listing of an earlier run in this process
            listed = list(list_files(fs, inner, left_out))
        wanted = [file for file in listed if file.name == inner or self._has_extension(file.name)]
        if not wanted:
            raise self._nothing_found(path, [file.name for file in listed], left_out)
        for file in set(listed).difference(wanted):
            left_out.add("with other extensions", file.name)
        divisible = not _is_archive(fs)
        return [
            file._replace(name=_url(fs, file.name, path), real=_url(fs, file.real, path), is_divisible=divisible)
            for file in wanted
        ]

    def _has_extension(self, name: str) -> bool:
        if self._extensions is None:
            return True
        name = name.lower()
        stem, _, last = name.rpartition(".")
        return name.endswith(self._extensions) or (f".{last}" in SUFFIXES and stem.endswith(self._extensions))

    def _nothing_found(self, path: str, listed: list[str], left_out: LeftOut) -> DataError:
        if listed:
            wanted = ", ".join(self._extensions or ())
            return DataError(
                f"none of the {len(listed)} files found has the right extension",
                field=path,
                given=min(listed),
                expected=f"names that end in {wanted}, or in one of these and a compression such as .gz",
                hint="correct the path, or pass file_extensions=[…]",
            )
        return DataError(
            "no files found",
            field=path,
            given=str(left_out) or path,
            expected="a file, a directory that contains files, or a glob that matches files",
            hint="correct the path; ** in a glob matches any number of directories",
        )


def _is_archive(fs: Any) -> bool:
    from fsspec.archive import AbstractArchiveFileSystem  # noqa: PLC0415 - fsspec is loaded: there is a filesystem

    return isinstance(fs, AbstractArchiveFileSystem)


def _url(fs: Any, name: str, given: str) -> str:
    """Return a path that can be opened without knowing the filesystem: absolute if local, otherwise a URL.

    Raises:
        DataError: The name cannot be part of a URL.
    """
    if is_local(fs):
        return name
    if "::" in name:
        raise DataError(
            "the name of this file cannot be part of a URL",
            field=given,
            given=name,
            expected="names without '::', which fsspec treats as the separator of two URLs",
            hint="rename the file, or exclude it from the paths",
        )
    _, chained, rest = given.partition("::")  # zip://*.jsonl::s3://bucket/archive.zip
    return f"{fs.unstrip_protocol(name)}{chained}{rest}"


def _check_extensions(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, str) and value and all(isinstance(e, str) and e.startswith(".") for e in value):
        return tuple(extension.lower() for extension in value)
    raise ConfigurationError(
        "invalid file extensions",
        field="file_extensions",
        given=value,
        expected="None, or a list of strings that begin with a dot",
        hint="for example, pass ['.jsonl', '.json']",
    )
