# SPDX-License-Identifier: Apache-2.0
"""A batch with its retries: again after a failure, then in halves until the failing task is alone."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from curator_core._adapter.attempt import Attempt
from curator_core._adapter.input_copies import InputCopies
from curator_core._reports.failures import is_of
from curator_core.errors import ProcessDiedError, StageTimeoutError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from curator_core._adapter.worker_state import WorkerState

__all__ = ["RetryingBatch", "keeps_inputs", "wait_before_retry"]

_COSTLY = (ProcessDiedError, StageTimeoutError)
_MAX_DELAY_S = 30.0
_MAX_DOUBLINGS = 60  # of the delay; many more would overflow a float


def keeps_inputs(state: WorkerState, count: int) -> bool:
    """Whether the inputs of a batch must be kept, to be restored if it fails.

    Args:
        state: The worker.
        count: How many inputs there are.
    """
    compiled, context = state.compiled, state.context
    if compiled.max_attempts > 1 or context.letter_bytes is not None:
        return True
    # The tasks of a batch may fail because of something they share: one call, or the process that makes all calls.
    share = compiled.batched or (compiled.concurrency > 0 and state.is_isolated)
    return state.skips_failures and share and count > 1


class RetryingBatch:
    """A batch, with retries after failures.

    The whole batch is tried ``max_attempts`` times, for exceptions of ``retry_on``. If failures are skipped, it is then
    split in half and each half is tried once, down to single tasks, which are tried ``max_attempts`` times, so that
    only tasks that fail on their own are lost; if the batch has killed a process, all its tasks are tried individually
    right away. Every attempt gets the inputs as the stage first received them, and leaves a report.

    Args:
        state: The worker.
        tasks: The inputs. If they do not pickle or unpickle, there is only one attempt.
    """

    def __init__(self, state: WorkerState, tasks: Sequence[Any]) -> None:
        self._state = state
        self._tasks = tasks
        self._copies = InputCopies.of(tasks, state.compiled.name)

    def run(self) -> list[Any]:
        """Return the outputs of the inputs that did not fail.

        Raises:
            StageError: The stage raised for good, and failures end the run.
        """
        if self._copies is None:
            return Attempt(self._state, self._tasks, 1, last=True).run()
        return self._try(self._copies, 1, self._state.compiled.max_attempts)

    def _try(self, copies: InputCopies, number: int, limit: int) -> list[Any]:
        """Return the outputs of some inputs, tried from one attempt number to another, and then in halves."""
        state = self._state
        while True:
            attempt = Attempt(state, copies.restore(), number, last=number >= limit, copies=copies)
            outputs = attempt.run()
            if not attempt.comes_again:
                return outputs
            if number >= limit or not is_of(attempt.error, state.compiled.retry_on):
                # A failure that costs a process and its setup must not be repeated in ever smaller halves.
                pieces = copies.singles() if isinstance(attempt.error, _COSTLY) else copies.halves()
                return [task for piece in pieces for task in self._try_piece(piece, number + 1)]
            wait_before_retry(state, number)
            number += 1

    def _try_piece(self, piece: InputCopies, number: int) -> list[Any]:
        more = self._state.compiled.max_attempts - 1 if piece.count == 1 else 0  # a single task fails on its own
        return self._try(piece, number, number + more)


def wait_before_retry(state: WorkerState, number: int) -> None:
    """Wait after an attempt, for half to all of the delay, which doubles each time."""
    delay = min(state.compiled.retry_delay_s * 2 ** min(number - 1, _MAX_DOUBLINGS), _MAX_DELAY_S)
    if delay:
        time.sleep(delay * _jitter())
        state.clock.idle_since = time.perf_counter_ns()  # this was not a wait for input


def _jitter() -> float:
    """Return 0.5 to 1 at random, so that workers do not retry together; the user's seeded random state is not used."""
    return 0.5 + int.from_bytes(os.urandom(4)) / 2**33
