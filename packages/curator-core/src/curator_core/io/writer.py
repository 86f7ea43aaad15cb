# SPDX-License-Identifier: Apache-2.0
"""What the writers have in common: where a task goes, and that its file is there as a whole or not at all."""

from __future__ import annotations

import re
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, BinaryIO

from curator_core.batches import DocumentBatch, FileGroupTask
from curator_core.errors import DataError, InputError
from curator_core.io.atomic import atomic_file
from curator_core.io.files import PathLike, absolute, check_fields, filesystem, writing
from curator_core.stage import ProcessingStage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from curator_core.adapter import WorkerMetadata

__all__ = ["FileWriter"]

_SAFE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")


class FileWriter(ProcessingStage[DocumentBatch, FileGroupTask]):
    """Writes each task's records to a file named after the task's id.

    Args:
        path: Directory or fsspec URL to write to; made where it is missing.
        extension: What file names end in.
        fields: Columns to write; None for all.
        storage_options: Options of the fsspec filesystem.
    """

    def __init__(
        self,
        path: PathLike,
        extension: str,
        fields: Sequence[str] | None,
        storage_options: Mapping[str, Any] | None,
    ) -> None:
        self._path = absolute(path, "path")
        self._extension = extension
        self._fields = check_fields(fields)
        self._storage_options = dict(storage_options or {})

    def inputs(self) -> tuple[list[str], list[str]]:
        """Records, with the columns to write."""
        return ["data"], self._fields or []

    def outputs(self) -> tuple[list[str], list[str]]:
        """The path, in ``data``."""
        return ["data"], []

    def setup(self, worker_metadata: WorkerMetadata) -> None:
        """Make the directory.

        Raises:
            DataError: It cannot be made.
        """
        del worker_metadata
        with writing(self._path):
            fs, directory = filesystem(self._path, self._storage_options)
            fs.makedirs(directory, exist_ok=True)

    def process(self, task: DocumentBatch) -> FileGroupTask | None:
        """Write one task's records, replacing the file of an earlier attempt or run.

        Returns:
            The path of the file. None for a task without records: it leaves no file, and counts as filtered.

        Raises:
            DataError: The file cannot be written, or the records have no form in it.
        """
        name = self._name(task)
        if task.num_items:
            task = self._fit(task)
        if not task.num_items:
            return None
        fs, directory = filesystem(self._path, self._storage_options)
        target = f"{directory.rstrip('/')}/{name}"
        url = f"{self._path.rstrip('/')}/{name}"
        with writing(url), atomic_file(fs, target) as stream:
            self._write(task, stream)
            self.metrics.add("bytes_written", stream.tell())
        self.metrics.add("records_written", task.num_items)
        return FileGroupTask([url], task.dataset_name)

    def _fit(self, task: DocumentBatch) -> DocumentBatch:
        """The records in the form that `_write` takes; it may leave some out, and count them."""
        return task

    @abstractmethod
    def _write(self, task: DocumentBatch, stream: BinaryIO) -> None:
        """Write the records of a task; the stream stays open."""

    def _name(self, task: Any) -> str:
        if not isinstance(task, DocumentBatch):
            raise InputError(
                f"cannot write a {type(task).__name__}",
                stage=self.name,
                field="process",
                given=task,
                expected="a DocumentBatch",
                hint="put a stage before this one that makes DocumentBatch(data=[{…}, …]) of it",
            )
        if _SAFE_NAME.fullmatch(task.task_id):
            return f"{task.task_id}{self._extension}"
        raise DataError(
            "the task has no id that can name a file",
            stage=self.name,
            field="task_id",
            given=task.task_id,
            expected="letters, digits, and _ . - after the first",
            hint="run the writer in a pipeline: that gives tasks their ids",
        )
