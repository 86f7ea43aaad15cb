# SPDX-License-Identifier: Apache-2.0
"""What a run is told beside what to run: what becomes of failures, where it resumes, whether outputs are collected."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from curator_core.deadletter.policy import DeadLetter
from curator_core.errors import ConfigurationError

if TYPE_CHECKING:
    from curator_core.checkpoint import Checkpoint
    from curator_core.shard import Shard

__all__ = ["FailurePolicy", "RunSettings"]

FailurePolicy: TypeAlias = "str | DeadLetter"
"""``"raise"`` ends the run at the first failure, ``"skip"`` drops what failed, counts it and goes on, and a
`curator_core.DeadLetter` does that and keeps each task that failed in a file of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """How a run is to be held.

    Attributes:
        on_error: What becomes of failures.
        max_failures: How many tasks may fail, as a number, or as a share of those that a stage was given, above 0 and
            below 1. More of them end the run. None ends it where a stage fails on all of its first 100 tasks;
            ``math.inf`` never does.
        checkpoint: What is kept of finished source tasks; None where a run begins from the start each time.
        collect: Whether the outputs are wanted in the driver.
        shard: Which source tasks are this run's; None for all.
        shutdown_grace_s: How long a run may take to end once its process is asked to, or something failed.

    Raises:
        ConfigurationError: A value that makes no sense.
    """

    on_error: FailurePolicy = "raise"
    max_failures: float | None = None
    checkpoint: Checkpoint | None = None
    collect: bool = True
    shard: Shard | None = None
    shutdown_grace_s: float = 10.0

    def __post_init__(self) -> None:
        if self.on_error not in ("raise", "skip") and self.letters is None:
            raise ConfigurationError(
                "there is no such failure policy",
                field="on_error",
                given=self.on_error,
                expected="'raise', 'skip' or a DeadLetter",
                hint="use 'skip' to go on after failures, DeadLetter(path) to keep the tasks that failed as well",
            )
        if self.max_failures is not None:
            self._check_limit()
        if not isinstance(self.collect, bool):
            raise ConfigurationError(
                "this does not say whether outputs are wanted",
                field="collect",
                given=self.collect,
                expected="True or False",
                hint="collect=False leaves the outputs where the last stage put them",
            )
        self._check_grace()

    def _check_grace(self) -> None:
        grace: Any = self.shutdown_grace_s
        if isinstance(grace, bool) or not isinstance(grace, int | float) or not 0 < grace < math.inf:
            raise ConfigurationError(
                "invalid time to shut down",
                field="shutdown_grace_s",
                given=grace,
                expected="seconds, a number above 0",
                hint="stay below the time after which the scheduler kills: 30 s on Kubernetes and Slurm by default",
            )

    def _check_limit(self) -> None:
        limit = self.max_failures
        is_count = isinstance(limit, int) and not isinstance(limit, bool) and limit >= 0
        if not (is_count or (isinstance(limit, float) and (0 < limit < 1 or limit == math.inf))):
            raise ConfigurationError(
                "invalid limit of failures",
                field="max_failures",
                given=limit,
                expected="a whole number, 0 or more, a share above 0 and below 1, or math.inf",
                hint="100 stops at the 101st task that fails, 0.01 where more than one in a hundred does",
            )
        if self.on_error == "raise":
            raise ConfigurationError(
                "a run that ends at its first failure has no use for a limit",
                field="max_failures",
                given=limit,
                expected='on_error="skip" or a DeadLetter beside it',
                hint="leave max_failures out, or say what becomes of failures",
            )

    @property
    def letters(self) -> DeadLetter | None:
        """Where failed tasks are kept, if they are."""
        return self.on_error if isinstance(self.on_error, DeadLetter) else None
