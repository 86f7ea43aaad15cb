# SPDX-License-Identifier: Apache-2.0
"""An input of a stage that may return a generator, for as long as there is something to try."""

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
    """One input, tried ``max_attempts`` times for exceptions of ``retry_on``; its outputs go on as they are made.

    Args:
        adapter: Whose stage is called.
        attempt: The first attempt, after `execute`.
    """

    def __init__(self, adapter: BaseStageAdapter, attempt: StreamedAttempt) -> None:
        self._adapter = adapter
        self._attempt = attempt

    def run(self, ahead: int) -> list[Any] | Generator[Any, None, None]:
        """Return the outputs: a list where there are few of them, else one by one.

        `TAKEN_BACK` follows those of an attempt that failed.

        Args:
            ahead: How many of them are made before the first one goes on.

        Raises:
            StageError: The stage raised for good, and the run is to end at that; also while outputs are read.
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
                    following.throw(exc)  # it is the one to know what becomes of its input
                return
        yield from following
