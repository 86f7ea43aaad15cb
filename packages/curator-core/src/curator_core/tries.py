# SPDX-License-Identifier: Apache-2.0
"""A batch for as long as there is something to try: again after a failure, then in halves until what fails is alone."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from curator_core.attempt import Attempt
from curator_core.errors import ProcessDiedError, StageTimeoutError
from curator_core.failure import is_of
from curator_core.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from curator_core.adapter import BaseStageAdapter

__all__ = ["Tries", "keeps_inputs", "wait_before_retry"]

_COSTLY = (ProcessDiedError, StageTimeoutError)
_MAX_DELAY_S = 30.0
_MAX_DOUBLINGS = 60  # more would be no number of seconds


def keeps_inputs(adapter: BaseStageAdapter, count: int) -> bool:
    """Whether the inputs of a batch have to be had again, should it fail.

    Args:
        adapter: Whose stage is to be called.
        count: How many inputs there are.
    """
    view, context = adapter.view, adapter.context
    if view.max_attempts > 1 or context.letter_bytes is not None:
        return True
    # What the tasks of a batch share may be the reason: a call, or the process that all calls are made in.
    share = view.batched or (view.concurrency > 0 and adapter.is_isolated)
    return context.on_error == "skip" and share and count > 1


class Tries:
    """A batch, and what is to be done about it when it fails.

    As a whole it is tried ``max_attempts`` times, for exceptions of ``retry_on``. Where failures are skipped it then
    goes in halves, each tried once, and a task that is alone as often as a batch, so that only what fails by itself is
    lost; where it has cost a process, all its tasks go alone at once. Every attempt sees the inputs as they first came,
    and leaves a report.

    Args:
        adapter: Whose stage is called.
        tasks: The inputs. Where they do not pickle, or not unpickle, there is one attempt.
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
        if self._snapshot is None:
            return self._adapter.run_attempt(Attempt(self._adapter, self._tasks, 1, last=True))
        return self._try(self._snapshot, 1, self._adapter.view.max_attempts)

    def _try(self, snapshot: Snapshot, number: int, limit: int) -> list[Any]:
        """What some inputs give, from an attempt on and up to another; then in halves."""
        adapter = self._adapter
        while True:
            attempt = Attempt(adapter, snapshot.restore(), number, last=number >= limit, snapshot=snapshot)
            outputs = adapter.run_attempt(attempt)
            if not attempt.comes_again:
                return outputs
            if number >= limit or not is_of(attempt.error, adapter.view.retry_on):
                # What costs a process, and its set-up, is not to be repeated in ever smaller halves.
                parts = snapshot.singles() if isinstance(attempt.error, _COSTLY) else snapshot.halves()
                return [task for part in parts for task in self._try_part(part, number + 1)]
            wait_before_retry(adapter, number)
            number += 1

    def _try_part(self, part: Snapshot, number: int) -> list[Any]:
        more = self._adapter.view.max_attempts - 1 if part.count == 1 else 0  # alone, it fails by itself
        return self._try(part, number, number + more)


def wait_before_retry(adapter: BaseStageAdapter, number: int) -> None:
    """Let some time pass after an attempt: half as long to as long as the delay, which doubles each time."""
    delay = min(adapter.view.retry_delay_s * 2 ** min(number - 1, _MAX_DOUBLINGS), _MAX_DELAY_S)
    if delay:
        time.sleep(delay * _jitter())
        adapter.clock.idle_since = time.perf_counter_ns()  # it did not wait for input


def _jitter() -> float:
    """Return 0.5 to 1 at random, so that workers do not retry as one; the user's seeded random state is left alone."""
    return 0.5 + int.from_bytes(os.urandom(4)) / 2**33
