# SPDX-License-Identifier: Apache-2.0
"""Schemas of Arrow tables: reading `schema=`, merging schemas, and converting tables to a schema.

This module imports pyarrow, so import it only where pyarrow is needed.
"""

from __future__ import annotations

import io
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curator_core._arrow import FAILURES, check_names, join_types
from curator_core._bad_record import BadRecord
from curator_core.errors import ConfigurationError, DataError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Sequence

__all__ = ["as_schema", "conform", "footer", "from_footer", "grow", "merge", "unwritable", "without"]

_EXPECTED = "a pyarrow.Schema, or a dict from names to types, such as {'text': 'string', 'n': pyarrow.int64()}"


def as_schema(value: Any, fields: Sequence[str] | None = None) -> pa.Schema:
    """Return the given fields of a schema, which is a pyarrow.Schema or a mapping from names to types.

    Raises:
        ConfigurationError: It is something else, has a duplicate name or a type that Parquet does not support, or
            lacks one of the fields.
    """
    if isinstance(value, pa.Schema):
        schema = value
    elif hasattr(value, "items"):
        schema = pa.schema([_field(name, kind) for name, kind in value.items()])
    else:
        raise ConfigurationError("not a schema", field="schema", given=value, expected=_EXPECTED)
    if not schema.names or len(set(schema.names)) < len(schema.names):
        raise ConfigurationError(
            "the schema has no columns, or duplicate ones", field="schema", given=schema.names, expected=_EXPECTED
        )
    for name in fields or ():
        if name not in schema.names:
            details = unknown_name("column", name, schema.names, "fields")
            raise ConfigurationError(f"the schema has no column '{name}'", **details)
    for field in schema:
        if why := unwritable(field):
            raise ConfigurationError(
                f"a column of the schema cannot be written as Parquet: {why}",
                field=f"schema['{field.name}']",
                given=field.type,
                expected="a type that Parquet supports",
            )
    return _stored(schema if fields is None else map(schema.field, fields), schema.metadata)


def merge(settled: pa.Schema | None, new: pa.Schema) -> pa.Schema:
    """Return the schema that fits tables of both schemas, in the order of the first.

    If the types of a column have nothing in common, that of the first is kept, and if Parquet does not support the type
    of a new column, the column is null: `conform` reports the records that do not fit.
    """
    if settled is None:
        return _stored(map(_writable, new))
    if new.equals(settled):
        return settled
    after = {field.name: field for field in new}
    merged = [_merged(field, after.get(field.name)) for field in settled]
    added = [_writable(field.with_nullable(True)) for field in new if field.name not in settled.names]
    return settled if merged == list(settled) and not added else _stored([*merged, *added])


def grow(schemas: Sequence[pa.Schema], paths: Sequence[str]) -> pa.Schema:
    """Return the schema that fits the tables of several files.

    Raises:
        DataError: There is none, because the types of a column have nothing in common.
    """
    grown = schemas[0].remove_metadata()
    for schema in schemas[1:]:
        merged = merge(grown, schema)
        for field in schema:
            try:
                join_types(merged.field(field.name).type, field.type)
            except ValueError as exc:
                raise DataError(
                    f"the files of one group do not form one table: column '{field.name}': {exc}",
                    field=field.name,
                    given=list(paths),
                    expected="for each column, types that can be promoted to a common type in all files of a group",
                    hint="convert the files that differ, or read each file separately with files_per_partition=1",
                ) from exc
        grown = merged
    return grown


def conform(table: pa.Table, schema: pa.Schema) -> tuple[pa.Table, Iterator[BadRecord]]:
    """Convert a table to the columns and types of a schema.

    A column that the table lacks is null. Values are converted if the types have something in common and nothing of the
    value is lost.

    Returns:
        The table, and the records that cannot be converted, by row. If there are any, the table is the given one.

    Raises:
        DataError: The table has two columns with the same name.
    """
    check_names(table.column_names)
    there = set(table.column_names)
    columns, failed = [], []
    for field in schema:
        column = table.column(field.name) if field.name in there else pa.chunked_array([pa.nulls(len(table))])
        try:
            columns.append(_cast(column, field))
        except FAILURES:
            failed.append((column, field))
    strange = [name for name in table.column_names if name not in schema.names and _has_values(table.column(name))]
    if failed or strange:
        return table, _bad_rows(table, schema, failed, strange)
    metadata = {**(table.schema.metadata or {}), **(schema.metadata or {})} or None
    return pa.Table.from_arrays(columns, schema=schema.with_metadata(metadata)), iter(())


def without(table: pa.Table, rows: Container[int]) -> pa.Table:
    """Return a table without some of its rows."""
    return table.take(pa.array([row for row in range(len(table)) if row not in rows], pa.int64()))


def footer(schema: pa.Schema) -> bytes:
    """Return a Parquet file with the schema and without records."""
    stream = io.BytesIO()
    pq.write_metadata(schema, stream)
    return stream.getvalue()


def from_footer(content: bytes) -> pa.Schema:
    """Return the schema in a Parquet file.

    Raises:
        Exception: An OSError or an Arrow error, if it is not a Parquet file.
    """
    return pq.read_schema(pa.BufferReader(content))


def _stored(fields: Iterable[pa.Field], metadata: Any = None) -> pa.Schema:
    """Return a schema as Parquet reads it back, with milliseconds instead of seconds: tables must fit this one."""
    given = list(fields)
    stored = from_footer(footer(pa.schema(given)))
    return pa.schema([old if old.type == new.type else new for old, new in zip(given, stored, strict=True)], metadata)


def _field(name: Any, kind: Any) -> pa.Field:
    try:
        return pa.field(name, pa.type_for_alias(kind) if isinstance(kind, str) else kind)
    except (TypeError, ValueError) as exc:
        raise ConfigurationError(
            f"unknown type: {exc}",
            field=f"schema[{name!r}]",
            given=kind,
            expected="a pyarrow.DataType, or the name of a simple one: 'string', 'int64', 'double', 'timestamp[us]' …",
            hint="use the functions of pyarrow for other types: pyarrow.list_(pyarrow.string())",
        ) from exc


@lru_cache(maxsize=1024)
def unwritable(field: pa.Field) -> str:
    """Return why Parquet cannot store a column; empty if it can."""
    if why := _unsound(field.type):
        return why
    try:
        from_footer(footer(pa.schema([field])))  # types nested too deep can be written, but not read
    except (*FAILURES, OSError) as exc:
        return str(exc)
    return ""


def _unsound(kind: pa.DataType) -> str:
    inner = [kind.field(number) for number in range(kind.num_fields)] if pa.types.is_struct(kind) else []
    if pa.types.is_struct(kind) and not inner:
        return "Parquet does not support dicts without keys"
    names = [field.name for field in inner]
    if len(set(names)) < len(names):
        return f"{kind} has two fields with the same name"
    if hasattr(kind, "value_type"):
        return _unsound(kind.value_type)
    return next(filter(None, (_unsound(field.type) for field in inner)), "")


def _writable(field: pa.Field) -> pa.Field:
    return pa.field(field.name, pa.null()) if unwritable(field) else field


def _merged(before: pa.Field, after: pa.Field | None) -> pa.Field:
    if after is None:
        return before.with_nullable(True)
    try:
        joined = before.with_type(join_types(before.type, after.type))
    except ValueError:
        return before
    if joined.type != before.type and unwritable(joined):
        return before
    return joined.with_nullable(before.nullable or after.nullable)


def _has_values(column: pa.ChunkedArray) -> bool:
    return bool(column.null_count < len(column))


def _cast(column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    """Convert a column to the field's type.

    Raises:
        Exception: One of `FAILURES`: a value does not fit, or the types have nothing in common.
    """
    if not field.nullable and column.null_count:
        raise ValueError("nulls are not allowed")
    if column.type == field.type:
        return column
    if not _has_values(column):
        return pa.chunked_array([pa.nulls(len(column), field.type)])
    if not _has_room(column.type, field.type):
        raise ValueError("it cannot be converted without loss")
    try:
        cast = column.cast(field.type)
    except (pa.ArrowTypeError, pa.ArrowNotImplementedError):  # older pyarrows cannot add fields to a struct
        cast = pa.chunked_array([pa.array(column.to_pylist(), field.type)])
    fractions = pa.types.is_floating(field.type) and pa.types.is_floating(column.type)
    if fractions and pc.sum(pc.is_inf(cast)) != pc.sum(pc.is_inf(column)):
        raise ValueError("the number is too large")
    return cast


def _has_room(kind: pa.DataType, target: pa.DataType) -> bool:
    """Whether values of a type may fit another one: the types are related, and the other has all fields."""
    try:
        joined = join_types(kind, target)
    except ValueError:
        return False
    return _fields(joined) <= _fields(target)


def _fields(kind: pa.DataType, path: str = "") -> set[str]:
    """Return the fields of structs in a type, at any depth."""
    if pa.types.is_struct(kind):
        inner = {f"{path}.{kind.field(number).name}": kind.field(number).type for number in range(kind.num_fields)}
        return set(inner).union(*(_fields(held, name) for name, held in inner.items()))
    return _fields(kind.value_type, f"{path}[]") if hasattr(kind, "value_type") else set()


def _bad_rows(
    table: pa.Table, schema: pa.Schema, failed: list[tuple[pa.ChunkedArray, pa.Field]], strange: list[str]
) -> Iterator[BadRecord]:
    expected = ", ".join(f"{field.name}: {field.type}" for field in schema)
    for name in strange:
        column = table.column(name)
        for row in _rows_with_values(column):
            why = f"has a column '{name}' of type {column.type}, which the schema does not have"
            yield BadRecord(row, name, why, _shown(column[row]), expected)
    for column, field in failed:
        for row, exc in _failing(column, field, 0):
            yield _misfit(row, column, field, exc)


def _misfit(row: int, column: pa.ChunkedArray, field: pa.Field, exc: Exception) -> BadRecord:
    value = _shown(column[row])
    if pa.types.is_null(field.type) and (why := unwritable(pa.field(field.name, column.type))):
        return BadRecord(row, field.name, f"has a value in column '{field.name}' that cannot be written: {why}", value)
    why = f"has a value of type {column.type} in column '{field.name}' of type {field.type}: {exc}"
    return BadRecord(row, field.name, why, value, str(field.type))


def _failing(column: pa.ChunkedArray, field: pa.Field, start: int) -> Iterator[tuple[int, Exception]]:
    """Yield the rows whose values cannot be cast, found by splitting the column in half."""
    try:
        _cast(column, field)
    except FAILURES as exc:
        if _has_values(column) and field.nullable and not _has_room(column.type, field.type):
            yield from ((start + row, exc) for row in _rows_with_values(column))
        elif len(column) == 1:
            yield start, exc
        else:
            half = len(column) // 2
            yield from _failing(column.slice(0, half), field, start)
            yield from _failing(column.slice(half), field, start + half)


def _rows_with_values(column: pa.ChunkedArray) -> Iterator[int]:
    return (row for row, is_there in enumerate(column.is_valid()) if is_there.as_py())


def _shown(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except FAILURES:
        return value
