# SPDX-License-Identifier: Apache-2.0
"""Windows of a stage's activity: few, however long a run is, and each exported as soon as it is over.

The length of a run is not known in advance. The length of a window is therefore a share of the elapsed time: the first
ones last a second, and those of a run that has lasted for days last hours. The values of a window are the differences
between the stage's totals at its two ends, so that windows add up exactly to the totals. A batch belongs to the window
in which its report arrived.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from curator_otel._trace.ids import random_span_id
from curator_otel._trace.totals import SUMS

if TYPE_CHECKING:
    from curator_core import BatchReport
    from curator_otel._trace.totals import StageActivity

__all__ = ["StageWindow", "Window", "WindowPlan", "plan_windows"]

MOST_WINDOWS = 60  # per stage
SHORTEST_S = 1.0
_FIRST = 4  # windows of the shortest length before they begin to grow
_LONGEST_RUN_S = 30 * 24 * 3600.0  # the windows of a stage suffice for it; the last window also covers any time after


class WindowPlan(NamedTuple):
    """How a run's time is split into windows.

    Attributes:
        most: The maximum number of windows of a stage; 0 for none.
        growth: The length of a window as a share of the elapsed time.
    """

    most: int
    growth: float

    def length_s(self, elapsed_s: float) -> float:
        """Return the length of a window that opens this long after the run's start."""
        return max(SHORTEST_S, self.growth * elapsed_s)


def plan_windows(spans: int, num_stages: int) -> WindowPlan:
    """Split the time so that no stage has more windows than its share of these spans.

    After the first few, each window multiplies the elapsed time by ``1 + growth``. The growth is chosen so that the
    remaining windows reach the longest run.
    """
    most = min(MOST_WINDOWS, spans // max(1, num_stages))
    if most < 2:  # a single window would repeat the stage's own span
        return WindowPlan(0, 0.0)
    growing = max(1, most - _FIRST)
    return WindowPlan(most, (_LONGEST_RUN_S / (_FIRST * SHORTEST_S)) ** (1 / growing) - 1)


class Window(NamedTuple):
    """A stage's activity in a window.

    Attributes:
        span_id: The id of its span, chosen when the window opens, so that a window that is written twice is one span.
        number: The number of the window in its stage, from 0.
        start_unix_ns: When the first of its batches began.
        end_unix_ns: When the last of its batches ended.
        workers: The number of workers that the batches ran on.
        slowest_ns: The duration of its longest batch.
        sums: The increase of the stage's totals since the window opened: see `SUMS`.
    """

    span_id: int
    number: int
    start_unix_ns: int
    end_unix_ns: int
    workers: int
    slowest_ns: int
    sums: dict[str, int]


class StageWindow:
    """The open window of a stage.

    Args:
        totals: The stage's totals, updated by the caller.

    Attributes:
        number: The number of the window, which is also the number of windows closed before.
        due_ns: When to close it, by the monotonic clock.
        slowest: Its longest batch.
        has_slowest: Whether that batch already has a span.
    """

    __slots__ = (
        *("_base", "_end", "_slowest_ns", "_span_id", "_start", "_totals", "_workers"),
        *("due_ns", "has_slowest", "number", "slowest"),
    )

    def __init__(self, totals: StageActivity) -> None:
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
        """Add a batch that the caller has already added to the totals."""
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
        """Return the window's values so far."""
        sums = {name: now - before for name, now, before in zip(SUMS, self._totals.sums(), self._base, strict=True)}
        return Window(
            self._span_id, self.number, self._start, self._end, len(self._workers), max(0, self._slowest_ns), sums
        )

    def close(self) -> Window:
        """Return the window's values, and open the next window."""
        window = self.read()
        self._open()
        return window
