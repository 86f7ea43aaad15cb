# SPDX-License-Identifier: Apache-2.0
"""Parquet, with pyarrow: the extra ``parquet``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from curator_core._files.paths import PathLike, check_skip, filesystem
from curator_core.errors import ConfigurationError, DataError, nearest
from curator_core.io.compression import check_compression
from curator_core.io.partitioning import FilePartitioningStage
from curator_core.io.ranges import DEFAULT_SPLIT
from curator_core.io.reader import FileReader, ListingReader
from curator_core.io.writer import Content, FileWriter, chosen

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import pyarrow as pa

    from curator_core._bad_record import BadRecord
    from curator_core.io.settled import SettledSchema
    from curator_core.stages import WorkerMetadata
    from curator_core.tasks import DocumentBatch

__all__ = ["ParquetReader", "ParquetReaderStage", "ParquetWriter"]

_HINT = (
    "convert or drop the column before this stage, declare it in schema=…, or pass on_bad_record='skip' to skip and "
    "count such records"
)
_EXTENSIONS = (".parquet", ".pq")
_COMPRESSIONS = ("snappy", "gzip", "brotli", "lz4", "zstd", "none")


class ParquetReaderStage(FileReader):
    """Reads the Parquet files of a group, with records as an Arrow table.

    For a task with a byte range, the row groups that begin in the range are read.

    The files of a group may have different schemas. A column that is missing in one of them is null there, and types
    are promoted as by pyarrow's "permissive": integers and fractions, string and large_string, units of time. A group
    without records emits no task, and counts as filtered. Names of directories are not read as columns.

    Args:
        fields: Columns to read; None for all. The others are not even fetched.
        records_per_batch: Maximum number of records in a task, which may combine several files of a group. None creates
            one task per group, which keeps the group's id.
        storage_options: Options of the fsspec filesystem.
        schema: Columns and types of all tasks: a ``pyarrow.Schema``, or a dict from column names to types, each a
            pyarrow type or the name of a simple one. A column that is missing in a file is null, and a column that is
            missing in the schema is not read. None for the columns and types of the files.
        on_bad_record: ``"raise"``, or ``"skip"`` to skip a record that does not fit the schema. The metric
            ``skipped_records`` counts skipped records.

    Raises:
        ConfigurationError: An argument is invalid; or, in setup, pyarrow is not installed.
        DataError: A file is missing, is not Parquet, or lacks a selected column, or a record does not fit the schema.
            Raised while the pipeline runs.
    """

    def __init__(
        self,
        fields: Sequence[str] | None = None,
        records_per_batch: int | None = None,
        storage_options: Mapping[str, Any] | None = None,
        schema: pa.Schema | Mapping[str, Any] | None = None,
        on_bad_record: Literal["raise", "skip"] = "raise",
    ) -> None:
        super().__init__(fields, records_per_batch, storage_options, skip=check_skip("on_bad_record", on_bad_record))
        self._schema = _check_schema(schema, self._fields, self.name)

    @property
    def _selected(self) -> list[str] | None:
        return self._fields if self._schema is None else list(self._schema.names)

    def setup(self, worker_metadata: WorkerMetadata) -> None:
        """Import pyarrow, before any data is read."""
        del worker_metadata
        _pyarrow(self.name)

    def _pieces(self, stream: Any, name: str, path: str, byte_range: tuple[int, int] | None) -> Iterator[pa.Table]:
        del name
        pa, pq = _pyarrow(self.name)
        try:
            with pq.ParquetFile(stream) as file:
                columns = self._columns(file.schema_arrow.names, path)
                groups = _row_groups(file.metadata, byte_range)
                start = sum(file.metadata.row_group(group).num_rows for group in range(min(groups, default=0)))
                for table in self._tables(file, groups, columns):
                    yield self._formed(table, path, start)
                    start += len(table)
        except pa.ArrowException as exc:
            raise DataError(
                f"the file cannot be read as Parquet: {exc}",
                field=path,
                expected="a complete Parquet file",
                hint="create the file again, or exclude it from the paths",
            ) from exc

    def _tables(self, file: Any, groups: list[int], columns: list[str] | None) -> Iterator[pa.Table]:
        if not groups:  # older releases of pyarrow cannot read an empty list of row groups
            yield file.schema_arrow.empty_table()
        elif self._records_per_batch is None:
            yield file.read_row_groups(groups, columns=columns)
        else:
            pa, _ = _pyarrow(self.name)
            size = self._records_per_batch
            for batch in file.iter_batches(batch_size=size, row_groups=groups, columns=columns):
                yield pa.Table.from_batches([batch])

    def _formed(self, table: pa.Table, path: str, start: int) -> pa.Table:
        """Convert rows of a file, from row ``start`` on, to the schema or the selected columns."""
        if self._schema is None:
            return table if self._fields is None else table.select(self._fields)
        from curator_core.io.schema import conform, without  # noqa: PLC0415 - an extra: this module imports without it

        formed, wrong = conform(table, self._schema)
        bad = set()
        for record in wrong:
            if not self._skip:
                what, hint = f"{path} does not fit the schema", "convert the file, or pass another schema=…"
                raise record._replace(number=start + record.number).error(what, hint)
            bad.add(record.number)
        if not bad:
            return formed
        description = f"records skipped: {len(bad)}; the first one is record {start + min(bad)}"
        self._count_skipped("skipped_records", len(bad), path, description)
        return self._formed(without(table, bad), path, start)

    def _join(self, pieces: list[Any], paths: Sequence[str]) -> pa.Table:
        """Concatenate tables, and promote types that differ.

        Raises:
            DataError: Types cannot be promoted.
        """
        from curator_core.io.schema import conform, grow  # noqa: PLC0415 - an extra, see `_formed`

        pa, _ = _pyarrow(self.name)
        if len(pieces) == 1:
            return pieces[0]
        if not pieces:
            return pa.table({})
        if any(table.schema != pieces[0].schema for table in pieces):
            schema = grow([table.schema for table in pieces], paths)
            formed = [conform(table, schema) for table in pieces]
            for record in (record for _, wrong in formed for record in wrong):
                what = "the files of one group do not form one table"
                raise record.error(what, "read each file separately with files_per_partition=1")
            pieces = [table for table, _ in formed]
        return pa.concat_tables(pieces, promote_options="default")  # their metadata may differ

    def _split(self, pieces: Iterable[Any], size: int, paths: Sequence[str]) -> Iterator[pa.Table]:
        from curator_core._arrow import compact  # noqa: PLC0415 - an extra, see `_formed`

        waiting: list[pa.Table] = []
        rows = 0
        for table in pieces:
            waiting.append(table)
            rows += len(table)
            while rows >= size:
                whole = self._join(waiting, paths)
                yield compact(whole.slice(0, size))
                rows -= size
                waiting = [whole.slice(size)] if rows else []
        if rows:
            yield compact(self._join(waiting, paths))

    def _columns(self, there: list[str], path: str) -> list[str] | None:
        """Return the columns to fetch from a file; None for all."""
        from curator_core._arrow import check_names  # noqa: PLC0415 - an extra, see `_formed`

        check_names(there, f" of {path}")
        if self._schema is not None:
            return [name for name in self._schema.names if name in there]
        for name in self._fields or ():
            if name not in there:  # pyarrow would silently skip it
                close = nearest(name, there)
                raise DataError(
                    f"the file has no column '{name}'",
                    field=path,
                    given=there,
                    expected=f"the columns {', '.join(self._fields or ())}",
                    hint=f"did you mean '{close}'?" if close else "correct fields=[…], or exclude the file",
                )
        return self._fields


class ParquetReader(ListingReader):
    """Lists Parquet files and reads them: `FilePartitioningStage`, then `ParquetReaderStage`.

    Use the two stages directly to change their settings (``with_``), or to list files in another way.

    Args:
        file_paths: Files, directories, globs, and fsspec URLs.
        files_per_partition: Maximum number of files in a group; 1 if neither this nor ``blocksize`` is given.
        blocksize: Maximum size of a group in bytes, as stored: a number, or text such as ``"64MiB"``.
        fields: Columns to read; None for all.
        records_per_batch: Maximum number of records in a task; None creates one task per group.
        file_extensions: Files to take from directories and globs.
        storage_options: Options of the fsspec filesystem.
        split: Maximum number of bytes in a task, as stored: a larger file becomes several tasks, each with the row
            groups that begin in its range; a row group is never split. None reads each file in one task.
        schema: Columns and types of all tasks; None for those of the files.
        on_bad_record: ``"raise"`` or ``"skip"``, for a record that does not fit the schema.

    Raises:
        ConfigurationError: An argument is invalid.
        DataError: See `FilePartitioningStage` and `ParquetReaderStage`. Raised while the pipeline runs.
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
        schema: pa.Schema | Mapping[str, Any] | None = None,
        on_bad_record: Literal["raise", "skip"] = "raise",
    ) -> None:
        super().__init__(
            FilePartitioningStage(file_paths, files_per_partition, blocksize, file_extensions, storage_options, split),
            ParquetReaderStage(fields, records_per_batch, storage_options, schema, on_bad_record),
        )


class ParquetWriter(FileWriter):
    """Writes each task's records to a Parquet file named after the task's id, or several tasks to one file.

    The files of a directory form one data set. With a ``schema``, all of them have that schema. Without one, the run
    settles on a schema as it writes, and stores its versions in the directory below ``_schema``: a file has all columns
    known when it is written, and if a later task needs another type, the type is promoted as by pyarrow's "permissive".
    The last version in ``_schema`` fits all files.

    Writing the same task twice with the same schema and pyarrow creates the same file, byte for byte. A file appears
    when it is complete. Pipelines whose tasks may have the same ids need separate directories.

    Args:
        path: Directory or fsspec URL to write to; created if missing.
        fields: Columns to write; None for all.
        compression: ``"snappy"``, ``"gzip"``, ``"brotli"``, ``"lz4"``, ``"zstd"``, or ``"none"``.
        storage_options: Options of the fsspec filesystem.
        schema: Columns and types of all files: a ``pyarrow.Schema``, or a dict from column names to types, each a
            pyarrow type or the name of a simple one. A column that is missing in a task is null. None for the schema
            that the run settles on.
        on_bad_record: ``"raise"``, or ``"skip"`` to skip a record that does not fit the schema or that Arrow or Parquet
            cannot represent. The metric ``skipped_records`` counts skipped records.
        target_size: A number of bytes, or text such as ``"128MiB"``: the consecutive tasks of a batch go into files of
            about this size, as written, which a worker estimates from the files it wrote before. A larger task gets its
            own file. ``with_(batch_size=…)`` sets how many tasks a worker combines at once (default: 64). The writer
            must be the last stage. None for one file per task.

    Raises:
        ConfigurationError: An argument is invalid; or, in setup, pyarrow is not installed; or, when a run with a target
            size begins, the directory has files of another run.
        DataError: The directory or a file cannot be written, or Parquet cannot represent a record, or the record does
            not fit the schema. Raised while the pipeline runs.
    """

    _format = "Parquet"

    def __init__(
        self,
        path: PathLike,
        fields: Sequence[str] | None = None,
        compression: str = "snappy",
        storage_options: Mapping[str, Any] | None = None,
        schema: pa.Schema | Mapping[str, Any] | None = None,
        on_bad_record: Literal["raise", "skip"] = "raise",
        target_size: int | str | None = None,
    ) -> None:
        check_compression(compression, _COMPRESSIONS)
        super().__init__(path, ".parquet", fields, storage_options, target_size, on_bad_record)
        self._compression = compression
        self._schema = _check_schema(schema, self._fields, self.name)
        self._settled: SettledSchema | None = None

    def setup(self, worker_metadata: WorkerMetadata) -> None:
        """Import pyarrow, and create the directory.

        Raises:
            ConfigurationError: pyarrow is not installed.
            DataError: The directory cannot be created.
        """
        _pyarrow(self.name)
        super().setup(worker_metadata)

    def _content(self, task: DocumentBatch) -> Content:
        """Return the records as a table whose schema is compatible with the tables of all other tasks."""
        from curator_core.io.schema import conform, merge, without  # noqa: PLC0415 - an extra: this module imports without it

        if not task.num_items:
            return Content(None, 0, 0)
        settled = self._settled_schema()
        table, skipped = self._table(task, self._schema or settled.look())
        numbers = [number for number in range(task.num_items) if number not in skipped]  # the record of each row
        while True:
            schema = self._schema or merge(settled.schema, table.schema)
            fitted, wrong = conform(table, schema)
            if bad := self._bad(wrong):
                skipped.update({numbers[row]: record for row, record in bad.items()})
                table = without(table, bad)
                numbers = [number for row, number in enumerate(numbers) if row not in bad]
            elif not numbers or self._schema is not None or settled.promote(schema):
                break
        self._count_skipped(skipped, task)
        return Content(fitted, len(fitted), fitted.nbytes, fitted.schema)

    def _table(self, task: DocumentBatch, known: pa.Schema | None) -> tuple[pa.Table, dict[int, BadRecord]]:
        """Return the selected columns of the records that form a table, and the other records by number."""
        from curator_core._arrow import check_names, table_of  # noqa: PLC0415 - an extra, see `_content`
        from curator_core.io.schema import unwritable  # noqa: PLC0415 - an extra, see `_content`

        fields, bad = self._fields, {}
        if isinstance(task.data, list):
            records = task.data if fields is None else [chosen(record, fields) for record in task.data]
            types = {} if known is None else dict(zip(known.names, known.types, strict=True))
            table, found = table_of(records, types, unwritable)
            bad = self._bad(found[number] for number in sorted(found))
        else:
            table = task.data
            check_names(table.column_names)
        if fields is not None:
            table = table.select([name for name in fields if name in table.column_names])
        return table, bad

    @property
    def _hint(self) -> str:
        if self._schema is not None:
            return _HINT
        return f"{_HINT}; the existing files have settled on the types in {self._path.rstrip('/')}/_schema"

    def _settled_schema(self) -> SettledSchema:
        if self._settled is None:
            from curator_core.io.settled import SettledSchema  # noqa: PLC0415 - an extra, see `_content`

            self._settled = SettledSchema(*filesystem(self._path, self._storage_options), self._path)
        return self._settled

    def _write(self, contents: Sequence[Content], stream: BinaryIO) -> None:
        pa, pq = _pyarrow(self.name)
        table = contents[0].data
        if len(contents) > 1:  # their metadata may differ
            table = pa.concat_tables([content.data for content in contents], promote_options="default")
        try:
            pq.write_table(table, stream, compression=self._compression)
        except (pa.ArrowException, ValueError, OverflowError) as exc:
            raise DataError(
                f"the records cannot be written as {self._format}: {exc}",
                field="data",
                given=table.schema,
                expected="values that Parquet can represent",
                hint="convert or drop the column before this stage",
            ) from exc


def _check_schema(schema: Any, fields: list[str] | None, stage: str) -> pa.Schema | None:
    """Return the schema of the selected fields; None if no schema is given.

    Raises:
        ConfigurationError: It is not a schema, or lacks one of the fields; or pyarrow is not installed.
    """
    if schema is None:
        return None
    _pyarrow(stage)
    from curator_core.io.schema import as_schema  # noqa: PLC0415 - an extra: this module imports without it

    return as_schema(schema, fields)


def _pyarrow(stage: str) -> tuple[Any, Any]:
    """Return the modules pyarrow and pyarrow.parquet.

    Raises:
        ConfigurationError: They are not installed.
    """
    try:
        import pyarrow as pa  # noqa: PLC0415 - an extra: this module imports without it
        import pyarrow.parquet as pq  # noqa: PLC0415 - an extra: this module imports without it
    except ImportError as exc:
        raise ConfigurationError(
            f"Parquet needs pyarrow, which cannot be imported: {exc}",
            stage=stage,
            expected="the extra 'parquet'",
            hint="pip install 'curator-core[parquet]'",
        ) from exc
    return pa, pq


def _row_groups(metadata: Any, byte_range: tuple[int, int] | None) -> list[int]:
    """Return the row groups to read: all, or those that begin in a range."""
    groups = range(metadata.num_row_groups)
    if byte_range is None:
        return list(groups)
    start, stop = byte_range
    return [group for group in groups if start <= _begins(metadata.row_group(group)) < stop]


def _begins(group: Any) -> int:
    """Return the offset of a row group: that of the first page of its first column, which may be a dictionary page."""
    if not group.num_columns:
        return 0
    column = group.column(0)
    return int(min(column.data_page_offset, column.dictionary_page_offset or column.data_page_offset))
