# SPDX-License-Identifier: Apache-2.0
"""The base class of writers: it names the files of tasks, and writes each file completely or not at all."""

from __future__ import annotations

import logging
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, NamedTuple

from curator_core._files.atomic import atomic_file
from curator_core._files.names import is_file_name
from curator_core._files.paths import PathLike, absolute, check_fields, check_skip, filesystem, parse_size, writing
from curator_core._files.staging import Staging
from curator_core.errors import ConfigurationError, DataError, InputError
from curator_core.stages import ProcessingStage
from curator_core.tasks import DocumentBatch, FileGroupTask

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import Self

    from curator_core._bad_record import BadRecord
    from curator_core._shard import Shard
    from curator_core.stages import WorkerMetadata

__all__ = ["Content", "FileWriter", "chosen"]

logger = logging.getLogger(__name__)

_TASKS_AT_ONCE = 64  # tasks that may share files: a compromise between small files and too much memory


class Content(NamedTuple):
    """The records of a task in the form in which they are written to a file.

    Attributes:
        data: The records, in the writer's format.
        records: Number of records.
        nbytes: Their size in that format.
        schema: The schema, which all records of a file must share; None if the format has no schemas.
    """

    data: Any
    records: int
    nbytes: int
    schema: Any = None


class FileWriter(ProcessingStage[DocumentBatch, FileGroupTask]):
    """Writes each task's records to a file named after the task's id, or several tasks to one file of a target size.

    With a target size, the stage takes tasks in batches, and a file contains tasks of one batch: nothing is kept
    between calls. A file is named after the ids of its tasks, and is published when the driver has counted them; see
    `Staging`.

    Args:
        path: Directory or fsspec URL to write to; created if missing.
        extension: Extension of the files.
        fields: Columns to write; None for all.
        storage_options: Options of the fsspec filesystem.
        target_size: Approximate size of a file in bytes; None for one file per task.
        on_bad_record: ``"raise"``, or ``"skip"`` to skip and count records that cannot be written.
    """

    _format: ClassVar[str]
    """Name of the format, for errors."""

    def __init__(
        self,
        path: PathLike,
        extension: str,
        fields: Sequence[str] | None,
        storage_options: Mapping[str, Any] | None,
        target_size: int | str | None,
        on_bad_record: str,
    ) -> None:
        self._path = absolute(path, "path")
        self._extension = extension
        self._fields = check_fields(fields)
        self._storage_options = dict(storage_options or {})
        self._target_size = parse_size("target_size", target_size)
        self._skip = check_skip("on_bad_record", on_bad_record)
        self._staging: Staging | None = None  # set for a run with a target size
        self._bytes_given = self._bytes_made = 0
        if self._target_size is None:
            self.process_batch = None  # type: ignore[method-assign,assignment]  # tasks are passed one by one
        else:
            self.batch_size, self.full_batches = _TASKS_AT_ONCE, True

    def inputs(self) -> tuple[list[str], list[str]]:
        """Return the inputs: records in ``data``, with the columns to write."""
        return ["data"], self._fields or []

    def outputs(self) -> tuple[list[str], list[str]]:
        """Return the outputs: the path in ``data``."""
        return ["data"], []

    @property
    def _is_committed(self) -> bool:
        return self._target_size is not None

    def staged(self, run_id: str, shard: Shard | None) -> tuple[Self, Staging]:
        """Return a copy of this stage for one run, and the staged files that the driver publishes.

        Args:
            run_id: The id of the run.
            shard: The run's shard of the source.
        """
        stage = self.with_()
        stage._staging = Staging(self._path, self._extension, self._storage_options, run_id, shard)
        return stage, stage._staging

    def setup(self, worker_metadata: WorkerMetadata) -> None:
        """Create the directory.

        Raises:
            ConfigurationError: There is a target size, but no run whose driver publishes the files.
            DataError: The directory cannot be created.
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
            The path of the file. None for a task without records, which writes no file and counts as filtered.

        Raises:
            DataError: The file cannot be written, or its format cannot represent the records.
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
        """Write the records of tasks, in order, to as many files as their size requires.

        Returns:
            For the first task of a file, the file's path, and for the others no path, so that each file is named once.
            None for a task without records.

        Raises:
            DataError: A file cannot be written, or its format cannot represent the records of a task.
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
        """Yield the contents of each file, by the index of their task."""
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
        """The size of files relative to the size of their contents, in this worker so far."""
        return self._bytes_made / self._bytes_given if self._bytes_given else 1.0

    def _fill(self, stream: BinaryIO, contents: Sequence[Content]) -> int:
        """Write a file, count its records, and return its size."""
        self._write(contents, stream)
        size = stream.tell()
        self.metrics.add("bytes_written", size)
        self.metrics.add("records_written", sum(content.records for content in contents))
        return size

    @abstractmethod
    def _content(self, task: DocumentBatch) -> Content:
        """Return the records of a task as they are written; some may be skipped and counted."""

    @abstractmethod
    def _write(self, contents: Sequence[Content], stream: BinaryIO) -> None:
        """Write the records of tasks that share a schema; the stream stays open."""

    def _bad(self, found: Iterable[BadRecord]) -> dict[int, BadRecord]:
        """Return the bad records by number, or raise an error for the first one unless they are skipped."""
        bad: dict[int, BadRecord] = {}
        for record in found:
            if not self._skip:
                raise record.error(f"the records cannot be written as {self._format}", self._hint)
            bad.setdefault(record.number, record)
        return bad

    @property
    @abstractmethod
    def _hint(self) -> str:
        """What to do about a bad record."""

    def _count_skipped(self, skipped: Mapping[int, BadRecord], task: DocumentBatch) -> None:
        if not skipped:
            return
        first = min(skipped)
        self.metrics.add("skipped_records", len(skipped))
        logger.warning(
            "task %s: records skipped: %d; the first one, record %d, %s",
            task.task_id,
            len(skipped),
            first,
            skipped[first].why,
        )

    def _staged_files(self) -> Staging:
        if self._staging is None:
            raise ConfigurationError(
                "files of several tasks need a run whose driver publishes them, but there is no run",
                stage=self.name,
                field="target_size",
                given=self._target_size,
                expected="a run of Pipeline.run() or of an executor, with this stage as the last one",
                hint="run the writer in a pipeline, or omit target_size",
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
                hint="add a stage before this one that converts it to DocumentBatch(data=[{…}, …])",
            )
        if is_file_name(task.task_id):
            return f"{task.task_id}{self._extension}"
        raise DataError(
            "the task's id cannot be a file name",
            stage=self.name,
            field="task_id",
            given=task.task_id,
            expected="letters, digits, and the characters _ . -, with no dot at the start",
            hint="run the writer in a pipeline, which gives tasks their ids",
        )


def chosen(record: Any, fields: Sequence[str] | None) -> Any:
    """Return the given fields of a record; all for None, or if it is not a dict."""
    if fields is None or not isinstance(record, dict):
        return record
    return {name: record[name] for name in fields if name in record}
