# SPDX-License-Identifier: Apache-2.0
"""What the writers have in common: where tasks go, and that a file is there as a whole or not at all."""

from __future__ import annotations

import re
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from curator_core._files.atomic import atomic_file
from curator_core._files.paths import PathLike, absolute, check_fields, filesystem, parse_size, writing
from curator_core._files.staging import Staging
from curator_core.errors import ConfigurationError, DataError, InputError
from curator_core.stages import ProcessingStage
from curator_core.tasks import DocumentBatch, FileGroupTask

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Self

    from curator_core._shard import Shard
    from curator_core.stages import WorkerMetadata

__all__ = ["Content", "FileWriter"]

_SAFE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_TASKS_AT_ONCE = 64  # to be put together in files: a default between small files and too much memory


class Content(NamedTuple):
    """The records of a task as they go into a file.

    Attributes:
        data: The records, in the writer's own form.
        records: How many they are.
        nbytes: Their size in that form.
        schema: What all records of a file have in common; None where that is nothing.
    """

    data: Any
    records: int
    nbytes: int
    schema: Any = None


class FileWriter(ProcessingStage[DocumentBatch, FileGroupTask]):
    """Writes each task's records to a file named after the task's id; or several tasks to a file of about a size.

    With a size the stage takes tasks in batches, and a file holds tasks of one batch: nothing is held back between
    calls. A file is named after the ids of its tasks, and is published when the driver has counted them; see `Staging`.

    Args:
        path: Directory or fsspec URL to write to; made where it is missing.
        extension: What file names end in.
        fields: Columns to write; None for all.
        storage_options: Options of the fsspec filesystem.
        target_size: Bytes a file, about; None for a file a task.
    """

    def __init__(
        self,
        path: PathLike,
        extension: str,
        fields: Sequence[str] | None,
        storage_options: Mapping[str, Any] | None,
        target_size: int | str | None,
    ) -> None:
        self._path = absolute(path, "path")
        self._extension = extension
        self._fields = check_fields(fields)
        self._storage_options = dict(storage_options or {})
        self._target_size = parse_size("target_size", target_size)
        self._staging: Staging | None = None  # of a run, where there is a target size
        self._bytes_given = self._bytes_made = 0
        if self._target_size is None:
            self.process_batch = None  # type: ignore[method-assign,assignment]  # tasks come one by one
        else:
            self.batch_size, self.full_batches = _TASKS_AT_ONCE, True

    def inputs(self) -> tuple[list[str], list[str]]:
        """Records, with the columns to write."""
        return ["data"], self._fields or []

    def outputs(self) -> tuple[list[str], list[str]]:
        """The path, in ``data``."""
        return ["data"], []

    @property
    def _is_committed(self) -> bool:
        return self._target_size is not None

    def staged(self, run_id: str, shard: Shard | None) -> tuple[Self, Staging]:
        """Return this stage for one run, and where its files wait for the driver.

        Args:
            run_id: The run.
            shard: The run's part of the source.
        """
        stage = self.with_()
        stage._staging = Staging(self._path, self._extension, self._storage_options, run_id, shard)
        return stage, stage._staging

    def setup(self, worker_metadata: WorkerMetadata) -> None:
        """Make the directory.

        Raises:
            ConfigurationError: There is a target size, and no run whose driver publishes the files.
            DataError: It cannot be made.
        """
        del worker_metadata
        if self._is_committed:
            self._staged_files().prepare()
            return
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
        content = self._content(task)
        if not content.records:
            return None
        fs, directory = filesystem(self._path, self._storage_options)
        target = f"{directory.rstrip('/')}/{name}"
        url = f"{self._path.rstrip('/')}/{name}"
        with writing(url), atomic_file(fs, target) as stream:
            self._fill(stream, [content])
        return FileGroupTask([url], task.dataset_name)

    def process_batch(self, tasks: list[DocumentBatch]) -> Sequence[FileGroupTask | None]:
        """Write the records of tasks, in order, to as many files as their size asks for.

        Returns:
            For the first task of a file its path, and for the others no path, so that each file is named once. None for
            a task without records.

        Raises:
            DataError: A file cannot be written, or the records of a task have no form in it.
        """
        outputs: list[FileGroupTask | None] = [None] * len(tasks)
        for group in self._files_of(tasks):
            url = self._staged_files().url_of(tasks[number].task_id for number in group)
            with writing(url), self._staged_files().create(url) as stream:
                self._bytes_made += self._fill(stream, [*group.values()])
            self._bytes_given += sum(content.nbytes for content in group.values())
            for number in group:
                outputs[number] = FileGroupTask([], tasks[number].dataset_name)
            outputs[min(group)] = FileGroupTask([url], tasks[min(group)].dataset_name)
        return outputs

    def _files_of(self, tasks: Sequence[DocumentBatch]) -> Iterator[dict[int, Content]]:
        """What goes into each file: contents by the number of their task."""
        limit, group = self._target_size or 0, dict[int, Content]()
        nbytes, schema = 0, None
        for number, task in enumerate(tasks):
            self._name(task)
            content = self._content(task)
            if not content.records:
                continue
            if group and ((nbytes + content.nbytes) * self._ratio > limit or content.schema != schema):
                yield group
                group, nbytes = {}, 0
            group[number] = content
            nbytes, schema = nbytes + content.nbytes, content.schema
        if group:
            yield group

    @property
    def _ratio(self) -> float:
        """How large what is written is, as this worker has seen it so far, beside what it is made of."""
        return self._bytes_made / self._bytes_given if self._bytes_given else 1.0

    def _fill(self, stream: BinaryIO, contents: Sequence[Content]) -> int:
        """Write a file, and count what is in it; gives its size."""
        self._write(contents, stream)
        size = stream.tell()
        self.metrics.add("bytes_written", size)
        self.metrics.add("records_written", sum(content.records for content in contents))
        return size

    @abstractmethod
    def _content(self, task: DocumentBatch) -> Content:
        """The records of a task as they go into a file; some may be left out, and counted."""

    @abstractmethod
    def _write(self, contents: Sequence[Content], stream: BinaryIO) -> None:
        """Write the records of some tasks, which have one schema; the stream stays open."""

    def _staged_files(self) -> Staging:
        if self._staging is None:
            raise ConfigurationError(
                "files of several tasks are published by the driver of a run, and there is none",
                stage=self.name,
                field="target_size",
                given=self._target_size,
                expected="a run of Pipeline.run() or of an executor, with this stage as its last",
                hint="run the writer in a pipeline, or leave out target_size",
            )
        return self._staging

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
