# SPDX-License-Identifier: Apache-2.0
"""The two kinds of task that readers produce and writers consume."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from curator_core.errors import ConfigurationError
from curator_core.task import Task, digest

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["DocumentBatch", "FileGroupTask"]

Records: TypeAlias = "list[dict[str, Any]]"


_SLACK = 2  # how many times larger than its own rows the memory may be that a table keeps alive


@dataclass
class FileGroupTask(Task[list[str]]):
    """The files of one partition of a source, or a range of one file.

    The id is derived from the content: the same paths and the same range give the same id.

    Attributes:
        data: Paths or fsspec URLs.
        byte_range: For a task that is a range of its only file: the first byte of the range, and the byte after the
            last. A line or Parquet row group that starts in the range belongs to the task, wherever it ends.
    """

    byte_range: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.byte_range is not None and len(self.data) != 1:
            raise ConfigurationError(
                "a byte range needs exactly one file",
                field="byte_range",
                given=self.data,
                expected="a list of one path",
            )

    @property
    def num_bytes(self) -> int:
        """Bytes of the range, because that is how much a worker reads; 0 for whole files."""
        return 0 if self.byte_range is None else self.byte_range[1] - self.byte_range[0]

    def get_deterministic_id(self) -> str:
        """Return a hash of the paths, in order, and of the range, if there is one."""
        import json  # noqa: PLC0415 - takes 2 ms, too much for an import of this package

        content = self.data if self.byte_range is None else [*self.data, self.byte_range]
        return f"files-{digest(json.dumps(content), 10)}"


@dataclass(repr=False, eq=False)  # inherits both from Task: the fields are the same
class DocumentBatch(Task["Records | pa.Table"]):
    """Records with columns: a list of dicts, or an Arrow table (extra ``parquet``).

    Attributes:
        data: The records.
    """

    def __post_init__(self) -> None:
        if isinstance(self.data, list) or hasattr(self.data, "column_names"):
            return
        raise ConfigurationError(
            "invalid data for a DocumentBatch",
            field="data",
            given=self.data,
            expected="a list of dicts or a pyarrow.Table",
            hint="convert a pandas DataFrame with DataFrame.to_dict('records') or pyarrow.Table.from_pandas",
        )

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle. Without this, a slice of an Arrow table would carry the whole original table."""
        table = self.data
        if isinstance(table, list) or table.get_total_buffer_size() <= _SLACK * table.nbytes:
            return self.__dict__
        return {**self.__dict__, "data": _compact(table)}

    @property
    def columns(self) -> list[str]:
        """Names of the columns, in order of first appearance."""
        if isinstance(self.data, list):
            return list(dict.fromkeys(name for record in self.data for name in record))
        return list(self.data.column_names)

    @property
    def num_items(self) -> int:
        """Number of records."""
        return len(self.data)

    def to_records(self) -> Records:
        """Return the records as dicts. A list is returned as it is, not copied.

        Raises:
            DataError: A value of the table cannot be represented in Python (a date after 9999; nanoseconds, without
                pandas), or two columns have the same name.
        """
        if isinstance(self.data, list):
            return self.data
        from curator_core.arrow import records_of  # noqa: PLC0415 - pyarrow is an optional extra

        return records_of(self.data)

    def to_arrow(self) -> pa.Table:
        """Return the records as an Arrow table; needs the extra ``parquet``.

        A column contains values of one type, or of several types that pyarrow's "permissive" promotion unifies.

        Raises:
            DataError: A record is incompatible with those before it, or has a value that Arrow cannot represent. The
                error names the record and the column.
        """
        if not isinstance(self.data, list):
            return self.data
        from curator_core.arrow import table_of  # noqa: PLC0415 - pyarrow is an optional extra

        table, bad = table_of(self.data)
        if bad:
            what, hint = "cannot convert the records to an Arrow table", "convert or drop the column before this stage"
            raise bad[min(bad)].error(what, hint)
        return table


def _compact(table: pa.Table) -> pa.Table:
    """Return a copy of a table that keeps only its own rows in memory."""
    import pyarrow as pa  # noqa: PLC0415 - an optional extra

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return pa.ipc.open_stream(sink.getvalue()).read_all()
