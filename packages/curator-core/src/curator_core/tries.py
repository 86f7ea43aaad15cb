# SPDX-License-Identifier: Apache-2.0
"""A batch for as long as there is something to try: again after a failure, then in halves until what fails is alone."""

from __future__ import annotations

import time
from random import Random
from typing import TYPE_CHECKING, Any

from curator_core.attempt import Attempt
from curator_core.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from curator_core.adapter import BaseStageAdapter

__all__ = ["Tries", "keeps_inputs"]

_MAX_DELAY_S = 30.0
_jitter = Random()  # noqa: S311 - of its own: a user's seeded sequence stays as it was, and many workers do not retry as one


def keeps_inputs(adapter: BaseStageAdapter, count: int) -> bool:
    """Whether the inputs of a batch have to be had again, should it fail.

    Args:
        adapter: Whose stage is to be called.
        count: How many inputs there are.
    """
    view, context = adapter.view, adapter.context
    if view.max_attempts > 1 or context.letter_bytes is not None:
        return True
    return context.on_error == "skip" and view.batched and count > 1


class Tries:
    """A batch, and what is to be done about it when it fails.

    As a whole it is tried ``max_attempts`` times, for exceptions of ``retry_on``. Where failures are skipped it then
    goes in halves, each tried once, so that only the tasks that fail by themselves are lost. Every attempt sees the
    inputs as they first came, arrays read-only, and leaves a report.

    Args:
        adapter: Whose stage is called.
        tasks: The inputs. Where they do not pickle there is one attempt.
    """

    def __init__(self, adapter: BaseStageAdapter, tasks: Sequence[Any]) -> None:
        self._adapter = adapter
        self._tasks = tasks
        self._snapshot = Snapshot.of(tasks, adapter.view.name)

    def run(self) -> list[Any]:
        """The outputs of what went well.

        Raises:
            StageError: The stage raised for good, and the run is to end at that.
        """
        adapter, snapshot = self._adapter, self._snapshot
        if snapshot is None:
            return adapter.run_attempt(Attempt(adapter, self._tasks, 1, last=True))
        for number in range(1, adapter.view.max_attempts):
            attempt = Attempt(adapter, snapshot.restore(), number, last=False, snapshot=snapshot)
            outputs = adapter.run_attempt(attempt)
            if not attempt.comes_again:
                return outputs
            if not isinstance(attempt.error, adapter.view.retry_on):
                return self._in_halves(snapshot, number + 1)
            self._wait(number)
        return self._last_time(snapshot, adapter.view.max_attempts)

    def _last_time(self, snapshot: Snapshot, number: int) -> list[Any]:
        """What the inputs give, or the two halves of them where they fail together."""
        attempt = Attempt(self._adapter, snapshot.restore(), number, last=True, snapshot=snapshot)
        outputs = self._adapter.run_attempt(attempt)
        return self._in_halves(snapshot, number + 1) if attempt.comes_again else outputs

    def _in_halves(self, snapshot: Snapshot, number: int) -> list[Any]:
        return [task for half in snapshot.halves() for task in self._last_time(half, number)]

    def _wait(self, number: int) -> None:
        """Let some time pass before the next attempt: half as long to as long as the delay, which doubles each time."""
        delay = min(self._adapter.view.retry_delay_s * 2 ** (number - 1), _MAX_DELAY_S)
        if delay:
            time.sleep(delay * _jitter.uniform(0.5, 1.0))
            self._adapter.clock.idle_since = time.perf_counter_ns()  # it did not wait for input
