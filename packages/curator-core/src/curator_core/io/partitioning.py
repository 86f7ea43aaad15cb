# SPDX-License-Identifier: Apache-2.0
"""Which files there are, in groups."""

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
    """A source: lists files and hands them on in groups, sorted by name.

    The order, the groups and so the ids of the tasks are the same for the same files, in whatever order the
    filesystem lists them. Directories are searched with all that is below them, through links as well. In what is
    listed, names that begin with a dot are passed over, and so are directories whose name begins with an underscore:
    unfinished output of other programs is kept in such places. What a listing leaves out (hidden names, other
    extensions, links that lead nowhere, directories that match a pattern) is logged in one warning, and counted in the
    metric ``files_left_out``.

    The names of all files are in memory at once; the tasks are made one by one.

    Args:
        file_paths: Files, directories, globs (``*``, ``**``, ``?``, ``[ab]``) and fsspec URLs of such, one or
            several. A file or directory whose name looks like a glob is taken by its name. A file that is found twice,
            under its own name or by links, is taken once.
        files_per_partition: How many files a group holds at the most. 1 where neither this nor ``blocksize``
            is given.
        blocksize: How many bytes a group holds at the most, as stored: a number, or text such as ``"64MiB"``.
            A file that is larger makes a group of its own, or is split.
        file_extensions: Which files to take from directories and globs, such as ``[".jsonl"]``; None for
            all. A compressed file goes by the extension before: ``a.jsonl.gz`` is one of those. A file that
            is named in full is taken whatever its name.
        storage_options: Options of the fsspec filesystem, such as ``{"anon": True}``.
        split: How many bytes of one file a task holds at the most. A larger file that is not compressed becomes several
            tasks with a ``byte_range`` each, for stages that go by it, as the readers of this module do. Not more
            than ``blocksize``, where that is given as well. None for tasks of whole files.

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
        split: int | str | None = None,
    ) -> None:
        given: Any = file_paths
        is_one = isinstance(given, str | bytes | os.PathLike) or not isinstance(given, Iterable)
        paths = [given] if is_one else list(given)
        if not paths:
            raise ConfigurationError(
                "no paths are given", field="file_paths", given=file_paths, expected="at least one path"
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
        """The paths, in ``data``."""
        return ["data"], []

    def process(self, task: EmptyTask) -> Iterator[FileGroupTask]:
        """List the files and group them; ``task`` is not looked at, but for its dataset name."""
        left_out = LeftOut()
        found: dict[str, Found] = {}
        for path in self._paths:
            for file in self._list(path, left_out):
                found[file.real] = min(file, found.get(file.real, file), key=lambda file: file.rank)
        left_out.discard(file.name for file in found.values())
        if left_out:
            self.metrics.add("files_left_out", len(left_out))
            logger.warning("left out of the listing: %s", left_out)
        for group in self._group(sorted(found.values())):
            paths, ranges = [file.name for file in group], self._ranges(group[0])
            yield from (FileGroupTask(paths, task.dataset_name, byte_range) for byte_range in ranges)

    def _ranges(self, file: Found) -> Iterable[tuple[int, int] | None]:
        """The ranges that a file is split into; None stands for all of it."""
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
            # What a server does not tell the size of is taken for a whole block.
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
            fs.invalidate_cache()  # an earlier run in this process may have left a listing behind
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
                expected=f"names that end in {wanted}, or in one of those and a compression such as .gz",
                hint="correct the path, or give file_extensions=[…]",
            )
        return DataError(
            "there are no files here",
            field=path,
            given=str(left_out) or path,
            expected="a file, a directory with files in it, or a glob that matches files",
            hint="correct the path; ** in a glob stands for any number of directories",
        )


def _is_archive(fs: Any) -> bool:
    from fsspec.archive import AbstractArchiveFileSystem  # noqa: PLC0415 - fsspec is loaded: there is a filesystem

    return isinstance(fs, AbstractArchiveFileSystem)


def _url(fs: Any, name: str, given: str) -> str:
    """A path that can be opened without knowing the filesystem: absolute where local, else a URL.

    Raises:
        DataError: There is no such URL.
    """
    if is_local(fs):
        return name
    if "::" in name:
        raise DataError(
            "the name of this file cannot be part of a URL",
            field=given,
            given=name,
            expected="names without '::', which fsspec takes for the seam between two URLs",
            hint="rename the file, or leave it out of the paths",
        )
    _, chained, rest = given.partition("::")  # zip://*.jsonl::s3://bucket/archive.zip
    return f"{fs.unstrip_protocol(name)}{chained}{rest}"


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
