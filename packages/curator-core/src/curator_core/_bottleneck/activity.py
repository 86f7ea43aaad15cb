# SPDX-License-Identifier: Apache-2.0
"""When the workers of a run were busy and idle: the evidence for the rules, taken from reports only.

Memory grows with the number of workers and stages, not with the number of tasks or batches.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from curator_core._bottleneck.rules import Evidence, Loner, Team

if TYPE_CHECKING:
    from collections.abc import Sequence

    from curator_core._bottleneck.rules import StageEvidence
    from curator_core._reports.batch import BatchReport, WorkerReport
    from curator_core._reports.columns import ReportColumns

__all__ = ["Activity"]

_OVERLAP = 0.1  # share of the shortest team's life by which teams that run one after the other may overlap


class Activity:
    """Records when workers were busy and idle.

    Args:
        num_stages: Number of stages.
    """

    def __init__(self, num_stages: int) -> None:
        self._workers: dict[str, _Worker] = {}
        self._durations: list[Counter[int]] = [Counter() for _ in range(num_stages)]
        self._first_start = self._last_end = 0
        self._alone = _Alone(num_stages)

    def on_batch(self, report: BatchReport) -> None:
        """Record a batch."""
        start, end = report.start_unix_ns, report.end_unix_ns
        self._durations[report.stage_index][_bucket(report.duration_ns)] += 1
        self._worker(report.worker_id).add(report, end)
        self._alone.add(report, end)
        if not self._first_start or start < self._first_start:
            self._first_start = start
        if end > self._last_end:
            self._last_end = end

    def on_columns(self, reports: ReportColumns) -> None:
        """Record ordinary batches."""
        self._durations[reports.stage_index].update(map(_bucket, reports.column("duration_ns")))
        starts, ends = [*reports.column("start_unix_ns")], [*reports.ends()]
        self._worker(reports.worker_id).add_columns(reports, starts, ends)
        self._alone.add_columns(reports, starts, ends)
        first = min(starts)
        self._first_start = min(self._first_start or first, first)
        self._last_end = max(self._last_end, *ends)

    def on_worker(self, report: WorkerReport) -> None:
        """Record an event in a worker's life."""
        worker = self._worker(report.worker_id)
        if report.event == "ended":
            worker.ended = min(worker.ended or report.start_unix_ns, report.start_unix_ns)
        elif report.event == "ready":
            worker.set_up(report)

    def evidence(self, stages: Sequence[StageEvidence]) -> Evidence:
        """Return the evidence collected so far.

        Args:
            stages: The totals of the stages; their setup and median times are filled in here.
        """
        teams = [_TeamLife(workers, self._first_start, self._last_end) for workers in self._teams()]
        lives = [team.end - team.start for team in teams]
        # Excludes time without any team, such as between a source in the driver and the start of the engine.
        work_ns = _covered([(team.start, team.end) for team in teams])
        setups: dict[int, int] = {}
        for team in teams:
            setups |= team.first.setups
        known = [
            replace(stage, setup_ns=setups.get(number, 0), median_ns=_median(durations))
            for number, (stage, durations) in enumerate(zip(stages, self._durations, strict=True))
        ]
        return Evidence(
            stages=tuple(known),
            teams=tuple(team.summary(work_ns) for team in teams),
            work_ns=work_ns,
            setup_to_end_ns=self._last_end - min([self._first_start, *self._began()]),
            in_turn=sum(lives) - work_ns <= _OVERLAP * min(lives, default=0),
            loners=self._alone.loners(),
        )

    def _began(self) -> list[int]:
        """Return when the workers began to start, if that is known."""
        return [worker.ready - worker.startup_ns for worker in self._workers.values() if worker.ready]

    def _worker(self, worker_id: str) -> _Worker:
        worker = self._workers.get(worker_id)
        if worker is None:
            worker = self._workers[worker_id] = _Worker()
        return worker

    def _teams(self) -> list[list[_Worker]]:
        """Group the workers that share stages, directly or through other workers.

        Workers that never reported a batch are skipped: some were replaced before their first batch, and in an SPMD
        group all workers work but only one reports.
        """
        teams: list[tuple[set[int], list[_Worker]]] = []
        for worker in self._workers.values():
            if not worker.stages:
                continue
            mine, members, others = set(worker.stages), [worker], []
            for stages, workers in teams:
                if stages & mine:
                    mine |= stages
                    members = workers + members
                else:
                    others.append((stages, workers))
            teams = [*others, (mine, members)]
        return [workers for _, workers in sorted(teams, key=lambda team: min(team[0]))]


class _Worker:
    """The activity of one worker."""

    __slots__ = ("busy_ns", "ended", "gap_ns", "last_end", "ready", "setups", "stages", "starved_ns", "startup_ns")

    def __init__(self) -> None:
        self.stages: set[int] = set()  # stages whose batches it ran
        self.setups: dict[int, int] = {}  # setup time by stage
        self.busy_ns = self.starved_ns = self.gap_ns = 0
        self.startup_ns = 0  # until it was ready: it loads all of its stages, and then sets them up
        self.ready = self.ended = self.last_end = 0

    def set_up(self, report: WorkerReport) -> None:
        self.setups[report.stage_index] = report.duration_ns
        if not self.stages:  # a process that sets up more stages later was ready before that
            self.ready = max(self.ready, report.start_unix_ns + report.duration_ns)
            self.startup_ns += report.duration_ns

    def add(self, report: BatchReport, end: int) -> None:
        self.stages.add(report.stage_index)
        self.busy_ns += report.duration_ns
        self.last_end = max(self.last_end, end)
        starved = _starved_ns(report.idle_ns, report.ready_unix_ns, report.start_unix_ns)
        self.starved_ns += starved
        self.gap_ns += report.idle_ns - starved

    def add_columns(self, reports: ReportColumns, starts: Sequence[int], ends: Sequence[int]) -> None:
        self.stages.add(reports.stage_index)
        self.busy_ns += reports.total("duration_ns")
        self.last_end = max(self.last_end, *ends)
        starved = sum(map(_starved_ns, reports.column("idle_ns"), reports.column("ready_unix_ns"), starts))
        self.starved_ns += starved
        self.gap_ns += reports.total("idle_ns") - starved


def _starved_ns(idle_ns: int, ready_unix_ns: int, start_unix_ns: int) -> int:
    """Return how much of its idle time a worker waited for inputs that were not made yet."""
    # If the ready time is unknown, the inputs came from the driver and were ready all along.
    return min(idle_ns, max(0, ready_unix_ns - (start_unix_ns - idle_ns)))


class _TeamLife:
    """The time in which the workers of a team could have worked, limited to the time of the run's batches.

    Args:
        workers: The workers.
        first: Start of the first batch of the run.
        last: End of the last batch of the run.
    """

    def __init__(self, workers: Sequence[_Worker], first: int, last: int) -> None:
        self.workers = workers
        self.first = min(workers, key=lambda worker: worker.ready)
        some_ended = any(worker.ended for worker in workers)
        starts, ends = [], []
        for worker in workers:
            # If others in the team ended and this one did not, it was killed at an unknown time after its last batch.
            end = worker.ended or (worker.last_end if some_ended else last)
            starts.append(min(max(worker.ready, first), last))
            ends.append(min(max(end, starts[-1]), last))
        self.start, self.end = min(starts), max(ends)
        self.alive = sum(ends) - sum(starts)

    def summary(self, work_ns: int) -> Team:
        stages = tuple(sorted(set[int]().union(*(worker.stages for worker in self.workers))))
        if not self.alive:
            return Team(stages, len(self.workers), 0.0)
        own = self._share(sum(worker.busy_ns for worker in self.workers))
        of_run = (self.end - self.start) / work_ns  # a team that has ended does not delay the others
        return Team(
            stages=stages,
            workers=len(self.workers),
            use=own * of_run,
            own_use=own,
            starved=self._share(sum(worker.starved_ns for worker in self.workers)),
            gap=self._share(sum(worker.gap_ns for worker in self.workers)) * of_run,
        )

    def _share(self, ns: int) -> float:
        return min(1.0, ns / self.alive)


class _Alone:
    """Finds, for each stage, the batch that ran alone the longest: no other worker was busy in that time.

    Reports arrive roughly in the order in which batches end. When a report arrives, the last ends of the other workers
    show since when its batch ran alone; a later report of an overlapping batch shortens that time. A batch whose report
    arrives after that of a later batch elsewhere, as can happen in a bundle, is not found. Neither is a worker's first
    batch, which loads, warms up, and compiles.
    """

    __slots__ = ("_found", "_last", "_last_worker", "_reach", "_second")

    def __init__(self, num_stages: int) -> None:
        self._found: list[_Span | None] = [None] * num_stages
        self._reach = 0  # the latest end of the batches found
        self._last = self._second = 0  # the latest end of any worker, and of any worker but that one
        self._last_worker = ""

    def add(self, report: BatchReport, end: int) -> None:
        worker, start = report.worker_id, report.start_unix_ns
        if start < self._reach:
            self._withdraw(worker, start, end)
        since = max(start, self._last_of_others(worker))
        if report.sequence and end - since > self._longest(report.stage_index):
            self._find(_Span(report, since, end))
        self._note_end(worker, end)

    def add_columns(self, reports: ReportColumns, starts: Sequence[int], ends: Sequence[int]) -> None:
        worker, stage = reports.worker_id, reports.stage_index
        if min(starts) < self._reach:
            for start, end in zip(starts, ends, strict=True):
                self._withdraw(worker, start, end)
        others = self._last_of_others(worker)  # the batches of one worker do not change it
        alone = [
            end - max(start, others) if sequence else -1
            for sequence, start, end in zip(reports.column("sequence"), starts, ends, strict=True)
        ]
        if max(alone) > self._longest(stage):
            number = alone.index(max(alone))
            self._find(_Span(reports.row(number), max(starts[number], others), ends[number]))
        self._note_end(worker, max(ends))

    def _last_of_others(self, worker: str) -> int:
        return self._second if worker == self._last_worker else self._last

    def _longest(self, stage: int) -> int:
        found = self._found[stage]
        return -1 if found is None else found.length

    def _find(self, span: _Span) -> None:
        self._found[span.report.stage_index] = span
        self._reach = max(self._reach, span.until)

    def _note_end(self, worker: str, end: int) -> None:
        if worker == self._last_worker:
            self._last = max(self._last, end)
        elif end > self._last:
            self._last, self._second, self._last_worker = end, self._last, worker
        else:
            self._second = max(self._second, end)

    def _withdraw(self, worker: str, start: int, end: int) -> None:
        for found in self._found:
            if found is not None and worker != found.report.worker_id:
                found.lose(start, end)

    def loners(self) -> tuple[Loner, ...]:
        return tuple(found.loner() for found in self._found if found is not None and found.report.input_ids)


class _Span:
    """A batch, and the time in which it ran alone."""

    __slots__ = ("report", "since", "until")

    def __init__(self, report: BatchReport, since: int, until: int) -> None:
        self.report, self.since, self.until = report, since, until

    @property
    def length(self) -> int:
        return self.until - self.since

    def lose(self, start: int, end: int) -> None:
        """Remove the time of another batch: keep the longer of the times before and after it."""
        if start >= self.until or end <= self.since:
            return
        if self.until - end > start - self.since:
            self.since = end
        else:
            self.until = max(self.since, start)

    def loner(self) -> Loner:
        report = self.report
        return Loner(report.stage_index, report.duration_ns, self.length, report.num_in, report.input_ids[0])


def _covered(spans: list[tuple[int, int]]) -> int:
    """Return the length of the union of the spans."""
    covered = reached = 0
    for start, end in sorted(spans):
        covered += max(0, end - max(start, reached))
        reached = max(reached, end)
    return covered


# --- durations, in four buckets per power of two --------------------------------------------------------------


def _bucket(ns: int) -> int:
    shift = max(0, ns.bit_length() - 3)
    return shift << 3 | ns >> shift


def _end_of(bucket: int) -> int:
    return ((bucket & 7) + 1) << (bucket >> 3)


def _median(durations: Counter[int]) -> int:
    left = (durations.total() + 1) // 2
    for bucket in sorted(durations):
        left -= durations[bucket]
        if left <= 0:
            return _end_of(bucket)
    return 0
