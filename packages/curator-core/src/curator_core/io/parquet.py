# SPDX-License-Identifier: Apache-2.0
"""Parquet, by pyarrow: the extra ``parquet``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, BinaryIO

from curator_core.batches import DocumentBatch, FileGroupTask
from curator_core.composite import CompositeStage
from curator_core.errors import ConfigurationError, DataError, nearest, unknown_name
from curator_core.io.files import PathLike, check_count, check_fields, filesystem, reading
from curator_core.io.partitioning import FilePartitioningStage
from curator_core.io.ranges import DEFAULT_SPLIT, check_size
from curator_core.io.writer import FileWriter
from curator_core.stage import ProcessingStage
from curator_core.task import EmptyTask

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import pyarrow as pa

    from curator_core.adapter import WorkerMetadata

__all__ = ["ParquetReader", "ParquetReaderStage", "ParquetWriter"]

_EXTENSIONS = (".parquet", ".pq")
_COMPRESSIONS = ("snappy", "gzip", "brotli", "lz4", "zstd", "none")


class ParquetReaderStage(ProcessingStage[FileGroupTask, DocumentBatch]):
    """Reads the Parquet files of a group: records as an Arrow table.

    Of a task with a byte range those row groups are read that begin in it.

    Files of one group may lack columns that others have (null there), but not differ in a column's type. A
    group without records gives no task, and counts as filtered. Names of directories are not read as columns.

    Args:
        fields: Which columns to read; None for all. The others are not even fetched.
        records_per_batch: How many records a task holds at the most; it may hold those of several files of a
            group. None makes one task of each group, which keeps the group's id.
        storage_options: Options of the fsspec filesystem.

    Raises:
        ConfigurationError: A setting makes no sense; or, in set-up, pyarrow is not installed.
        DataError: A file is gone, no Parquet, or without a chosen column. Raised while the pipeline runs.
    """

    def __init__(
        self,
        fields: Sequence[str] | None = None,
        records_per_batch: int | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._fields = check_fields(fields)
        self._records_per_batch = check_count("records_per_batch", records_per_batch)
        self._storage_options = dict(storage_options or {})

    def inputs(self) -> tuple[list[str], list[str]]:
        """Paths, in ``data``."""
        return ["data"], []

    def outputs(self) -> tuple[list[str], list[str]] | None:
        """The chosen columns; nothing is known beforehand where all are taken."""
        return None if self._fields is None else (["data"], self._fields)

    def setup(self, worker_metadata: WorkerMetadata) -> None:
        """Load pyarrow, before any data is touched."""
        del worker_metadata
        _pyarrow(self.name)

    def process(self, task: FileGroupTask) -> DocumentBatch | Iterator[DocumentBatch] | None:
        """Read one group of files."""
        tables = (table for path in task.data for table in self._read(path, task.byte_range))
        if self._records_per_batch is None:
            whole = _join(list(tables), task.data)
            return DocumentBatch(whole, task.dataset_name) if len(whole) else None
        parts = _resize(tables, self._records_per_batch, task.data)
        return (DocumentBatch(part, task.dataset_name) for part in parts)

    def _read(self, path: str, byte_range: tuple[int, int] | None) -> Iterator[pa.Table]:
        pa, pq = _pyarrow(self.name)
        with reading(path), self._open(path, byte_range) as stream:
            try:
                with pq.ParquetFile(stream) as file:
                    self._check_columns(file.schema_arrow.names, path)
                    for table in self._tables(file, _row_groups(file.metadata, byte_range)):
                        yield table if self._fields is None else table.select(self._fields)
            except pa.ArrowException as exc:
                raise DataError(
                    f"the file cannot be read as Parquet: {exc}",
                    field=path,
                    expected="a complete Parquet file",
                    hint="make the file again, or leave it out of the paths",
                ) from exc

    def _open(self, path: str, byte_range: tuple[int, int] | None) -> Any:
        fs, inner = filesystem(path, self._storage_options)
        if byte_range is not None:
            check_size(fs.info(inner).get("size"), byte_range[1], path)
        return fs.open(inner, "rb")

    def _tables(self, file: Any, groups: list[int]) -> Iterator[pa.Table]:
        if not groups:  # older releases of pyarrow fail at that
            yield file.schema_arrow.empty_table()
        elif self._records_per_batch is None:
            yield file.read_row_groups(groups, columns=self._fields)
        else:
            pa, _ = _pyarrow(self.name)
            size = self._records_per_batch
            for batch in file.iter_batches(batch_size=size, row_groups=groups, columns=self._fields):
                yield pa.Table.from_batches([batch])

    def _check_columns(self, there: list[str], path: str) -> None:
        for name in self._fields or ():
            if name not in there:  # pyarrow would leave it out in silence
                close = nearest(name, there)
                raise DataError(
                    f"the file has no column '{name}'",
                    field=path,
                    given=there,
                    expected=f"the columns {', '.join(self._fields or ())}",
                    hint=f"did you mean '{close}'?" if close else "correct fields=[…], or leave the file out",
                )


class ParquetReader(CompositeStage[EmptyTask, DocumentBatch]):
    """Lists Parquet files and reads them: `FilePartitioningStage`, then `ParquetReaderStage`.

    Use the two by themselves to give them settings (``with_``), or to list files your own way.

    Args:
        file_paths: Files, directories, globs and fsspec URLs.
        files_per_partition: Files a group at the most; 1 where neither this nor ``blocksize`` is given.
        blocksize: Bytes a group at the most, as stored: a number, or text such as ``"64MiB"``.
        fields: Which columns to read; None for all.
        records_per_batch: Records a task at the most; None makes one task of each group.
        file_extensions: Which files to take from directories and globs.
        storage_options: Options of the fsspec filesystem.
        split: Bytes a task at the most, as stored: a larger file becomes several tasks, each with the row groups that
            begin in its range; a row group is never divided. None reads each file in one task.

    Raises:
        ConfigurationError: A setting makes no sense.
        DataError: As `FilePartitioningStage` and `ParquetReaderStage` raise it while the pipeline runs.
    """

    def __init__(
        self,
        file_paths: PathLike | Sequence[PathLike],
        files_per_partition: int | None = None,
        blocksize: int | str | None = None,
        fields: Sequence[str] | None = None,
        records_per_batch: int | None = None,
        file_extensions: Sequence[str] | None = _EXTENSIONS,
        storage_options: Mapping[str, Any] | None = None,
        split: int | str | None = DEFAULT_SPLIT,
    ) -> None:
        self._partitioning = FilePartitioningStage(
            file_paths, files_per_partition, blocksize, file_extensions, storage_options, split
        )
        self._reader = ParquetReaderStage(fields, records_per_batch, storage_options)

    def decompose(self) -> list[ProcessingStage[Any, Any]]:
        """The two stages."""
        return [self._partitioning, self._reader]


class ParquetWriter(FileWriter):
    """Writes each task's records to a Parquet file, under a name that comes from the task's id.

    Writing the same task twice with the same pyarrow gives the same file, byte for byte. A file appears when
    it is complete. Pipelines whose tasks may have the same ids need a directory each.

    Args:
        path: Directory or fsspec URL to write to; made where it is missing.
        fields: Columns to write; None for all.
        compression: ``"snappy"``, ``"gzip"``, ``"brotli"``, ``"lz4"``, ``"zstd"`` or ``"none"``.
        storage_options: Options of the fsspec filesystem.

    Raises:
        ConfigurationError: A setting makes no sense; or, in set-up, pyarrow is not installed.
        DataError: The directory or a file cannot be written, or the records have no form in Arrow. Raised
            while the pipeline runs.
    """

    def __init__(
        self,
        path: PathLike,
        fields: Sequence[str] | None = None,
        compression: str = "snappy",
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        if compression not in _COMPRESSIONS:
            known = unknown_name("compression", str(compression), _COMPRESSIONS)
            raise ConfigurationError("there is no such compression", **{**known, "field": "compression"})
        super().__init__(path, ".parquet", fields, storage_options)
        self._compression = compression

    def setup(self, worker_metadata: WorkerMetadata) -> None:
        """Load pyarrow, and make the directory.

        Raises:
            ConfigurationError: pyarrow is not installed.
            DataError: The directory cannot be made.
        """
        _pyarrow(self.name)
        super().setup(worker_metadata)

    def _write(self, task: DocumentBatch, stream: BinaryIO) -> None:
        pa, pq = _pyarrow(self.name)
        try:
            table = task.to_arrow()
            if self._fields is not None:
                table = table.select(self._fields)
            if not table.num_columns:
                raise ValueError("they have no columns")
            pq.write_table(table, stream, compression=self._compression)
        except (pa.ArrowException, ValueError, OverflowError) as exc:
            raise DataError(
                f"the records cannot be written as Parquet: {getattr(exc, 'message', exc)}",
                field="data",
                given=task.columns,
                expected="columns of one type each: text, numbers, dates, bytes, lists or structs of those",
                hint="convert or drop the column before this stage",
            ) from exc


def _pyarrow(stage: str) -> tuple[Any, Any]:
    """The modules pyarrow and pyarrow.parquet.

    Raises:
        ConfigurationError: They are not installed.
    """
    try:
        import pyarrow as pa  # noqa: PLC0415 - an extra: this module imports without it
        import pyarrow.parquet as pq  # noqa: PLC0415 - likewise
    except ImportError as exc:
        raise ConfigurationError(
            f"Parquet needs pyarrow, which does not import here: {exc}",
            stage=stage,
            expected="the extra 'parquet'",
            hint="pip install 'curator-core[parquet]'",
        ) from exc
    return pa, pq


def _row_groups(metadata: Any, byte_range: tuple[int, int] | None) -> list[int]:
    """Which row groups to read: all, or those that begin in a range."""
    groups = range(metadata.num_row_groups)
    if byte_range is None:
        return list(groups)
    start, stop = byte_range
    return [group for group in groups if start <= _begins(metadata.row_group(group)) < stop]


def _begins(group: Any) -> int:
    """Where a row group begins: at the first page of its first column, which may be that of a dictionary."""
    if not group.num_columns:
        return 0
    column = group.column(0)
    return int(min(column.data_page_offset, column.dictionary_page_offset or column.data_page_offset))


def _join(tables: Sequence[pa.Table], paths: Sequence[str]) -> pa.Table:
    import pyarrow as pa  # noqa: PLC0415 - it is loaded: there are tables

    if len(tables) == 1:
        return tables[0]
    if not tables:
        return pa.table({})
    try:
        return pa.concat_tables(tables, promote_options="default")
    except pa.ArrowException as exc:
        raise DataError(
            f"the files of one group do not make one table: {exc}",
            field="data",
            given=list(paths),
            expected="the same type for a column in all files of a group",
            hint="convert the odd ones, or read each by itself with files_per_partition=1",
        ) from exc


def _resize(tables: Iterable[pa.Table], size: int, paths: Sequence[str]) -> Iterator[pa.Table]:
    """The same records in tables of ``size``, the last one smaller."""
    waiting: list[pa.Table] = []
    rows = 0
    for table in tables:
        waiting.append(table)
        rows += len(table)
        while rows >= size:
            whole = _join(waiting, paths)
            yield _compact(whole.slice(0, size))
            rows -= size
            waiting = [whole.slice(size)] if rows else []
    if rows:
        yield _compact(_join(waiting, paths))


def _compact(table: pa.Table) -> pa.Table:
    """The table without memory of others: a slice keeps, and pickles, all that it was cut from."""
    import pyarrow as pa  # noqa: PLC0415 - it is loaded: there are tables

    if table.get_total_buffer_size() <= 2 * table.nbytes:
        return table
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return pa.ipc.open_stream(sink.getvalue()).read_all()
