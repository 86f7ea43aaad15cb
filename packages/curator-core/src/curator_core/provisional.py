# SPDX-License-Identifier: Apache-2.0
"""What later stages make of a generator's outputs before the generator's own input has come to an outcome."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from curator_core.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self

    from curator_core.adapter import Announce, BaseStageAdapter
    from curator_core.report import BatchReport, WorkerReport

__all__ = ["Announced", "Outputs", "Provisional"]


class Outputs(Protocol):
    """What of a list is needed where outputs are left: adding at the end, and dropping from some place on."""

    def __len__(self) -> int: ...
    def __iadd__(self, tasks: list[Any], /) -> Self: ...
    def __delitem__(self, end: slice, /) -> None: ...


class Provisional:
    """A block in which the reports of some stages wait, and what they make can be dropped again.

    A source task counts as finished when nothing that came of it is under way any longer, so the report of an input
    has to be there before those of its outputs. They go on when the block is left; where that is by a signal, they are
    dropped, and the input begins from the start in a later run.

    Args:
        adapters: The stages.
        outputs: Where they leave what they make.
        may_drop: Whether that may be taken back.
    """

    def __init__(self, adapters: Sequence[BaseStageAdapter], outputs: Outputs, *, may_drop: bool) -> None:
        self._outputs = outputs
        self._count_before = len(outputs) if may_drop else 0
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
        del self._outputs[self._count_before :]
        for adapter, _, sequence in self._before:
            adapter.sequence = sequence

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for adapter, sink, _sequence in self._before:
            adapter.sink = sink
        if kind is not None and not issubclass(kind, StageError):
            return
        for sink, report in self._reports:
            sink(report)


class Announced:
    """The same in the driver, where what becomes of the outputs is entered at once, and taken back in the accounts.

    Args:
        announce: See `Run.announce`.
        task_id: The generator's input.
        outputs: Where later stages leave what they make.
        may_drop: Whether that may be taken back.
    """

    def __init__(self, announce: Announce, task_id: str, outputs: Outputs, *, may_drop: bool) -> None:
        self._outputs = outputs
        self._count_before = len(outputs)
        self._take_back = announce(task_id, may_drop=may_drop)

    def __enter__(self) -> Self:
        return self

    def take_back(self) -> None:
        """Drop what was made of the outputs: the input has failed, or is tried again."""
        self._take_back()
        del self._outputs[self._count_before :]

    def __exit__(self, *_: object) -> None:
        """What was entered stays."""
