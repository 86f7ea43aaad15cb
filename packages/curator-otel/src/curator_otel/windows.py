# SPDX-License-Identifier: Apache-2.0
"""Windows of a stage's activity: few, however long a run is, and each exported as soon as it is over.

Nobody knows beforehand how long a run will be. So a window is as long as a share of the time that has passed: the first
ones last a second, those of a run that has gone on for days last hours. What a window holds is the difference of the
stage's totals at its two ends, so that windows add up to the totals exactly. A batch belongs to the window in which its
report arrived.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from curator_otel.ids import random_span_id
from curator_otel.totals import SUMS

if TYPE_CHECKING:
    from curator_core import BatchReport
    from curator_otel.totals import StageTotals

__all__ = ["StageWindow", "Window", "WindowPlan", "plan_windows"]

MOST_WINDOWS = 60  # of a stage
SHORTEST_S = 1.0
_FIRST = 4  # windows of the shortest length, before they begin to grow
_LONGEST_RUN_S = 30 * 24 * 3600.0  # for which the windows of a stage suffice; the last one holds what comes after


class WindowPlan(NamedTuple):
    """How a run's time is cut.

    Attributes:
        most: Windows of a stage; 0 for none.
        growth: Length of a window as a share of the time that has passed.
    """

    most: int
    growth: float

    def length_s(self, elapsed_s: float) -> float:
        """How long a window is to be that opens so long after the run's start."""
        return max(SHORTEST_S, self.growth * elapsed_s)


def plan_windows(spans: int, num_stages: int) -> WindowPlan:
    """Cut the time so that no stage has more windows than its share of these spans.

    After the first few, each window makes the time that has passed ``1 + growth`` times as long: as many of them as are
    left take it from there to the longest run.
    """
    most = min(MOST_WINDOWS, spans // max(1, num_stages))
    if most < 2:  # a single window says no more than the stage's own span
        return WindowPlan(0, 0.0)
    growing = max(1, most - _FIRST)
    return WindowPlan(most, (_LONGEST_RUN_S / (_FIRST * SHORTEST_S)) ** (1 / growing) - 1)


class Window(NamedTuple):
    """What a stage did in a window.

    Attributes:
        span_id: The id of its span, chosen when it opens: one that is written twice is one span.
        number: From 0.
        start_unix_ns: When the first of its batches began.
        end_unix_ns: When the last of them ended.
        workers: How many workers they ran on.
        slowest_ns: The longest of them.
        sums: The stage's totals, less what they were when the window opened: see `SUMS`.
    """

    span_id: int
    number: int
    start_unix_ns: int
    end_unix_ns: int
    workers: int
    slowest_ns: int
    sums: dict[str, int]


class StageWindow:
    """The window of a stage that is open now.

    Args:
        totals: The stage's totals, kept by the caller.

    Attributes:
        number: Windows that were closed before this one.
        due_ns: When it is to be closed, by the monotonic clock.
        slowest: Its longest batch.
        has_slowest: Whether that has a span already.
    """

    __slots__ = (
        *("_base", "_end", "_slowest_ns", "_span_id", "_start", "_totals", "_workers"),
        *("due_ns", "has_slowest", "number", "slowest"),
    )

    def __init__(self, totals: StageTotals) -> None:
        self._totals = totals
        self.number = -1
        self._open()

    def _open(self) -> None:
        self.number += 1
        self._span_id = random_span_id()
        self.due_ns = 0
        self.slowest: BatchReport | None = None
        self.has_slowest = False
        self._slowest_ns = -1
        self._start = self._end = 0
        self._workers: set[str] = set()
        self._base = self._totals.sums()

    def note(self, report: BatchReport, *, has_span: bool) -> None:
        """A batch has arrived, which the caller has entered in the totals."""
        start, took = report.start_unix_ns, report.duration_ns
        if not self._start or start < self._start:
            self._start = start
        if start + took > self._end:
            self._end = start + took
        if took > self._slowest_ns:
            self._slowest_ns, self.slowest, self.has_slowest = took, report, has_span
        self._workers.add(report.worker_id)

    @property
    def is_empty(self) -> bool:
        """Whether no batch has arrived."""
        return not self._workers

    def read(self) -> Window:
        """What it holds so far."""
        sums = {name: now - before for name, now, before in zip(SUMS, self._totals.sums(), self._base, strict=True)}
        return Window(
            self._span_id, self.number, self._start, self._end, len(self._workers), max(0, self._slowest_ns), sums
        )

    def close(self) -> Window:
        """What it held; the next one is open then."""
        window = self.read()
        self._open()
        return window
