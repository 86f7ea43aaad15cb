# SPDX-License-Identifier: Apache-2.0
"""The attempts of an executor at the source tasks of a run: again on the unfinished ones after a worker died."""

from __future__ import annotations

import logging
from itertools import chain
from typing import TYPE_CHECKING, Any

from curator_core.errors import WorkerDiedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Self

    from curator_core._run.run import Run

__all__ = ["RunAttempt", "attempts"]

logger = logging.getLogger(__name__)


class RunAttempt:
    """One attempt: a block that a `WorkerDiedError` ends without leaving the loop, if another attempt follows.

    Attributes:
        tasks: The source tasks to process.
        count: How many there are; None if a source is still making them.
        restarts_left: How many attempts may follow.
        is_done: Set it once all tasks are processed: a worker that dies later is an error, because nothing can be
            repeated.
    """

    def __init__(self, tasks: Iterable[Any], count: int | None, restarts_left: int) -> None:
        self.tasks = iter(tasks)
        self.count = count
        self.restarts_left = restarts_left
        self.is_done = False
        self.ended_by: WorkerDiedError | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, traceback: object) -> bool:
        if not isinstance(exc, WorkerDiedError) or self.is_done or not self.restarts_left:
            return False
        self.ended_by = exc
        return True


def attempts(run: Run, tasks: Iterable[Any], max_restarts: int) -> Iterator[RunAttempt]:
    """See `Run.attempts`."""
    made = None if isinstance(tasks, list) else tasks
    count = len(tasks) if isinstance(tasks, list) else None
    if max_restarts:
        run.hold(tasks if isinstance(tasks, list) else ())
    for restarts_left in range(max_restarts, -1, -1):
        attempt = RunAttempt(tasks, count, restarts_left)
        yield attempt
        is_over = attempt.ended_by is None or made is None
        if not restarts_left or (is_over and not run.has_unfinished):
            return
        tasks = again = run.begin_again()
        reason = "tasks were lost" if attempt.ended_by is None else attempt.ended_by.message
        text = "%s: restarting with the %d unfinished source tasks; restarts left: %d"
        logger.warning(text, reason, len(again), restarts_left - 1)
        if made is None:
            count = len(again)
        else:
            tasks = chain(again, made)
