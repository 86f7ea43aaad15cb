# SPDX-License-Identifier: Apache-2.0
"""Settings of a run beyond its plan: how to handle failures, where to resume, whether to collect the outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from curator_core._dead_letter import DeadLetter
from curator_core._numbers import is_amount, is_whole
from curator_core.errors import ConfigurationError

if TYPE_CHECKING:
    from curator_core._checkpoint.settings import Checkpoint
    from curator_core._shard import Shard

__all__ = ["FailurePolicy", "RunSettings"]

FailurePolicy: TypeAlias = "str | DeadLetter"
"""``"raise"`` ends the run at the first failure, ``"skip"`` drops failed tasks, counts them, and continues, and a
`curator_core.DeadLetter` does the same and keeps each failed task in its own file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """Settings of a run.

    Attributes:
        on_error: How to handle failures.
        max_failures: How many tasks may fail, as a number, or as a share, above 0 and below 1, of a stage's input
            tasks. More failures end the run. With None, the run ends if a stage fails on all of its first 100 tasks;
            ``math.inf`` allows any number.
        checkpoint: Where finished source tasks are recorded; None starts each run from the beginning.
        collect: Whether the driver collects the outputs.
        shard: The shard of the source that this run processes; None for all source tasks.
        shutdown_grace_s: Seconds that a run may take to end after its process receives a signal or something failed.

    Raises:
        ConfigurationError: A value is invalid.
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
                "unknown failure policy",
                field="on_error",
                given=self.on_error,
                expected="'raise', 'skip', or a DeadLetter",
                hint="use 'skip' to continue after failures, or DeadLetter(path) to keep the failed tasks as well",
            )
        if self.max_failures is not None:
            self._check_limit()
        if not isinstance(self.collect, bool):
            raise ConfigurationError(
                "invalid value for collect",
                field="collect",
                given=self.collect,
                expected="True or False",
                hint="pass collect=False to leave the outputs where the last stage wrote them",
            )
        self._check_grace()

    def _check_grace(self) -> None:
        grace: Any = self.shutdown_grace_s
        if not (is_amount(grace) and grace > 0):
            raise ConfigurationError(
                "invalid grace period for shutdown",
                field="shutdown_grace_s",
                given=grace,
                expected="a number of seconds above 0",
                hint="stay below the scheduler's own grace period, by default 30 s on Kubernetes and Slurm",
            )

    def _check_limit(self) -> None:
        limit = self.max_failures
        if not (is_whole(limit, 0) or (isinstance(limit, float) and (0 < limit < 1 or limit == math.inf))):
            raise ConfigurationError(
                "invalid limit on failures",
                field="max_failures",
                given=limit,
                expected="a whole number, 0 or more, a share above 0 and below 1, or math.inf",
                hint="pass 100 to stop at the 101st failed task, or 0.01 to stop when more than 1% of the tasks fail",
            )
        if self.on_error == "raise":
            raise ConfigurationError(
                "max_failures has no effect because the run ends at its first failure",
                field="max_failures",
                given=limit,
                expected='max_failures only with on_error="skip" or a DeadLetter',
                hint='omit max_failures, or pass on_error="skip"',
            )

    @property
    def letters(self) -> DeadLetter | None:
        """The dead letters to keep failed tasks in, if they are kept."""
        return self.on_error if isinstance(self.on_error, DeadLetter) else None
