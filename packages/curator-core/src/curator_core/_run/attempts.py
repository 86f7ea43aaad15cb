# SPDX-License-Identifier: Apache-2.0
"""One attempt of an executor at the source tasks of a run; another one follows if a worker dies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from curator_core.errors import WorkerDiedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

__all__ = ["RunAttempt"]


class RunAttempt:
    """A block that a `WorkerDiedError` ends without leaving the loop over the attempts, if another attempt follows.

    Attributes:
        tasks: The source tasks to process.
        count: How many there are; None if a source is still making them.
        restarts_left: How many attempts may follow.
        is_done: Set it once all tasks are processed: a worker that dies later is an error, because nothing can be
            repeated.
        died: The death that ended the block, if one did.
    """

    def __init__(self, tasks: Iterator[Any], count: int | None, restarts_left: int) -> None:
        self.tasks = tasks
        self.count = count
        self.restarts_left = restarts_left
        self.is_done = False
        self.died: WorkerDiedError | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, traceback: object) -> bool:
        if not isinstance(exc, WorkerDiedError) or self.is_done or not self.restarts_left:
            return False
        self.died = exc
        return True
