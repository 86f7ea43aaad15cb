# SPDX-License-Identifier: Apache-2.0
"""The progress of each source task and all its descendants. Made from reports alone."""

from __future__ import annotations

from collections import Counter
from operator import add
from typing import TYPE_CHECKING, NamedTuple

from curator_core._reports.batch import FIELD_OF, ONE_OUT, Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from curator_core._reports.batch import BatchReport, OutcomeKind, WrittenFiles
    from curator_core._reports.columns import ReportColumns

__all__ = ["Finished", "SourceProgress"]

_PLACES = {kind: Tally._fields.index(field) for kind, field in FIELD_OF.items()}
_OUT_PLACE = Tally._fields.index("out")
_ONE_PASSED = Tally(passed=1, out=1)


class Finished(NamedTuple):
    """A source task whose descendants have all been written, filtered, or failed.

    Attributes:
        source_id: The id of the source task.
        failed: How many of its descendants failed.
        written_files: The files that the last stage reports to have written.
        joined: The ids of other source tasks that are finished with it, because they went into the same tasks.
    """

    source_id: str
    failed: int
    written_files: tuple[WrittenFiles, ...]
    joined: tuple[str, ...] = ()


class _Open:
    """A source task in progress, or several that went into one task.

    Args:
        source_id: The id of the source task.
        passed: The stages that were counted for it so far: each got one task and gave one.
    """

    __slots__ = ("announced", "failed", "live", "members", "tallies", "written_files")

    def __init__(self, source_id: str, passed: range) -> None:
        self.members = [source_id]
        self.live = 1  # does not include the outputs of announced tasks
        self.announced = self.failed = 0
        self.written_files: list[WrittenFiles] = []
        # By stage, as a `Tally`, which takes ten times as long to change.
        self.tallies: dict[int, list[int]] = {stage: [*_ONE_PASSED] for stage in passed}

    def enter(self, stage: int, kind: OutcomeKind, count: int) -> None:
        """Remember what was counted for the source task, in case it has to be subtracted."""
        tally = self.tallies.get(stage)
        if tally is None:
            tally = self.tallies[stage] = [0] * len(Tally._fields)
        tally[_PLACES[kind]] += 1
        tally[_OUT_PLACE] += count

    def absorb(self, other: _Open) -> None:
        """Add the members of another object, and all that was counted for them."""
        self.members += other.members
        self.live += other.live
        self.failed += other.failed
        self.written_files += other.written_files
        for stage, theirs in other.tallies.items():
            ours = self.tallies.get(stage, [0] * len(theirs))
            self.tallies[stage] = [*map(add, ours, theirs)]


class SourceProgress:
    """Counts, for each source task, how many of its descendants are still in flight.

    Source tasks with a common descendant finish together: otherwise a later run would repeat only some of them, and
    write again what they have in common with the others.

    A report says how many tasks each input gave. It arrives before the reports of these outputs, or the input has been
    announced, so the count is zero only when nothing is left. Finished source tasks are forgotten: memory is
    proportional to the unfinished ones. Add each report once.

    Args:
        last: Index of the last stage.
        first: Index of the stage that receives the source tasks.

    Attributes:
        admitted: How many source tasks there are.
        can_restart: Whether to remember what was counted for unfinished source tasks; set it before the first
            report.
    """

    def __init__(self, last: int, first: int = 0) -> None:
        self._last, self._first = last, first
        self.can_restart = False
        # A number: it is still one task, and each stage before this one that was counted has turned it into one.
        self._open: dict[str, _Open | int] = {}
        self._announced: set[str] = set()
        self.admitted = 0

    def admit(self, source_id: str) -> None:
        """Add a source task to process. One without an id is a source stage's own, and represents all its outputs."""
        if not source_id:
            self._first = 0
        self.admitted += 1
        if self._first <= self._last:  # otherwise there is no stage after the source
            self._open[source_id] = self._first

    def announce(self, task_id: str) -> Callable[[], None]:
        """Record that the outputs of a task are passed on and may be reported before it: its source task is unfinished.

        Returns:
            A function that subtracts what was counted for its outputs until then. Nothing else may have been counted
            in between.
        """
        source_id = self.source_of(task_id)
        if source_id is None:
            return lambda: None
        known = self._known(source_id)
        known.announced += 1
        self._announced.add(task_id)
        live, failed, num_written = known.live, known.failed, len(known.written_files)

        def withdraw() -> None:
            known.live, known.failed = live, failed
            del known.written_files[num_written:]

        return withdraw

    @property
    def unfinished(self) -> list[str]:
        """The ids of the source tasks that were admitted and are not finished, in order."""
        return [*self._open]

    def on_batch(self, report: BatchReport) -> Sequence[Finished]:
        """Count a batch, and return the source tasks that it finishes."""
        stage = report.stage_index
        is_last = stage == self._last
        ids, others = report.input_ids, report.other_outcomes
        counts_all = is_last or self.can_restart
        if not (others or counts_all) or stage < self._first or report.is_retried:
            return ()
        written_files = _by_task(report.written_files) if report.written_files else {}
        if any(kind == "merged" for kind, _ in others.values()):
            self._join(report)
        finished: list[Finished] = []
        for number in range(len(ids)) if counts_all else others:
            kind, count = others.get(number, ONE_OUT)
            found = self._enter(stage, ids[number], kind, count, written_files.get(ids[number], ()))
            if found is not None:
                finished.append(found)
        return finished

    def on_columns(self, reports: ReportColumns) -> Sequence[Finished]:
        """Count ordinary batches, and return the source tasks that they finish."""
        stage, ids, others = reports.stage_index, reports.input_ids, reports.other_outcomes
        counts_all = stage == self._last or self.can_restart
        if not (others or counts_all) or stage < self._first:
            return ()
        finished = [self._enter(stage, ids[number], kind, count) for number, (kind, count) in others.items()]
        if counts_all:
            with_one = [task_id for number, task_id in enumerate(ids) if number not in others] if others else ids
            if {*map(self._open.get, with_one)} == {stage if self.can_restart else self._first}:
                finished += self._enter_sources(stage, with_one)
            else:
                finished += [self._enter(stage, task_id, *ONE_OUT) for task_id in with_one]
        return [each for each in finished if each is not None]

    def _enter_sources(self, stage: int, source_ids: Sequence[str]) -> list[Finished]:
        """Do the work of `_enter` for source tasks that are still one task each, and gave one."""
        if stage != self._last:
            self._open.update(dict.fromkeys(source_ids, stage + 1))
            return []
        # An id that occurs twice is finished once, as in `_enter`.
        return [Finished(source_id, 0, ()) for source_id in source_ids if self._open.pop(source_id, None) is not None]

    def _enter(
        self, stage: int, task_id: str, kind: OutcomeKind, count: int, written_files: Sequence[WrittenFiles] = ()
    ) -> Finished | None:
        """Count an input of a batch, and return its source task if that is finished."""
        source_id = task_id if task_id in self._open else self.source_of(task_id)
        if source_id is None:
            return None
        is_last, known = stage == self._last, self._open[source_id]
        if isinstance(known, int):
            if is_last and kind != "failed" and not written_files:  # it was the only descendant
                del self._open[source_id]
                return Finished(source_id, 0, ())
            if not is_last and (kind, count) == ONE_OUT:
                if self.can_restart:
                    self._open[source_id] = stage + 1
                return None
            known = self._known(source_id)
        if self.can_restart:
            known.enter(stage, kind, count)
        known.live += (0 if is_last else count) - 1
        if task_id in self._announced:
            self._announced.discard(task_id)
            known.announced -= 1
        known.failed += kind == "failed"
        known.written_files += written_files
        return None if known.live or known.announced else self._finish(known)

    def _known(self, source_id: str) -> _Open:
        known = self._open[source_id]
        if isinstance(known, int):
            passed = range(self._first, known) if self.can_restart else range(0)
            known = self._open[source_id] = _Open(source_id, passed)
        return known

    def _join(self, report: BatchReport) -> None:
        """Join the source tasks whose descendants went into the same tasks."""
        # A merged batch is not announced: its inputs are lists, and never outputs of a generator.
        joined = [each.task_id for each in report.inputs if each.count or each.kind == "merged"]
        source_ids = [source_id for source_id in map(self.source_of, joined) if source_id is not None]
        for source_id in source_ids[1:]:
            first, other = self._known(source_ids[0]), self._known(source_id)
            if other is not first:
                first.absorb(other)
                self._open |= dict.fromkeys(other.members, first)

    def _finish(self, known: _Open) -> Finished:
        for source_id in known.members:
            del self._open[source_id]
        source_id, *joined = known.members
        return Finished(source_id, known.failed, tuple(known.written_files), tuple(joined))

    @property
    def written_files(self) -> list[WrittenFiles]:
        """The files that the last stage reports to have written for unfinished source tasks."""
        return [each for known in self._in_progress() for each in known.written_files]

    def _in_progress(self) -> list[_Open]:
        """Return each object once, even if several source tasks share it."""
        return [*{id(known): known for known in self._open.values() if not isinstance(known, int)}.values()]

    def restart(self) -> dict[int, Tally]:
        """Restart the unfinished source tasks, and return what was counted for them, by stage."""
        totals: dict[int, Tally] = {}
        for reached, times in Counter(known for known in self._open.values() if isinstance(known, int)).items():
            for stage in range(self._first, reached):
                totals[stage] = totals.get(stage, Tally()).plus(Tally(passed=times, out=times))
        for known in self._in_progress():
            for stage, tally in known.tallies.items():
                totals[stage] = totals.get(stage, Tally()).plus(Tally(*tally))
        self._open = dict.fromkeys(self._open, self._first)
        return totals

    def source_of(self, task_id: str) -> str | None:
        """Return the source task that a task descends from; None if it is finished or was never admitted."""
        ancestor, dot = task_id, "."
        while dot:
            if ancestor in self._open:
                return ancestor
            ancestor, dot, _ = ancestor.rpartition(".")
        return "" if "" in self._open else None


def _by_task(written_files: tuple[WrittenFiles, ...]) -> dict[str, tuple[WrittenFiles, ...]]:
    found: dict[str, tuple[WrittenFiles, ...]] = {}
    for each in written_files:
        found[each.input_id] = (*found.get(each.input_id, ()), each)
    return found
