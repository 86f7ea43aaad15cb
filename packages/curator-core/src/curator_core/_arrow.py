# SPDX-License-Identifier: Apache-2.0
"""Records to Arrow tables and back, without losing anything in silence. Import it where pyarrow is needed: it loads it.

pyarrow by itself cuts off the time of a date, the nanoseconds of pandas and all but one of several columns of one name.
It takes ``b"x"`` and ``"x"`` in a dict for one key, and crashes on what is nested too deep. Where a value has no form
it does not say in which record.
"""

from __future__ import annotations

from datetime import date, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from curator_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

__all__ = ["FAILURES", "BadRecord", "check_names", "join_types", "records_of", "table_of"]

_PLAIN = frozenset({str, int, float, bool, bytes, type(None)})
_LONG = 16  # values
_NESTED = (dict, list, tuple, set, frozenset)  # what pyarrow looks into
_MAX_DEPTH = 100  # deeper than any data; at some thousands pyarrow runs out of stack or memory
_DATED = (datetime, date, timedelta)  # a datetime is a date as well
_TIMES = ("date", "time", "duration")  # in the names of types; in that of a column it costs time and nothing else

FAILURES = (pa.ArrowException, ValueError, TypeError, OverflowError, LookupError)
"""What pyarrow raises where a value cannot be converted: Arrow's own errors, and those of Python that it passes on."""


class BadRecord(NamedTuple):
    """Why a record cannot be converted.

    Attributes:
        number: Which record, counted from 0.
        column: The column; "data" where it is the record as a whole.
        why: What is wrong, to come after "record 3".
        value: What is there.
        expected: What would have been right.
    """

    number: int
    column: str
    why: str
    value: Any
    expected: str = "values of one type in each column: text, numbers, dates, bytes, lists or dicts of those"

    def error(self, what: str, hint: str) -> DataError:
        """The error that says so, after what could not be done."""
        message = f"{what}: record {self.number} {self.why}"
        return DataError(message, field=self.column, given=self.value, expected=self.expected, hint=hint)


def table_of(
    records: Sequence[Any],
    known: Mapping[str, pa.DataType] | None = None,
    unwritable: Callable[[pa.Field], str] = lambda _: "",
) -> tuple[pa.Table, dict[int, BadRecord]]:
    """The records that make a table, and those that do not.

    Args:
        records: Dicts; a column that one lacks is null in it.
        known: Types of columns that earlier records have settled.
        unwritable: Why a column cannot be written where the table goes to; empty where it can.

    Returns:
        A table of the good records, and the bad ones by number: those that do not go together with the ones before.
    """
    fine: set[str] = set()
    bad = {number: found for number, record in enumerate(records) if (found := _misshapen(number, record, fine))}
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
    """The rows of a table as dicts.

    Raises:
        DataError: A value has no form in Python, or two columns have one name.
    """
    check_names(table.column_names)
    try:
        rows: list[dict[str, Any]] = table.to_pylist()
    except FAILURES as exc:
        raise _no_python_form(table).error(
            "the table does not make records", "convert the column before this stage, or leave it out"
        ) from exc
    return rows


def check_names(names: Sequence[str], of: str = "") -> None:
    """See to it that no two columns have the same name.

    Args:
        names: The columns.
        of: What they are columns of, for the message.

    Raises:
        DataError: Two have.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DataError(
                f"several columns{of} are called '{name}': each record, from record 0 on, would lose one of them",
                field=name,
                given=list(names),
                expected="names that differ",
                hint="rename one of them, with pyarrow.Table.rename_columns",
            )
        seen.add(name)


@lru_cache(maxsize=1024)
def join_types(left: pa.DataType, right: pa.DataType) -> pa.DataType:
    """The type that values of both have a place in, as pyarrow's promotion "permissive" finds it.

    Raises:
        ValueError: There is none.
    """
    if left == right:
        return left
    if pa.types.is_dictionary(left) != pa.types.is_dictionary(right):  # for pyarrow they have nothing in common
        left, right = _decoded(left), _decoded(right)
    schemas = [pa.schema([("", left)]), pa.schema([("", right)])]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowException as exc:
        raise ValueError(f"{right} and {left} have no type in common") from exc


def _decoded(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _misshapen(number: int, record: Any, fine: set[str]) -> BadRecord | None:
    """What is wrong with a record's form. Names of columns that have been found fine are added to the set."""
    if not isinstance(record, dict):
        return BadRecord(number, "data", f"is of type {type(record).__name__}", record, "a dict for each record")
    for name in record:
        if name not in fine:
            if why := _unfit(name):
                return BadRecord(number, str(name), f"has a column whose name {why}", name, "text as names of columns")
            fine.add(name)
    return None


def _unfit(name: Any) -> str:
    """Why something cannot name a column; empty where it can."""
    if not isinstance(name, str):
        return "is not text"
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
    """As `table_of`, one record after the other: a type grows with the good records and not with the bad ones."""
    for number, record in enumerate(records):
        if number not in bad:
            found = _grown(number, record, types, unwritable)
            if isinstance(found, BadRecord):
                bad[number] = found
            else:
                types.update(found)
    for number, record in enumerate(records):  # a large integer, where the column turned out to hold fractions
        for name, value in record.items() if number not in bad else ():
            try:
                pa.array([value], types[name])
            except FAILURES as exc:
                bad[number] = BadRecord(
                    number, name, f"has a value in column '{name}' that is no {types[name]}: {exc}", value
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
    """The types of a record's columns with its own values in them, or why that cannot be."""
    found = {}
    for name, value in record.items():
        before = types.get(name, pa.null())
        try:
            kind = _kind(value, before)
        except FAILURES as exc:
            return BadRecord(number, name, f"has a value in column '{name}' that Arrow has no form for: {exc}", value)
        try:
            found[name] = join_types(before, kind)
        except ValueError:
            why = f"has a value of type {kind} in column '{name}' of type {before}"
            return BadRecord(number, name, why, value, f"{before}, or what can be promoted with it")
        if reason := unwritable(pa.field(name, found[name])):
            return BadRecord(number, name, f"has a value in column '{name}' that cannot be written: {reason}", value)
    return found


def _kind(value: Any, before: pa.DataType) -> pa.DataType:
    """The type of a value: the one before where that has room for it as it is."""
    if pa.types.is_map(before) or (pa.types.is_integer(before) and isinstance(value, int)):
        try:
            pa.array([value], before)
        except FAILURES:
            pass
        else:
            return before
    return _array([value]).type


def _array(values: Sequence[Any], known: Mapping[str, pa.DataType] | None = None, name: str = "") -> pa.Array:
    """An array of the type that is in the values.

    Raises:
        Exception: One of `FAILURES`: they do not make an array that has all that is in them.
    """
    kind = (known or {}).get(name)
    if kind is not None and pa.types.is_map(kind):  # they look like dicts or lists
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
    """See whether pyarrow may be given what is in lists and dicts.

    Raises:
        ValueError: It may not.
    """
    if len(values) > _LONG and _PLAIN.issuperset(map(type, values)):  # one pass in C, as over embeddings
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
    """What is in lists and dicts, and where."""
    if isinstance(value, dict):
        for name, held in value.items():
            yield from _leaves(held, f"{path}.{name}")
    elif isinstance(value, list | tuple):
        for held in value:
            yield from _leaves(held, f"{path}[]")
    else:
        yield path, value


def _time(value: Any) -> tuple[str, bool, bool]:
    """What pyarrow must not mix: the kind of a time, whether it has a time zone, and whether it has nanoseconds."""
    kind = next(kind.__name__ for kind in _DATED if isinstance(value, kind))
    nanoseconds = getattr(value, "nanosecond", 0) or getattr(value, "nanoseconds", 0)  # as pandas has them
    return kind, getattr(value, "tzinfo", None) is not None, bool(nanoseconds)


def _no_python_form(table: pa.Table) -> BadRecord:
    for name, column in zip(table.column_names, table.columns, strict=True):
        for number, value in enumerate(column):
            try:
                value.as_py()
            except FAILURES as exc:
                why = f"has a value in column '{name}' that Python has no form for: {exc}"
                return BadRecord(
                    number, name, why, value, f"values that Python's own types can hold, not all {column.type} can"
                )
    return BadRecord(0, "data", "cannot be converted", table.schema, "an intact table")
