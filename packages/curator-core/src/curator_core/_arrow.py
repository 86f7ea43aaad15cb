# SPDX-License-Identifier: Apache-2.0
"""Converts records to Arrow tables and back, without silently losing anything.

This module imports pyarrow, so import it only where pyarrow is needed.

On its own, pyarrow drops the time of a date, the nanoseconds of pandas, and all but one of several columns with the
same name. It treats ``b"x"`` and ``"x"`` as the same key of a dict, and crashes on values that are nested too deep. If
it cannot convert a value, it does not name the record.
"""

from __future__ import annotations

from datetime import date, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from curator_core._bad_record import BadRecord, misshapen
from curator_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

__all__ = ["FAILURES", "check_names", "compact", "join_types", "records_of", "table_of"]

_SLACK = 2  # how many times larger than its own rows the memory may be that a table keeps alive
_PLAIN = frozenset({str, int, float, bool, bytes, type(None)})
_LONG = 16  # values
_NESTED = (dict, list, tuple, set, frozenset)  # types whose elements pyarrow converts
_MAX_DEPTH = 100  # deeper than any data; at several thousand levels, pyarrow runs out of stack or memory
_DATED = (datetime, date, timedelta)  # datetime first, because a datetime is also a date
_TIMES = ("date", "time", "duration")  # found in the names of types; a match in a field's name only costs time

FAILURES = (pa.ArrowException, ValueError, TypeError, OverflowError, LookupError)
"""What pyarrow raises if it cannot convert a value: Arrow's own errors, and Python's errors that it passes on."""


def table_of(
    records: Sequence[Any],
    known: Mapping[str, pa.DataType] | None = None,
    unwritable: Callable[[pa.Field], str] = lambda _: "",
) -> tuple[pa.Table, dict[int, BadRecord]]:
    """Convert records to a table, and return those that do not fit separately.

    Args:
        records: Dicts; a column that is missing in a record is null.
        known: Types of columns that earlier records have settled on.
        unwritable: Returns why the destination cannot store a column; empty if it can.

    Returns:
        A table of the good records, and the bad ones by number: those that are incompatible with the records before.
    """
    fine: set[str] = set()
    bad = {number: found for number, record in enumerate(records) if (found := misshapen(number, record, fine, _unfit))}
    good = [record for number, record in enumerate(records) if number not in bad] if bad else records
    names = list(dict.fromkeys(name for record in good for name in record))
    if not names:
        return pa.table({}), bad | {
            number: BadRecord(number, "data", "has no columns", record, "at least one column")
            for number, record in enumerate(records)
            if number not in bad
        }
    try:
        table = pa.table({name: _array([record.get(name) for record in good], known, name) for name in names})
    except FAILURES:
        return _sift(records, dict(known or {}), bad, unwritable)
    return _sift(records, dict(known or {}), bad, unwritable) if any(map(unwritable, table.schema)) else (table, bad)


def records_of(table: pa.Table) -> list[dict[str, Any]]:
    """Return the rows of a table as dicts.

    Raises:
        DataError: Python cannot represent a value, or two columns have the same name.
    """
    check_names(table.column_names)
    try:
        rows: list[dict[str, Any]] = table.to_pylist()
    except FAILURES as exc:
        raise _no_python_form(table).error(
            "the table cannot be converted to records", "convert or drop the column before this stage"
        ) from exc
    return rows


def compact(table: pa.Table) -> pa.Table:
    """Copy a table that is a small part of its memory: a slice keeps, and pickles, everything it was cut from."""
    if table.get_total_buffer_size() <= _SLACK * table.nbytes:
        return table
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return pa.ipc.open_stream(sink.getvalue()).read_all()


def check_names(names: Sequence[str], of: str = "") -> None:
    """Check that no two columns have the same name.

    Args:
        names: The columns.
        of: A phrase for the message that says what they are columns of.

    Raises:
        DataError: Two columns have the same name.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DataError(
                f"several columns{of} are called '{name}': each record, from record 0 on, would lose one of them",
                field=name,
                given=list(names),
                expected="unique names",
                hint="rename one of them with pyarrow.Table.rename_columns",
            )
        seen.add(name)


@lru_cache(maxsize=1024)
def join_types(left: pa.DataType, right: pa.DataType) -> pa.DataType:
    """Return the common type of two types, according to pyarrow's promotion "permissive".

    Raises:
        ValueError: There is none.
    """
    if left == right:
        return left
    if pa.types.is_dictionary(left) != pa.types.is_dictionary(right):  # pyarrow does not unify these
        left, right = _decoded(left), _decoded(right)
    schemas = [pa.schema([("", left)]), pa.schema([("", right)])]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowException as exc:
        raise ValueError(f"{right} and {left} have no common type") from exc


def _decoded(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _unfit(name: str) -> str:
    """Return why a text cannot be the name of a column; empty if it can."""
    try:
        name.encode()
    except UnicodeEncodeError as exc:
        return f"cannot be encoded: {exc.reason}"
    return ""


def _sift(
    records: Sequence[dict[str, Any]],
    types: dict[str, pa.DataType],
    bad: dict[int, BadRecord],
    unwritable: Callable[[pa.Field], str],
) -> tuple[pa.Table, dict[int, BadRecord]]:
    """Do the same as `table_of` one record at a time, so that only good records promote the type of a column."""
    for number, record in enumerate(records):
        if number not in bad:
            found = _grown(number, record, types, unwritable)
            if isinstance(found, BadRecord):
                bad[number] = found
            else:
                types.update(found)
    for number, record in enumerate(records):  # such as a large integer in a column that later became fractions
        for name, value in record.items() if number not in bad else ():
            try:
                pa.array([value], types[name])
            except FAILURES as exc:
                bad[number] = BadRecord(
                    number, name, f"has a value in column '{name}' that does not fit {types[name]}: {exc}", value
                )
                break
    good = [record for number, record in enumerate(records) if number not in bad]
    names = dict.fromkeys(name for record in good for name in record)
    return pa.table({name: pa.array([record.get(name) for record in good], types[name]) for name in names}), bad


def _grown(
    number: int,
    record: Mapping[str, Any],
    types: Mapping[str, pa.DataType],
    unwritable: Callable[[pa.Field], str],
) -> dict[str, pa.DataType] | BadRecord:
    """Return the types of a record's columns after promotion to fit its values, or why they do not fit."""
    found = {}
    for name, value in record.items():
        before = types.get(name, pa.null())
        try:
            kind = _kind(value, before)
        except FAILURES as exc:
            return BadRecord(number, name, f"has a value in column '{name}' that Arrow cannot represent: {exc}", value)
        try:
            found[name] = join_types(before, kind)
        except ValueError:
            why = f"has a value of type {kind} in column '{name}' of type {before}"
            return BadRecord(number, name, why, value, f"{before}, or a type that can be promoted with it")
        if reason := unwritable(pa.field(name, found[name])):
            return BadRecord(number, name, f"has a value in column '{name}' that cannot be written: {reason}", value)
    return found


def _kind(value: Any, before: pa.DataType) -> pa.DataType:
    """Return the type of a value: the previous type if the value fits it unchanged."""
    if pa.types.is_map(before) or (pa.types.is_integer(before) and isinstance(value, int)):
        try:
            pa.array([value], before)
        except FAILURES:
            pass
        else:
            return before
    return _array([value]).type


def _array(values: Sequence[Any], known: Mapping[str, pa.DataType] | None = None, name: str = "") -> pa.Array:
    """Convert values to an array of their type.

    Raises:
        Exception: One of `FAILURES`: an array cannot represent the values without loss.
    """
    kind = (known or {}).get(name)
    if kind is not None and pa.types.is_map(kind):  # values of maps look like dicts or lists
        return pa.array(values, kind)
    _check_nested(values)
    array = pa.array(values)
    if not any(word in str(array.type) for word in _TIMES):
        return array
    leaves = {(path, *_time(leaf)) for value in values for path, leaf in _leaves(value) if isinstance(leaf, _DATED)}
    if len({(path, kind, aware) for path, kind, aware, _ in leaves}) > len({path for path, *_ in leaves}):
        raise ValueError("dates with and without a time of day, or with and without a time zone")
    precise = {path for path, _, _, nanoseconds in leaves if nanoseconds}
    if not precise:
        return array
    if precise != {""}:
        raise ValueError("nanoseconds within a list or a dict")
    return pa.array(
        values, pa.duration("ns") if pa.types.is_duration(array.type) else pa.timestamp("ns", array.type.tz)
    )


def _check_nested(values: Collection[Any], depth: int = 0) -> None:
    """Check that pyarrow can convert the contents of lists and dicts safely.

    Raises:
        ValueError: It cannot.
    """
    if len(values) > _LONG and _PLAIN.issuperset(map(type, values)):  # one fast pass in C, for example over embeddings
        return
    for value in values:
        kind = type(value)
        if kind in _PLAIN or not issubclass(kind, _NESTED):
            continue
        if depth == _MAX_DEPTH:
            raise ValueError(f"it is nested more than {_MAX_DEPTH} levels deep")
        if issubclass(kind, dict):
            for key in value:
                if not isinstance(key, str):
                    raise ValueError(f"the dict key {key!r} is not text")
            _check_nested(value.values(), depth + 1)
        else:
            _check_nested(value, depth + 1)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values in lists and dicts, at any depth, each after its path."""
    if isinstance(value, dict):
        for name, held in value.items():
            yield from _leaves(held, f"{path}.{name}")
    elif isinstance(value, list | tuple):
        for held in value:
            yield from _leaves(held, f"{path}[]")
    else:
        yield path, value


def _time(value: Any) -> tuple[str, bool, bool]:
    """Return the kind of a time, and whether it has a time zone and nanoseconds: pyarrow must not mix these."""
    kind = next(kind.__name__ for kind in _DATED if isinstance(value, kind))
    nanoseconds = getattr(value, "nanosecond", 0) or getattr(value, "nanoseconds", 0)  # attributes of pandas types
    return kind, getattr(value, "tzinfo", None) is not None, bool(nanoseconds)


def _no_python_form(table: pa.Table) -> BadRecord:
    for name, column in zip(table.column_names, table.columns, strict=True):
        for number, value in enumerate(column):
            try:
                value.as_py()
            except FAILURES as exc:
                why = f"has a value in column '{name}' that Python cannot represent: {exc}"
                return BadRecord(
                    number, name, why, value, f"values of {column.type} that Python's own types can represent"
                )
    return BadRecord(0, "data", "cannot be converted", table.schema, "an intact table")
