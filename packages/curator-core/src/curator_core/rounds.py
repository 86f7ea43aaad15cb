# SPDX-License-Identifier: Apache-2.0
"""A batch of an asynchronous stage, with retries of the inputs that failed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from curator_core.concurrent_attempt import ConcurrentAttempt
from curator_core.snapshot import Snapshot
from curator_core.tries import keeps_inputs, wait_before_retry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from curator_core.adapter import BaseStageAdapter

__all__ = ["Rounds"]


class _Round(NamedTuple):
    """Inputs for the next attempt.

    Attributes:
        places: Their positions in the batch.
        snapshot: The inputs, as the stage first received them.
        number: Number of the attempt.
        limit: Number of the last attempt.
        call_size: How many tasks each call receives.
    """

    places: Sequence[int]
    snapshot: Snapshot
    number: int
    limit: int
    call_size: int


class Rounds:
    """A batch whose inputs fail and are retried individually.

    An input is tried ``max_attempts`` times, for exceptions of ``retry_on``. If failures are skipped, the inputs of a
    call of ``process_batch`` that fails for good are then tried individually, ``max_attempts`` times each; so are all
    inputs of a batch that kills a process, one after the other.

    Args:
        adapter: The adapter of the stage.
        tasks: The inputs. If they do not pickle or unpickle, there is only one attempt.
    """

    def __init__(self, adapter: BaseStageAdapter, tasks: Sequence[Any]) -> None:
        self._adapter = adapter
        self._tasks = tasks
        self._outputs: list[list[Any]] = [[] for _ in tasks]  # of each input
        self._waiting: list[_Round] = []

    def run(self) -> list[Any]:
        """Return the outputs of the inputs that did not fail, in the order of the inputs.

        Raises:
            StageError: A call failed for good, and failures end the run.
        """
        adapter, tasks, view = self._adapter, self._tasks, self._adapter.view
        snapshot = Snapshot.of(tasks, view.name) if keeps_inputs(adapter, len(tasks)) else None
        if snapshot is None:
            attempt = ConcurrentAttempt(adapter, tasks, 1, last=True, snapshot=None, call_size=view.call_size)
            return adapter.run_concurrently(attempt)
        self._waiting = [_Round(range(len(tasks)), snapshot, 1, view.max_attempts, view.call_size)]
        while self._waiting:
            self._try(self._waiting.pop())
        return [task for outputs in self._outputs for task in outputs]

    def _try(self, this: _Round) -> None:
        adapter, last = self._adapter, this.number >= this.limit
        tasks = this.snapshot.restore()
        attempt = ConcurrentAttempt(
            adapter, tasks, this.number, last=last, snapshot=this.snapshot, call_size=this.call_size
        )
        outputs = adapter.run_concurrently(attempt)
        if attempt.comes_again:
            self._try_all_again(this)
            return
        for place, made in zip(this.places, attempt.by_input(outputs), strict=True):
            self._outputs[place] = made
        if attempt.again:
            wait_before_retry(adapter, this.number)
            self._waiting.append(self._part_of(this, attempt.again)._replace(limit=this.limit))
        if attempt.alone:
            self._waiting.append(self._part_of(this, attempt.alone)._replace(call_size=1))

    def _try_all_again(self, this: _Round) -> None:
        """Retry all inputs after a failure beyond a single call, such as the death of the process of all calls."""
        if len(this.places) == 1 or not self._adapter.parts_batches:
            wait_before_retry(self._adapter, this.number)
            self._waiting.append(this._replace(number=this.number + 1))
            return
        following = [self._part_of(this, [number])._replace(call_size=1) for number in range(len(this.places))]
        self._waiting += reversed(following)

    def _part_of(self, this: _Round, numbers: Sequence[int]) -> _Round:
        """Return some inputs of a round for the next attempt; each has all its attempts left."""
        tasks = this.snapshot.restore()
        return _Round(
            [this.places[number] for number in numbers],
            Snapshot([tasks[number] for number in numbers]),
            this.number + 1,
            this.number + self._adapter.view.max_attempts,
            this.call_size,
        )
