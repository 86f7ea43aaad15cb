# SPDX-License-Identifier: Apache-2.0
"""The one batch of a source, whose outputs are passed on as they are made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from curator_core._adapter.streamed import StreamedAttempt
from curator_core._calls.returned import as_iterable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from curator_core._adapter.worker_state import WorkerState

__all__ = ["SourceAttempt"]


class SourceAttempt(StreamedAttempt):
    """One attempt at a source: it receives its one input, and `read` yields its outputs one by one.

    Its outputs are counted on their own: they count whatever the outcome of the source, even if it is interrupted.
    """

    has_ended = True

    def __init__(self, state: WorkerState, task: Any) -> None:
        super().__init__(state, task)
        self._withdraws = False

    def _end_with(self, exc: BaseException) -> None:
        self._blame(exc)

    def _begin(self) -> Iterable[Any]:
        state = self.state
        returned = state.processing_stage.process(self.tasks[0])
        if not self.compiled.concurrency:
            return as_iterable(returned)
        from curator_core._calls.async_calls import AsyncOutputs  # noqa: PLC0415 - asyncio, which few sources need

        return AsyncOutputs(returned, state.loop, self.current_work())
