# SPDX-License-Identifier: Apache-2.0
"""The base classes of readers: they open the files of a group, and form tasks of their records."""

from __future__ import annotations

import logging
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from curator_core._files.paths import check_count, check_fields, filesystem, reading
from curator_core.io.ranges import check_size
from curator_core.stages import CompositeStage, ProcessingStage
from curator_core.tasks import DocumentBatch, EmptyTask, FileGroupTask

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from curator_core.io.partitioning import FilePartitioningStage

__all__ = ["FileReader", "ListingReader"]

logger = logging.getLogger(__name__)


class FileReader(ProcessingStage[FileGroupTask, DocumentBatch]):
    """Reads the files of a group, or a range of one file.

    A format yields its files in pieces: records, or tables of them.

    Args:
        fields: Columns to keep; None for all.
        records_per_batch: Maximum number of records in a task; None creates one task per group.
        storage_options: Options of the fsspec filesystem.
        skip: Whether to skip and count bad records.
    """

    def __init__(
        self,
        fields: Sequence[str] | None,
        records_per_batch: int | None,
        storage_options: Mapping[str, Any] | None,
        *,
        skip: bool,
    ) -> None:
        self._fields = check_fields(fields)
        self._records_per_batch = check_count("records_per_batch", records_per_batch)
        self._storage_options = dict(storage_options or {})
        self._skip = skip

    def inputs(self) -> tuple[list[str], list[str]]:
        """Return the inputs: paths in ``data``."""
        return ["data"], []

    def outputs(self) -> tuple[list[str], list[str]] | None:
        """Return the selected columns; None if all are read, because these are not known in advance."""
        return None if self._selected is None else (["data"], self._selected)

    @property
    def _selected(self) -> list[str] | None:
        return self._fields

    def process(self, task: FileGroupTask) -> DocumentBatch | Iterator[DocumentBatch] | None:
        """Read one group of files."""
        pieces = (piece for path in task.data for piece in self._read(path, task.byte_range))
        if self._records_per_batch is None:
            whole = self._join(list(pieces), task.data)
            return DocumentBatch(whole, task.dataset_name) if len(whole) else None
        batches = self._split(pieces, self._records_per_batch, task.data)
        return (DocumentBatch(batch, task.dataset_name) for batch in batches)

    def _read(self, path: str, byte_range: tuple[int, int] | None) -> Iterator[Any]:
        with reading(path):
            fs, inner = filesystem(path, self._storage_options)
            if byte_range is not None:
                check_size(fs.info(inner).get("size"), byte_range[1], path)
            with fs.open(inner, "rb") as stream:
                yield from self._pieces(stream, inner, path, byte_range)

    @abstractmethod
    def _pieces(self, stream: Any, name: str, path: str, byte_range: tuple[int, int] | None) -> Iterator[Any]:
        """Yield the records of an open file.

        Args:
            stream: The file.
            name: Its name in its filesystem, for example in an archive.
            path: Its path or URL, for errors.
            byte_range: The range in which the records must begin; None for all records.
        """

    @abstractmethod
    def _join(self, pieces: list[Any], paths: Sequence[str]) -> Any:
        """Return all records of a group in the form that a task has."""

    @abstractmethod
    def _split(self, pieces: Iterable[Any], size: int, paths: Sequence[str]) -> Iterator[Any]:
        """Yield the records of a group in lots of ``size``; the last one may be smaller."""

    def _count_skipped(self, metric: str, count: int, path: str, description: str) -> None:
        self.metrics.add(metric, count)
        logger.warning("%s: %s", path, description)


class ListingReader(CompositeStage[EmptyTask, DocumentBatch]):
    """Lists files and reads them.

    Args:
        partitioning: Lists the files.
        reader: Reads them.
    """

    def __init__(self, partitioning: FilePartitioningStage, reader: FileReader) -> None:
        self._partitioning = partitioning
        self._reader = reader

    def decompose(self) -> list[ProcessingStage[Any, Any]]:
        """Return the two stages."""
        return [self._partitioning, self._reader]
