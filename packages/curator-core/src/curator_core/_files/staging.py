# SPDX-License-Identifier: Apache-2.0
"""Staged files: files with several tasks that the driver publishes.

If a worker or the driver dies, it leaves files whose tasks are processed again, grouped differently. So a worker writes
to a directory of the run, ``_staging-…`` in the target directory, and the driver renames the files that it has counted.
Readers of data sets skip directories whose name begins with an underscore, and a staged file has no extension that a
pattern could match.
"""

from __future__ import annotations

import re
from contextlib import suppress
from glob import escape
from typing import TYPE_CHECKING, Any, BinaryIO

from curator_core._files.atomic import atomic_file, is_local, rename_file
from curator_core._files.paths import filesystem, reading, writing
from curator_core.errors import ConfigurationError, DataError
from curator_core.tasks import digest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from contextlib import AbstractContextManager

    from curator_core._shard import Shard

__all__ = ["Staging"]

_STAGING = "_staging-"
_SHARD = re.compile(r"shard-(\d+)-of-(\d+)-")
_DIGEST_BYTES = 16


class Staging:
    """The files that one run writes to a directory.

    Args:
        path: The directory, or its URL.
        extension: Extension of the files.
        storage_options: Options of the fsspec filesystem.
        run_id: The id of the run.
        shard: The run's shard of the source, if the runs of other shards write to the same directory.

    Attributes:
        label: The end of the name of the run's own directory, which is unique.
    """

    def __init__(
        self, path: str, extension: str, storage_options: Mapping[str, Any], run_id: str, shard: Shard | None
    ) -> None:
        self._url = path.rstrip("/")
        self._extension = extension
        self._storage_options = storage_options
        self._prefix = f"{shard or 'part'}-"
        self.label = f"{self._prefix}{run_id}"

    # --- on workers ---------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Create the directories.

        Raises:
            DataError: They cannot be created.
        """
        with writing(self._url):
            fs, directory = self._place()
            fs.makedirs(f"{directory}/{_STAGING}{self.label}", exist_ok=True)

    def url_of(self, ids: Iterable[str]) -> str:
        """Return the URL under which a file of these tasks is published: its name is a hash of their ids, in order."""
        return f"{self._url}/{self._prefix}{digest(chr(0).join(ids), _DIGEST_BYTES)}{self._extension}"

    def create(self, url: str) -> AbstractContextManager[BinaryIO]:
        """Create a file in the staging directory."""
        # Atomic here too: a worker that is considered dead but still runs may write the same file.
        fs, directory = self._place()
        return atomic_file(fs, self._staged(directory, self.label, _name(url)))

    # --- in the driver ------------------------------------------------------------------------------------

    def check_alone(self, ours: Mapping[str, Collection[str]]) -> None:
        """Check that nothing else in the directory may contain the same tasks.

        Args:
            ours: The files that were counted, by the label of each earlier run with the same checkpoint.

        Raises:
            ConfigurationError: There are other files, or another run is writing there, or was killed while writing.
        """
        fs, directory = self._place()
        counted = {_name(url) for urls in ours.values() for url in urls}
        for name in sorted(self._names(fs, directory)):
            label = name.removeprefix(_STAGING)
            if self._is_of_another_shard(label):
                continue
            if name.endswith(self._extension) and name not in counted:
                raise ConfigurationError(
                    "the directory has files of another run, which may contain the same tasks",
                    field="target_size",
                    given=f"{self._url}/{name}",
                    expected=f"no {self._extension} files except those of runs with the same checkpoint",
                    hint="write to a new directory, or remove the files; only runs with a checkpoint can be resumed",
                )
            if label != name and label not in ours:
                raise ConfigurationError(
                    "another run is writing to the directory, or was killed while writing",
                    field="target_size",
                    given=f"{self._url}/{name}",
                    expected="one run at a time, or one for each shard of a source",
                    hint="make sure that the run has ended, then remove this directory",
                )

    def recover(self, ours: Mapping[str, Collection[str]]) -> None:
        """Publish the counted files of earlier runs with the same checkpoint that were killed, and remove the rest.

        Args:
            ours: See `check_alone`.

        Raises:
            DataError: A file cannot be renamed or removed.
        """
        fs, directory = self._place()
        for label in {name.removeprefix(_STAGING) for name in self._names(fs, directory)} & ours.keys():
            staged = self._names(fs, f"{directory}/{_STAGING}{label}")
            self._rename(label, [url for url in ours[label] if self._unnamed(url) in staged])
            self._remove(label)

    def publish(self, urls: Iterable[str]) -> None:
        """Give staged files their final names.

        Raises:
            DataError: One of them does not exist, or cannot be renamed.
        """
        self._rename(self.label, urls)

    def remove(self) -> None:
        """Remove staged files that were not published.

        Raises:
            DataError: They cannot be removed.
        """
        self._remove(self.label)

    # --- names --------------------------------------------------------------------------------------------

    def _rename(self, label: str, urls: Iterable[str]) -> None:
        fs, directory = self._place()
        for url in urls:
            with writing(url):
                try:
                    rename_file(fs, self._staged(directory, label, _name(url)), f"{directory}/{_name(url)}")
                except FileNotFoundError as exc:
                    raise DataError(
                        "the driver cannot find a file that a worker wrote",
                        field=url,
                        expected="a directory that the driver and all workers see",
                        hint="write to a shared file system, or omit target_size to let each node use its own",
                    ) from exc

    def _remove(self, label: str) -> None:
        fs, directory = self._place()
        staged = f"{directory}/{_STAGING}{label}"
        with writing(self._url), suppress(FileNotFoundError):
            # Filesystems that are not local treat the path as a glob.
            fs.rm(staged if is_local(fs) else escape(staged), recursive=True)

    def _place(self) -> tuple[Any, str]:
        fs, directory = filesystem(self._url, self._storage_options)
        return fs, directory.rstrip("/")

    def _names(self, fs: Any, directory: str) -> set[str]:
        """Return the names in a directory."""
        with reading(self._url):
            fs.invalidate_cache()
            try:
                return {_name(path.rstrip("/")) for path in fs.ls(directory, detail=False)}
            except FileNotFoundError:
                return set()

    def _unnamed(self, url: str) -> str:
        return _name(url).removesuffix(self._extension)

    def _staged(self, directory: str, label: str, name: str) -> str:
        return f"{directory}/{_STAGING}{label}/{self._unnamed(name)}"

    def _is_of_another_shard(self, name: str) -> bool:
        own, other = _SHARD.match(self._prefix), _SHARD.match(name)
        return own is not None and other is not None and own[2] == other[2] and own[1] != other[1]


def _name(path: str) -> str:
    return path.rpartition("/")[2]
