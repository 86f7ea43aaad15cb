# SPDX-License-Identifier: Apache-2.0
"""Decides which spans of a run are written: a budget that is spent as reports arrive.

A span cannot be withdrawn, and the length of a run is not known in advance. The budget is therefore split beforehand:
windows of activity, errors, each worker's first batch, setups, the slowest batch of each window, and, with the rest,
whole lineages, which are all batches that a source task and its descendants went through.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal
from zlib import crc32

from curator_core.observers import is_source_batch
from curator_otel._trace.windows import plan_windows

if TYPE_CHECKING:
    from curator_core import BatchReport

__all__ = ["Lineages", "SpanBudget", "SpanReason"]

SpanReason = Literal["error", "first", "setup", "slowest", "lineage"]
"""Why a span is written: an error, a worker's first batch, a setup, the slowest batch of its window, or a batch of a
chosen lineage."""

_E_FOLDS = 18  # the late share lasts while the number of source tasks grows by e**18, from hundreds to ten billion
_FIXED = 2  # the span of the run, and the span that says that it has started
_WINDOWS, _ERRORS, _FIRSTS, _SETUPS, _SLOWEST = 0.4, 0.1, 0.1, 0.1, 0.15  # shares of the remaining spans


class SpanBudget:
    """Admits spans below a run's stages until the budget is spent, and counts the spans that it does not admit.

    The spans of the run and its stages are always written and are subtracted from the limit first.

    Args:
        limit: The maximum number of spans of the run.
        num_stages: The number of stages of the run.

    Attributes:
        windows: How the run's time is split into windows, whose spans are part of the budget.
        lineages: Decides which batches belong to a chosen lineage.
        left_out: For each stage, the number of batches and setups that have no span.
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
        # Lineages get the spans that the windows of a few stages do not need.
        rest = free - self.windows.most * num_stages - sum(self._left.values())
        self.lineages = Lineages(rest, num_stages)
        self._slowest_each = self._left["slowest"] // max(1, num_stages)
        self.left_out = [0] * num_stages

    def admit_batch(self, report: BatchReport) -> SpanReason | None:
        """Return why a batch gets a span, or None if it gets none, which is counted."""
        # Lineages come first, so that they are complete even if a batch gets a span for another reason too.
        if self.lineages.admit(report):
            return "error" if report.error is not None else "lineage"
        if report.error is not None and self._take("error"):
            return "error"
        if report.sequence == 0 and self._take("first"):
            return "first"
        self.left_out[report.stage_index] += 1
        return None

    def admit_worker(self, stage: int, *, failed: bool) -> bool:
        """Whether a worker's setup or failed teardown gets a span; counts it if not."""
        if self._take("error" if failed else "setup"):
            return True
        self.left_out[stage] += 1
        return False

    def admit_slowest(self, stage: int, window: int) -> bool:
        """Whether the slowest batch of a window gets a span after all; evenly spread over all possible windows."""
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
    """Chooses source tasks by a hash of their ids, and admits every batch of these tasks and their descendants.

    Half of the spans go to the first tasks. The others are spread over the rest of the run, whatever its length: the
    n-th task is chosen with a probability proportional to 1/n, so that each doubling of the run costs the same number
    of spans. A batch further down belongs to a lineage if one of the batches that made its inputs does.

    Args:
        spans: The number of spans for lineages.
        num_stages: The number of stages of the run; one span in this many can begin a lineage.
    """

    def __init__(self, spans: int, num_stages: int) -> None:
        self._entries = spans // max(1, num_stages)
        self._below = spans - self._entries
        self._late = self._entries // 2
        self._seen = 0
        self._kept = set[str]()

    def admit(self, report: BatchReport) -> bool:
        """Whether a batch belongs to one of the lineages, and a span is left for it."""
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
        ids = report.input_ids or (report.batch_id,)  # a replayed batch does not know its inputs
        first = ids[0]
        if not first:  # the empty task for a source: all lineages begin below it
            return False
        self._seen += 1
        if self._entries <= self._late:
            share = self._late / _E_FOLDS / self._seen
            if crc32(first.partition(".")[0].encode("utf-8", "surrogatepass")) >= share * 2**32:
                return False
        self._entries -= 1
        return True


def _begins_a_lineage(parents: tuple[str, ...]) -> bool:
    """Whether the inputs came from the caller or a source. A streaming source reports after the batches it feeds."""
    return not parents or is_source_batch(parents[0])
