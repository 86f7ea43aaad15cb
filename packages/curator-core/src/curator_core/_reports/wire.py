# SPDX-License-Identifier: Apache-2.0
"""Reports as bytes, on their way from a worker to the driver.

They cross process boundaries more often than anything else, and contain only plain values. Ordinary batches travel as
columns, at 1 us each to pack; others as plain tuples, at 2 us, because pickle asks each NamedTuple in Python how it is
made, which takes 9 us.
"""

from __future__ import annotations

import pickle
from itertools import groupby
from typing import TYPE_CHECKING, TypeAlias

from curator_core._reports.batch import BatchReport, WorkerReport
from curator_core._reports.columns import ReportColumns, is_ordinary, key_of
from curator_core._transport.pickling import dumps_plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Any

__all__ = ["AnyReport", "pack_reports", "unpack_reports"]

_ENOUGH = 4  # batches for which columns take less time than rows

AnyReport: TypeAlias = "BatchReport | ReportColumns | WorkerReport"


def pack_reports(reports: Sequence[BatchReport | WorkerReport]) -> bytes:
    """Return the reports of one worker as bytes, for `unpack_reports`."""
    return dumps_plain([*_rows_and_columns(reports)])


def unpack_reports(data: bytes) -> list[AnyReport]:
    """Return the reports from `pack_reports`. Only for data that this project packed: unpickling runs code.

    Between reports of workers, those of batches are in the order of their stages: the report of an input comes before
    the reports of the tasks that it gave.
    """
    return [BatchReport._make(row) if row.__class__ is tuple else row for row in pickle.loads(data)]  # noqa: S301 - see above


def _rows_and_columns(reports: Sequence[BatchReport | WorkerReport]) -> Iterator[Any]:
    for is_of_batches, group in groupby(reports, lambda report: isinstance(report, BatchReport)):
        if not is_of_batches:
            yield from group
            continue
        for same_key in _by_key(group):
            for are_ordinary, run in groupby(same_key, is_ordinary):
                rows = [*run]
                if are_ordinary and len(rows) >= _ENOUGH:
                    yield ReportColumns.of(rows)
                else:
                    yield from map(tuple, rows)


def _by_key(reports: Iterable[Any]) -> list[list[BatchReport]]:
    """Divide the reports of batches by what they must have in common to be columns, in the order of the stages."""
    found: dict[Any, list[BatchReport]] = {}
    for report in reports:
        found.setdefault(key_of(report), []).append(report)
    return [found[key] for key in sorted(found, key=lambda key: key[0])]
