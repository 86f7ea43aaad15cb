# SPDX-License-Identifier: Apache-2.0
"""The schema that all writers of a directory settle on, in all processes, and in this and later runs.

The directory stores it in numbered versions: ``_schema/000001`` is the schema of the first file, and each promotion
creates the next version. A version never changes. To promote, a writer creates the version after the last one it has
seen; only one of several writers succeeds, and the others read that version and build on it. So the versions form one
sequence, and each fits the records of all previous versions.

Each version is a Parquet file without records, so that any tool can read the schema. Readers of data sets skip
directories whose name begins with an underscore.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pyarrow as pa

from curator_core._files.atomic import create_file
from curator_core._files.paths import reading, writing
from curator_core.errors import DataError
from curator_core.io.listing import SCHEMA_DIRECTORY
from curator_core.io.schema import footer, from_footer

__all__ = ["SettledSchema"]


class SettledSchema:
    """The settled schema of a directory.

    Args:
        fs: The fsspec filesystem.
        directory: The directory, in the form that the filesystem uses.
        url: The URL of the directory, for messages.

    Attributes:
        schema: The settled schema when it was last read; None before the first file.
    """

    def __init__(self, fs: Any, directory: str, url: str) -> None:
        self._fs = fs
        self._directory = f"{directory.rstrip('/')}/{SCHEMA_DIRECTORY}"
        self._url = f"{url.rstrip('/')}/{SCHEMA_DIRECTORY}"
        self._version = 0
        self.schema: pa.Schema | None = None

    def look(self) -> pa.Schema | None:
        """Read new versions, and return the settled schema.

        Raises:
            DataError: It cannot be read.
        """
        while (content := self._read(self._version + 1)) is not None:
            self._take(content)
        return self.schema

    def promote(self, schema: pa.Schema) -> bool:
        """Settle on a new schema, which must fit all records that fit the attribute `schema`.

        Returns:
            False if other writers have settled on another schema in the meantime, which is the attribute `schema` now.

        Raises:
            DataError: It cannot be written.
        """
        if self.schema is not None and schema.equals(self.schema):
            return True
        content = footer(schema)
        with writing(self._name(self._version + 1)):
            with suppress(FileExistsError):
                # Not its parents: an output directory that is removed during the run must not reappear empty.
                self._fs.mkdir(self._directory, create_parents=False)
            created = create_file(self._fs, f"{self._directory}/{self._version + 1:06}", content)
        if created:
            self._take(content)
        else:
            self.look()
        return created

    def _name(self, version: int) -> str:
        return f"{self._url}/{version:06}"

    def _read(self, version: int) -> bytes | None:
        with reading(self._name(version)):
            try:
                content: bytes = self._fs.cat_file(f"{self._directory}/{version:06}")
            except (FileNotFoundError, NotADirectoryError):
                return None
        return content

    def _take(self, content: bytes) -> None:
        try:
            self.schema = from_footer(content)
        except (pa.ArrowException, OSError) as exc:
            raise DataError(
                f"the settled schema of this directory cannot be read: {exc}",
                field=self._name(self._version + 1),
                expected="a Parquet file without records, as it was written",
                hint="remove this file and those with higher numbers: the next run settles on a schema again",
            ) from exc
        self._version += 1
