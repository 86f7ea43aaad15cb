# SPDX-License-Identifier: Apache-2.0
"""The schema that the writers of a directory have settled on, whichever processes they run in, now and in later runs.

It is kept in the directory, in numbered versions: ``_schema/000001`` is that of the first shard, and each promotion
makes the next one. A version is never changed. Who wants to promote creates the file that follows the last one it has
seen; only one of several can, and the others look again at what that one has settled. So versions are in one line, and
each has a place for the records of all before it.

Each is a Parquet file without records, so that any tool can read the schema. Readers of data sets pass over
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
        directory: The directory, as the filesystem writes it.
        url: The same, for messages.

    Attributes:
        schema: What was settled when it was last looked at; None before the first shard.
    """

    def __init__(self, fs: Any, directory: str, url: str) -> None:
        self._fs = fs
        self._directory = f"{directory.rstrip('/')}/{SCHEMA_DIRECTORY}"
        self._url = f"{url.rstrip('/')}/{SCHEMA_DIRECTORY}"
        self._version = 0
        self.schema: pa.Schema | None = None

    def look(self) -> pa.Schema | None:
        """See what is settled by now.

        Raises:
            DataError: It cannot be read.
        """
        while (content := self._read(self._version + 1)) is not None:
            self._take(content)
        return self.schema

    def promote(self, schema: pa.Schema) -> bool:
        """Settle on a schema that has a place for all that `schema` has a place for.

        Returns:
            False where others have settled on something else meanwhile: `schema` is that now.

        Raises:
            DataError: It cannot be written.
        """
        if self.schema is not None and schema.equals(self.schema):
            return True
        content = footer(schema)
        with writing(self._name(self._version + 1)):
            with suppress(FileExistsError):
                # Only this one: an output directory that somebody removes meanwhile must not come back empty.
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
                f"the schema of the shards in this directory cannot be read: {exc}",
                field=self._name(self._version + 1),
                expected="a Parquet file without records, as it was written",
                hint="remove this file and those with higher numbers: what is missing is settled anew",
            ) from exc
        self._version += 1
