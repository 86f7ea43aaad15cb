# SPDX-License-Identifier: Apache-2.0
"""Which spans of a run are made: a budget, spent as the reports arrive.

A span that has been made cannot be taken back, and nobody knows how long a run will be. So the budget is split
beforehand: windows of activity, errors, each worker's first batch, set-ups, the slowest batch of a window, and with the
rest whole lineages, which are the batches that a source task and its descendants went through.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal
from zlib import crc32

from curator_core.observers import is_source_batch
from curator_otel.windows import plan_windows

if TYPE_CHECKING:
    from curator_core import BatchReport

__all__ = ["Lineages", "SpanBudget", "SpanReason"]

SpanReason = Literal["error", "first", "setup", "slowest", "lineage"]
"""Why a span is made: something failed, it is a worker's first batch, a set-up, the slowest of its window, or part of a
lineage that was chosen."""

_E_FOLDS = 18  # from hundreds of source tasks to ten thousand million: by how much of those the late share lasts
_FIXED = 2  # the run, and that it has started
_WINDOWS, _ERRORS, _FIRSTS, _SETUPS, _SLOWEST = 0.4, 0.1, 0.1, 0.1, 0.15  # shares of what the stages leave


class SpanBudget:
    """Admits spans below a run's stages until the budget is spent, and counts what it leaves out.

    The spans of the run and its stages are always made, and are taken off the limit beforehand.

    Args:
        limit: Spans that the run may make in all.
        num_stages: Stages of the run.

    Attributes:
        windows: How the run's time is cut into windows; their spans are paid for.
        lineages: Which batches are part of a lineage that is kept.
        left_out: For each stage, the batches and set-ups that have no span.
    """

    def __init__(self, limit: int, num_stages: int) -> None:
        free = max(0, limit - _FIXED - num_stages)
        self.windows = plan_windows(int(free * _WINDOWS), num_stages)
        self._left: dict[SpanReason, int] = {
            "error": int(free * _ERRORS),
            "first": int(free * _FIRSTS),
            "setup": int(free * _SETUPS),
            "slowest": int(free * _SLOWEST),
        }
        # What the windows of few stages do not need, lineages have.
        rest = free - self.windows.most * num_stages - sum(self._left.values())
        self.lineages = Lineages(rest, num_stages)
        self._slowest_each = self._left["slowest"] // max(1, num_stages)
        self.left_out = [0] * num_stages

    def admit_batch(self, report: BatchReport) -> SpanReason | None:
        """Why a batch has a span; None where it has none, which is counted."""
        # First of all, so that the lineage of a batch that has a span for another reason as well is whole.
        if self.lineages.admit(report):
            return "error" if report.error is not None else "lineage"
        if report.error is not None and self._take("error"):
            return "error"
        if report.sequence == 0 and self._take("first"):
            return "first"
        self.left_out[report.stage_index] += 1
        return None

    def admit_worker(self, stage: int, *, failed: bool) -> bool:
        """Whether a step in a worker's life has a span; counts it where it has none."""
        if self._take("error" if failed else "setup"):
            return True
        self.left_out[stage] += 1
        return False

    def admit_slowest(self, stage: int, window: int) -> bool:
        """Whether the slowest batch of a window has a span after all: spread over all windows that there may be."""
        most = max(1, self.windows.most)
        each = min(self._slowest_each, most)
        is_turn = window * each % most < each
        if not (is_turn and self._take("slowest")):
            return False
        self.left_out[stage] -= 1
        return True

    def _take(self, reason: SpanReason) -> bool:
        if not self._left[reason]:
            return False
        self._left[reason] -= 1
        return True


class Lineages:
    """Chooses source tasks by a hash of their ids, and with them every batch that they and what is made of them are in.

    Half of the spans go to the first tasks. The others are spread over the rest of the run, however long it will be: of
    the n-th task's kind one in n is chosen, times a constant, so that each doubling of the run costs the same. A batch
    further down is in, if one of those that made its inputs is.

    Args:
        spans: How many spans there are for it.
        num_stages: Stages of the run: the share of those that begin a lineage.
    """

    def __init__(self, spans: int, num_stages: int) -> None:
        self._entries = spans // max(1, num_stages)
        self._below = spans - self._entries
        self._late = self._entries // 2
        self._seen = 0
        self._kept = set[str]()

    def admit(self, report: BatchReport) -> bool:
        """Whether a batch is in one of the lineages, and there is a span left for it."""
        parents = report.parents
        if not self._kept.isdisjoint(parents):
            if not self._below:
                return False
            self._below -= 1
        elif not (self._entries and _begins_a_lineage(parents) and self._begins(report)):
            return False
        self._kept.add(report.batch_id)
        return True

    def _begins(self, report: BatchReport) -> bool:
        ids = report.inputs.parts[0] or (report.batch_id,)  # a replayed batch does not know its inputs
        first = ids[0]
        if not first:  # the one task that a source is given: all lineages begin below it
            return False
        self._seen += 1
        if self._entries <= self._late:
            share = self._late / _E_FOLDS / self._seen
            if crc32(first.partition(".")[0].encode("utf-8", "surrogatepass")) >= share * 2**32:
                return False
        self._entries -= 1
        return True


def _begins_a_lineage(parents: tuple[str, ...]) -> bool:
    """Whether nothing but a source made the inputs; a source that streams reports after those that it made them for."""
    return not parents or is_source_batch(parents[0])
