# SPDX-License-Identifier: Apache-2.0
"""Which spans of a run are made: a budget, spent as the reports arrive.

A span that has been made cannot be taken back, and nobody knows how long a run will be. So parts of the
budget are kept for what must not be crowded out by what came before it: errors, each worker's first batch,
set-ups; and a share for each stage, so that a busy first stage leaves something for the last.
"""

from __future__ import annotations

from typing import Literal

__all__ = ["SpanBudget", "SpanReason"]

SpanReason = Literal["error", "first", "setup", "rest"]
"""Why a span is worth making: something failed, it is a worker's first batch, a set-up, or none of these."""

_RESERVED_PART = 10  # a tenth of the budget for each reason but "rest"


class SpanBudget:
    """Admits spans below a run's stages until the budget is spent, and counts what it leaves out.

    The span of the run and those of its stages are always made, and are taken off the limit beforehand.

    Args:
        limit: Spans that the run may make in all.
        num_stages: Stages of the run.

    Attributes:
        left_out: For each stage, the spans that were not admitted.
        kept: Spans that were.
    """

    __slots__ = ("_any", "_own", "_reserved", "kept", "left_out")

    def __init__(self, limit: int, num_stages: int) -> None:
        free = max(0, limit - 1 - num_stages)
        part = free // _RESERVED_PART
        self._reserved: dict[str, int] = {"error": part, "first": part, "setup": part}
        rest = free - len(self._reserved) * part
        # Half of the rest is for whoever comes first, half is split between the stages.
        share = rest // 2 // num_stages if num_stages else 0
        self._own = [share] * num_stages
        self._any = rest - share * num_stages
        self.left_out = [0] * num_stages
        self.kept = 0

    def admit(self, stage: int, reason: SpanReason) -> bool:
        """Whether to make a span of this stage; counts it either way."""
        if self._reserved.get(reason):
            self._reserved[reason] -= 1
        elif self._own[stage]:
            self._own[stage] -= 1
        elif self._any:
            self._any -= 1
        else:
            self.left_out[stage] += 1
            return False
        self.kept += 1
        return True
