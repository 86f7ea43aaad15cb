# SPDX-License-Identifier: Apache-2.0
"""Where the time of a run went, in one sentence."""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["TOO_SHORT", "Verdict", "VerdictKind"]

VerdictKind = Literal["busy", "equal", "waits", "retries", "transport", "skew", "setup", "too_short", "unclear"]
"""The bottleneck of a run: a busy stage, several equally busy stages, a stage that waits for something other than a
CPU, failed attempts, transport between stages, one batch, setup; or unknown, because the run was too short or the cause
is unclear."""


class Verdict(NamedTuple):
    """Where the time of a run went.

    Attributes:
        kind: The kind of bottleneck.
        stage: The stage to look at; empty if there is no single one.
        busy_ratio: Share of the run's time in which the workers of that stage were busy, 0 to 1.
        reason: The explanation, in words.
        advice: What to change; empty if nothing is known to help.
    """

    kind: VerdictKind
    stage: str = ""
    busy_ratio: float = 0.0
    reason: str = ""
    advice: str = ""

    def __str__(self) -> str:
        said = f"bottleneck: {self.reason}" if self.stage else self.reason
        return f"{said}; {self.advice}" if self.advice else said


TOO_SHORT = Verdict("too_short", reason="run too short to find a bottleneck")
