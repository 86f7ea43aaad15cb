# SPDX-License-Identifier: Apache-2.0
"""Writes what came of the faults into a page: a table between two markers, with a column for each environment.

A run fills its own column, and of that only the rows that it has tried; the rest of the table stays as it is.
"""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["BEGIN", "END", "EXECUTORS", "Row", "update"]

BEGIN = "<!-- what follows is written by `nox -s chaos` -->"
END = "<!-- end of what `nox -s chaos` writes -->"
EXECUTORS = {"local": "local", "local-2": "local, two workers", "xenna": "Xenna"}  # as the page calls them
_EMPTY = "-"

_Key = tuple[str, str]  # the fault, and on what
_Table = dict[str, dict[_Key, str]]  # by column


class Row(NamedTuple):
    """What came of a fault.

    Attributes:
        fault: What was done.
        on: The executor.
        held: Whether everything held.
        saw: What was seen, in words.
        seconds: How long it took.
    """

    fault: str
    on: str
    held: bool
    saw: str
    seconds: float

    @property
    def cell(self) -> str:
        """What came of it, for a table."""
        outcome = (self.saw or "held") if self.held else "**did not hold**"
        return f"{outcome}; {self.seconds:.0f} s"


def update(path: Path, rows: Sequence[Row]) -> None:
    """Write rows into this environment's column of a page's table.

    Raises:
        ValueError: The page has no such place.
    """
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    table, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{path} lacks the markers:\n{BEGIN}\n{END}")
    columns = parse(table)
    columns.setdefault(environment(), {}).update({(row.fault, row.on): row.cell for row in rows})
    path.write_text(f"{before}{begin}\n\n{render(columns)}\n{end}{after}", encoding="utf-8")


def environment() -> str:
    """What this column is of."""
    try:
        xenna = f", Xenna {version('cosmos-xenna')}"
    except PackageNotFoundError:
        xenna = ""
    return f"Python {'.'.join(platform.python_version_tuple()[:2])}{xenna}"


def parse(text: str) -> _Table:
    """The columns of a table that `render` wrote; none of an empty text."""
    lines = [_cells(line) for line in text.splitlines() if line.startswith("|")]
    if not lines:
        return {}
    (_, _, *names), _, *body = lines
    columns: _Table = {name: {} for name in names}
    for fault, on, *cells in body:
        for name, cell in zip(names, cells, strict=True):
            if cell != _EMPTY:
                columns[name][fault, on] = cell
    return columns


def render(columns: Mapping[str, Mapping[_Key, str]]) -> str:
    """The table, in the order in which the faults were first told."""
    names = sorted(columns)
    keys = dict.fromkeys(key for column in columns.values() for key in column)
    lines = [["what was done", "on", *names], ["---"] * (2 + len(names))]
    lines += [[*key, *(columns[name].get(key, _EMPTY) for name in names)] for key in keys]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]
