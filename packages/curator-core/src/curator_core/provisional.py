# SPDX-License-Identifier: Apache-2.0
"""What later stages make of a generator's outputs waits until the generator's own input has come to an outcome."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from curator_core.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self

    from curator_core.adapter import BaseStageAdapter
    from curator_core.report import BatchReport, WorkerReport

__all__ = ["Provisional"]


class Provisional:
    """A block in which the reports of some stages, and what they make in the end, wait.

    A source task counts as finished when nothing that came of it is under way any longer, so the report of an input
    has to be there before those of its outputs. They go on when the block is left; where that is by a signal, they are
    dropped, and the input begins from the start in a later run.

    Args:
        adapters: The stages.
        outputs: Where what they make goes in the end.

    Attributes:
        outputs: What they have made.
    """

    def __init__(self, adapters: Sequence[BaseStageAdapter], outputs: list[Any]) -> None:
        self.outputs: list[Any] = []
        self._into = outputs
        self._before = [(adapter, adapter.sink, adapter.sequence) for adapter in adapters]
        self._reports: list[tuple[Callable[[Any], None], BatchReport | WorkerReport]] = []

    def __enter__(self) -> Self:
        for adapter, sink, _ in self._before:
            adapter.sink = self._held_for(sink)
        return self

    def _held_for(self, sink: Callable[[Any], None]) -> Callable[[Any], None]:
        hold = self._reports.append
        return lambda report: hold((sink, report))

    def take_back(self) -> None:
        """Drop what waits: the input has failed, or is tried again."""
        self._reports.clear()
        self.outputs.clear()
        for adapter, _, sequence in self._before:
            adapter.sequence = sequence

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for adapter, sink, _sequence in self._before:
            adapter.sink = sink
        if kind is not None and not issubclass(kind, StageError):
            return
        for sink, report in self._reports:
            sink(report)
        self._into += self.outputs
