# SPDX-License-Identifier: Apache-2.0
"""A source's one batch: its outputs are handed on as they are made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from curator_core.returned import as_iterable
from curator_core.streamed import StreamedAttempt

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["SourceAttempt"]


class SourceAttempt(StreamedAttempt):
    """One attempt at a source, whose one input is handed to it and whose outputs are read one by one by `stream`."""

    def _begin(self) -> Iterable[Any]:
        adapter = self.adapter
        returned = adapter.processing_stage.process(self.tasks[0])
        if not self.view.concurrency:
            return as_iterable(returned)
        from curator_core.async_calls import AsyncOutputs  # noqa: PLC0415 - asyncio, which few sources need

        return AsyncOutputs(returned, adapter.loop, self.current_work())
