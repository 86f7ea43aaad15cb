# SPDX-License-Identifier: Apache-2.0
"""A batch of an asynchronous stage for as long as there is something to try: again with those inputs that failed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from curator_core.concurrent_attempt import ConcurrentAttempt
from curator_core.snapshot import Snapshot
from curator_core.tries import keeps_inputs, wait_before_retry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from curator_core.adapter import BaseStageAdapter

__all__ = ["Rounds"]


class Rounds:
    """A batch whose inputs fail each by itself, and are tried again by themselves.

    An input is tried ``max_attempts`` times, for exceptions of ``retry_on``. Where failures are skipped, the inputs of
    a call of ``process_batch`` that fails for good go alone then, as often. Those of a batch that has cost a process go
    one after the other.

    Args:
        adapter: Whose stage is called.
        tasks: The inputs. Where they do not pickle, or not unpickle, there is one attempt.
    """

    def __init__(self, adapter: BaseStageAdapter, tasks: Sequence[Any]) -> None:
        self._adapter = adapter
        self._tasks = tasks

    def run(self) -> list[Any]:
        """The outputs of what went well, in the order of the inputs.

        Raises:
            StageError: A call failed for good, and the run is to end at that.
        """
        adapter, view = self._adapter, self._adapter.view
        snapshot = Snapshot.of(self._tasks, view.name) if keeps_inputs(adapter, len(self._tasks)) else None
        if snapshot is None:
            attempt = ConcurrentAttempt(adapter, self._tasks, 1, last=True, snapshot=None, call_size=view.call_size)
            return adapter.run_concurrently(attempt)
        return [task for made in self._round(snapshot, 1, view.max_attempts, view.call_size) for task in made]

    def _round(self, snapshot: Snapshot, number: int, limit: int, call_size: int) -> list[list[Any]]:
        """What each input gives, from an attempt on and up to another."""
        adapter = self._adapter
        attempt = ConcurrentAttempt(
            adapter, snapshot.restore(), number, last=number >= limit, snapshot=snapshot, call_size=call_size
        )
        outputs = adapter.run_concurrently(attempt)
        if attempt.comes_again:  # all of them: their process has died, perhaps of one of them
            limit = limit if snapshot.count == 1 else number + adapter.view.max_attempts
            return [made for part in snapshot.singles() for made in self._round(part, number + 1, limit, 1)]
        made = attempt.by_input(outputs)
        alone = [place for place in attempt.again if attempt.goes_alone(place)]
        together = [place for place in attempt.again if place not in alone]
        if together:
            wait_before_retry(adapter, number)
            self._go_on(made, snapshot, together, number, limit, call_size)
        if alone:
            self._go_on(made, snapshot, alone, number, number + adapter.view.max_attempts, 1)
        return made

    def _go_on(
        self, made: list[list[Any]], snapshot: Snapshot, places: list[int], number: int, limit: int, call_size: int
    ) -> None:
        tasks = snapshot.restore()
        again = self._round(Snapshot([tasks[place] for place in places]), number + 1, limit, call_size)
        for place, entries in zip(places, again, strict=True):
            made[place] = entries
