# SPDX-License-Identifier: Apache-2.0
"""An input of a stage that may return a generator, with its retries."""

from __future__ import annotations

from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

from curator_core.errors import StageError
from curator_core.streamed import TAKEN_BACK, StreamedAttempt
from curator_core.tries import wait_before_retry

if TYPE_CHECKING:
    from collections.abc import Generator

    from curator_core.adapter import BaseStageAdapter

__all__ = ["StreamedTries"]


class StreamedTries:
    """One input, tried ``max_attempts`` times for exceptions of ``retry_on``; outputs are passed on as they are made.

    Args:
        adapter: The adapter of the stage.
        attempt: The first attempt, after `execute`.
    """

    def __init__(self, adapter: BaseStageAdapter, attempt: StreamedAttempt) -> None:
        self._adapter = adapter
        self._attempt = attempt

    def run(self, ahead: int) -> list[Any] | Generator[Any, None, None]:
        """Return the outputs: a list if there are few of them, otherwise one by one.

        `TAKEN_BACK` follows the outputs of a failed attempt.

        Args:
            ahead: How many outputs are made before the first one is passed on.

        Raises:
            StageError: The stage raised for good, and failures end the run; also raised while outputs are read.
        """
        made = self._made()
        first: list[Any] = []
        for output in made:
            if output is TAKEN_BACK:
                first.clear()
                continue
            first.append(output)
            if len(first) > ahead:
                return _go_on(first, made)
        return first

    def _made(self) -> Generator[Any, None, None]:
        adapter, attempt, outputs = self._adapter, self._attempt, list[Any]()
        while True:
            if attempt.generator is not None:
                yield from adapter.read_streamed(attempt)
            else:
                adapter.report_attempt(attempt)
                yield from outputs
            if not attempt.comes_again:
                return
            wait_before_retry(adapter, attempt.number)
            attempt = StreamedAttempt(adapter, None, attempt.number + 1, snapshot=attempt.snapshot)
            outputs = attempt.execute()


def _go_on(first: list[Any], following: Generator[Any, None, None]) -> Generator[Any, None, None]:
    with closing(following):
        first.reverse()
        while first:
            try:
                yield first.pop()
            except StageError as exc:
                with suppress(StopIteration):
                    following.throw(exc)  # only the attempt knows the outcome of its input
                return
        yield from following
