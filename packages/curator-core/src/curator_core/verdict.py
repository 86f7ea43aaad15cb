# SPDX-License-Identifier: Apache-2.0
"""Where the time of a run went, in a sentence."""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["TOO_SHORT", "Verdict", "VerdictKind"]

VerdictKind = Literal["busy", "equal", "waits", "retries", "transport", "skew", "setup", "too_short", "unclear"]
"""What a run is held up by: a stage at work, several alike, one that waits for something else than a CPU, failed
attempts, the way between stages, one batch, set-up; or that cannot be said."""


class Verdict(NamedTuple):
    """Where the time of a run went.

    Attributes:
        kind: What held it up.
        stage: The stage to look at; empty where none can be named.
        busy_ratio: Share of the run's time in which the workers of that stage were at work, 0 to 1.
        reason: Why, in words.
        advice: What to change; empty where nothing is known to help.
    """

    kind: VerdictKind
    stage: str = ""
    busy_ratio: float = 0.0
    reason: str = ""
    advice: str = ""

    def __str__(self) -> str:
        said = f"bottleneck: {self.reason}" if self.stage else self.reason
        return f"{said}; {self.advice}" if self.advice else said


TOO_SHORT = Verdict("too_short", reason="the run was too short to say what held it up")
