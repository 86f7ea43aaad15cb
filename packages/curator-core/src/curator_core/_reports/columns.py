# SPDX-License-Identifier: Apache-2.0
"""Reports of many ordinary batches at once, as columns.

In a long run almost all batches are ordinary: nothing failed, and no files were written. The reports that a worker
sends about them in one message have most fields in common, and the accounts of a run only add up the others. As
columns, they take a fifth of the time to send and to enter, and hardly any objects that Python's garbage collector
has to visit. Reports of other batches stay as they are.
"""

from __future__ import annotations

from itertools import accumulate, chain, islice, repeat
from operator import add, is_
from typing import TYPE_CHECKING, Any

from curator_core._reports.batch import BatchReport, Tally, tally_of
from curator_core._transport.pickling import dumps_plain, loads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Self

    from curator_core._reports.batch import OutcomeKind

__all__ = ["ReportColumns", "is_ordinary", "key_of"]

_ORDINARY: dict[str, Any] = {"error": None, "failed_input": (), "written_files": ()}
_KEY = ("stage_index", "worker_id", "node_id", "epoch")
_INPUTS = ("input_ids", "other_outcomes")
_ENTERED = (
    *("sequence", "start_unix_ns", "duration_ns", "cpu_ns", "idle_ns"),
    *("ready_unix_ns", "ready_node_id", "num_items"),
)
_SHOWN = tuple(name for name in BatchReport._fields if name not in {*_ORDINARY, *_KEY, *_INPUTS, *_ENTERED})


def is_ordinary(report: BatchReport) -> bool:
    """Whether no input of a batch failed, was retried, or was merged, and no files were written."""
    if report.error is not None or report.failed_input or report.written_files:
        return False
    return not report.other_outcomes or all(kind in ("out", "filtered") for kind, _ in report.other_outcomes.values())


def key_of(report: BatchReport | ReportColumns) -> tuple[int, str, str, int]:
    """Return what reports must have in common to be columns."""
    return report.stage_index, report.worker_id, report.node_id, report.epoch


class ReportColumns:
    """Reports of ordinary batches of one stage on one worker, in order. Iterating yields each `BatchReport`.

    Args:
        key: Stage index, worker id, node id, and epoch.
        input_ids: The ids of the inputs of all batches.
        other_outcomes: Kind and count, by position in `input_ids`, for those that did not give exactly one task.
        sizes: How many inputs each batch had; None if each had one.
        entered: The fields that are added up or corrected in the driver.
        shown: The fields that only observers need, as bytes.

    Attributes:
        stage_index: As in `BatchReport`, of all batches.
        worker_id: As in `BatchReport`, of all batches.
        node_id: As in `BatchReport`, of all batches.
        epoch: As in `BatchReport`, of all batches.
        input_ids: The ids of the inputs of all batches.
        other_outcomes: Kind and count, by position in `input_ids`, for those that did not give exactly one task.
        error: None, as in the report of each ordinary batch.
    """

    __slots__ = (
        *("_entered", "_shown", "_sizes"),
        *("epoch", "input_ids", "node_id", "other_outcomes", "stage_index", "worker_id"),
    )

    error = None

    def __init__(
        self,
        key: tuple[int, str, str, int],
        input_ids: Sequence[str],
        other_outcomes: Mapping[int, tuple[OutcomeKind, int]],
        sizes: Sequence[int] | None,
        entered: _Columns,
        shown: bytes,
    ) -> None:
        self.stage_index, self.worker_id, self.node_id, self.epoch = key
        self.input_ids = input_ids
        self.other_outcomes = other_outcomes
        self._sizes = sizes
        self._entered = entered
        self._shown = shown

    @classmethod
    def of(cls, reports: Sequence[BatchReport]) -> Self:
        """Return reports as columns; all of them are ordinary, and have the same `key_of`."""
        columns = dict(zip(BatchReport._fields, zip(*reports, strict=True), strict=True))
        input_ids = columns["input_ids"]
        sizes = None if set(map(len, input_ids)) == {1} else [*map(len, input_ids)]
        starts = range(len(reports)) if sizes is None else accumulate(sizes, initial=0)
        return cls(
            key_of(reports[0]),
            [*chain.from_iterable(input_ids)],
            {
                start + number: outcome
                for start, others in zip(starts, columns["other_outcomes"], strict=False)
                for number, outcome in others.items()
            },
            sizes,
            _Columns.of({name: columns[name] for name in _ENTERED}),
            dumps_plain(_Columns.of({name: columns[name] for name in _SHOWN})),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        own = (key_of(self), self.input_ids, self.other_outcomes, self._sizes, self._entered, self._shown)
        return ReportColumns, own

    def __len__(self) -> int:
        """Return the number of batches."""
        return self._entered.count

    def __iter__(self) -> Iterator[BatchReport]:
        count = len(self)
        shown: _Columns = loads(self._shown)
        columns: dict[str, Iterable[Any]] = {name: repeat(value, count) for name, value in _ORDINARY.items()}
        columns |= {name: repeat(getattr(self, name), count) for name in _KEY}
        columns |= {name: self._entered[name] for name in _ENTERED}
        columns |= {name: shown[name] for name in _SHOWN}
        columns["input_ids"], columns["other_outcomes"] = self._ids_of_each(), self._others_of_each()
        return map(BatchReport._make, zip(*(columns[name] for name in BatchReport._fields), strict=True))

    def _ids_of_each(self) -> Iterable[tuple[str, ...]]:
        if self._sizes is None:
            return zip(self.input_ids)
        ids = iter(self.input_ids)
        return (tuple(islice(ids, size)) for size in self._sizes)

    def _others_of_each(self) -> Iterable[Mapping[int, tuple[OutcomeKind, int]]]:
        others = self.other_outcomes
        if not others:
            return repeat({}, len(self))
        sizes = repeat(1, len(self)) if self._sizes is None else self._sizes
        numbers = iter(range(len(self.input_ids)))
        return (
            {at: others[number] for at, number in enumerate(islice(numbers, size)) if number in others}
            for size in sizes
        )

    def row(self, number: int) -> BatchReport:
        """Return the report of one batch, which takes as long as all reports up to it."""
        return next(islice(self, number, None))

    def shifted(self, offset_ns: Callable[[str], int]) -> ReportColumns:
        """Return the reports with other times; the same object if nothing changes.

        Args:
            offset_ns: Returns the nanoseconds to add to the times of a node.
        """
        start, nodes = offset_ns(self.node_id), self._entered["ready_node_id"]
        offsets = {node_id: offset_ns(node_id) for node_id in {*nodes}}
        if not (start or any(offsets.values())):
            return self
        # 0 means that it is unknown when the inputs were ready, so it stays 0.
        times = zip(self._entered["ready_unix_ns"], self._entered["ready_node_id"], strict=True)
        entered = self._entered.replaced(
            start_unix_ns=[each + start for each in self._entered["start_unix_ns"]],
            ready_unix_ns=[ready and ready + offsets[node_id] for ready, node_id in times],
        )
        return ReportColumns(key_of(self), self.input_ids, self.other_outcomes, self._sizes, entered, self._shown)

    def column(self, name: str) -> Iterable[Any]:
        """Return the values of a field, by batch."""
        return self._entered[name]

    def total(self, name: str) -> int:
        """Return the sum of a field over the batches."""
        return self._entered.total(name)

    def tally(self) -> Tally:
        """Count the inputs of all batches by outcome, and the output tasks."""
        return tally_of(len(self.input_ids), self.other_outcomes)

    def ends(self) -> Iterable[int]:
        """Return when each batch ended."""
        return map(add, self.column("start_unix_ns"), self.column("duration_ns"))


class _Columns:
    """Fields of several rows. A value that all rows share is there once.

    Args:
        count: Number of rows.
        same: The value of each field that is one object in all rows.
        different: The values of each other field, by row.
    """

    __slots__ = ("count", "different", "same")

    def __init__(self, count: int, same: dict[str, Any], different: dict[str, Sequence[Any]]) -> None:
        self.count, self.same, self.different = count, same, different

    @classmethod
    def of(cls, columns: Mapping[str, Sequence[Any]]) -> _Columns:
        # Not by equality, which would turn a metric of True into one of 1.
        same = {name: values[0] for name, values in columns.items() if all(map(is_, values, repeat(values[0])))}
        different = {name: values for name, values in columns.items() if name not in same}
        return cls(len(next(iter(columns.values()))), same, different)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Columns, (self.count, self.same, self.different)

    def replaced(self, **columns: Sequence[Any]) -> _Columns:
        """Return the rows with other values of some fields."""
        same = {name: value for name, value in self.same.items() if name not in columns}
        return _Columns(self.count, same, {**self.different, **columns})

    def __getitem__(self, name: str) -> Iterable[Any]:
        return self.different[name] if name in self.different else repeat(self.same[name], self.count)

    def total(self, name: str) -> int:
        return sum(self.different[name]) if name in self.different else self.same[name] * self.count
