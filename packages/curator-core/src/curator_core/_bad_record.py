# SPDX-License-Identifier: Apache-2.0
"""Why a record cannot be converted to another format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from curator_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BadRecord", "misshapen"]


class BadRecord(NamedTuple):
    """Why a record cannot be converted.

    Attributes:
        number: Index of the record, from 0.
        column: The column; "data" if the record as a whole is wrong.
        why: What is wrong, as the continuation of "record 3".
        value: The wrong value.
        expected: Description of a correct value.
    """

    number: int
    column: str
    why: str
    value: Any
    expected: str = "values of one type in each column: text, numbers, dates, bytes, or lists or dicts of these"

    def error(self, what: str, hint: str) -> DataError:
        """Return an error whose message begins with what could not be done."""
        message = f"{what}: record {self.number} {self.why}"
        return DataError(message, field=self.column, given=self.value, expected=self.expected, hint=hint)


def misshapen(number: int, record: Any, fine: set[str], unfit: Callable[[str], str] = lambda _: "") -> BadRecord | None:
    """Return what is wrong with the form of a record: it is not a dict, or has an invalid column name.

    Args:
        number: Index of the record.
        record: The record.
        fine: Column names that are known to be valid; those of the record are added.
        unfit: Returns why a text cannot be the name of a column; empty if it can.
    """
    if not isinstance(record, dict):
        return BadRecord(number, "data", f"is of type {type(record).__name__}", record, "a dict for each record")
    for name in record:
        if name not in fine:
            if why := unfit(name) if isinstance(name, str) else "is not text":
                return BadRecord(
                    number, str(name), f"has a column whose name {why}", name, "column names that are text"
                )
            fine.add(name)
    return None
