# SPDX-License-Identifier: Apache-2.0
"""Writes the results of the faults into a page: a table between two markers, with a column for each environment.

A run fills its own column: all of it if it was a complete run, and otherwise only the rows that it tested. Other
columns are not changed. The first row names the commit and the seed.
"""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["BEGIN", "END", "EXECUTORS", "Row", "made_with", "update"]

BEGIN = "<!-- what follows is written by `nox -s chaos` -->"
END = "<!-- end of what `nox -s chaos` writes -->"
EXECUTORS = {
    "none": "no engine",
    "local": "local",
    "local-2": "local, two workers",
    "xenna": "Xenna",
    "isolated": "local, isolated",
}
"""Names of the executors on the page."""

_EMPTY = "-"
_IN_PART = "; in part "

_Key = tuple[str, str]  # the fault and the executor
_Table = dict[str, dict[_Key, str]]  # by column
_MADE_WITH: _Key = ("commit and seed", "")


class Row(NamedTuple):
    """The result of a fault.

    Attributes:
        fault: Description of the fault.
        on: The executor.
        held: Whether all checks passed; None if the fault could not be tested.
        saw: Description of the result.
        seconds: How long the test took.
    """

    fault: str
    on: str
    held: bool | None
    saw: str
    seconds: float

    @property
    def cell(self) -> str:
        """The result as a cell of the table."""
        if self.held is None:
            return "not tried"
        outcome = (self.saw or "held") if self.held else "**did not hold**"
        return f"{outcome}; {self.seconds:.0f} s"


def update(path: Path, rows: Sequence[Row], made: str, *, whole: bool = False) -> None:
    """Write rows into this environment's column of a page's table.

    Args:
        path: The page.
        rows: The results of the faults.
        made: Commit and seed of the run, from `made_with`.
        whole: Whether these are all rows: other rows, of faults that are no longer tested, are dropped.

    Raises:
        ValueError: The page does not contain the markers.
    """
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    table, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{path} lacks the markers:\n{BEGIN}\n{END}")
    columns = parse(table)
    name = environment()
    kept = {} if whole else columns.get(name, {})
    cells = {(row.fault, row.on): row.cell for row in rows}
    columns[name] = {**kept, _MADE_WITH: _made_with_all(kept, made), **cells}
    path.write_text(f"{before}{begin}\n\n{render(columns)}\n{end}{after}", encoding="utf-8")


def made_with(page: Path, seed: int) -> str:
    """Describe the commit of a run, whether files other than the page differ from it, and the seed."""
    root = Path(_git("rev-parse", "--show-toplevel"))
    changed = {root / name for name in _git("diff", "--name-only", "HEAD").splitlines()} - {page.resolve()}
    return f"`{_git('rev-parse', '--short', 'HEAD')}`{' with changes' if changed else ''}, seed {seed}"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _made_with_all(kept: Mapping[_Key, str], made: str) -> str:
    """Combine the commits and seeds of a column if some of its rows are kept from earlier runs."""
    if not kept:
        return made
    earlier = kept.get(_MADE_WITH, "unknown").split(_IN_PART)
    return _IN_PART.join(dict.fromkeys([*earlier, made]))


def environment() -> str:
    """Return the name of this environment's column."""
    try:
        xenna = f", Xenna {version('cosmos-xenna')}"
    except PackageNotFoundError:
        xenna = ""
    return f"Python {'.'.join(platform.python_version_tuple()[:2])}{xenna}"


def parse(text: str) -> _Table:
    """Parse the columns of a table that `render` wrote; an empty text has none."""
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
    """Return the table: in any order of the tests, the executors of a fault are next to each other."""
    names, order = sorted(columns), {name: place for place, name in enumerate(EXECUTORS.values())}
    faults = {key for column in columns.values() for key in column} - {_MADE_WITH}
    keys = [_MADE_WITH, *sorted(faults, key=lambda key: (key[0].lower(), order.get(key[1], len(order))))]
    lines = [["fault", "executor", *names], ["---"] * (2 + len(names))]
    lines += [[*key, *(columns[name].get(key, _EMPTY) for name in names)] for key in keys]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]
