# SPDX-License-Identifier: Apache-2.0
"""Outputs that later stages make from those of a generator before the outcome of the generator's input is known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from curator_core.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self

    from curator_core._adapter.worker_state import Announce, WorkerState
    from curator_core._reports.batch import BatchReport, WorkerReport

__all__ = ["Announced", "Outputs", "Provisional"]


class Outputs(Protocol):
    """The list operations that collecting outputs needs: appending at the end, and deleting from an index on."""

    def __len__(self) -> int: ...
    def __iadd__(self, tasks: list[Any], /) -> Self: ...
    def __delitem__(self, end: slice, /) -> None: ...


class Provisional:
    """A block in which the reports of some stages wait, and the outputs of these stages can be withdrawn.

    A source task counts as finished when none of its descendants is in flight, so the report of an input must
    arrive before those of its outputs. The waiting reports are sent at the end of the block; if a signal ends it,
    they are dropped, and a later run processes the input from the start.

    Args:
        states: The stages' workers.
        outputs: Where the stages collect their outputs.
        can_withdraw: Whether these outputs may be withdrawn.
    """

    def __init__(self, states: Sequence[WorkerState], outputs: Outputs, *, can_withdraw: bool) -> None:
        self._outputs = outputs
        self._count_before = len(outputs) if can_withdraw else 0
        self._before = [(state, state.sink, state.sequence) for state in states]
        self._reports: list[tuple[Callable[[Any], None], BatchReport | WorkerReport]] = []

    def __enter__(self) -> Self:
        for state, sink, _ in self._before:
            state.sink = self._held_for(sink)
        return self

    def _held_for(self, sink: Callable[[Any], None]) -> Callable[[Any], None]:
        hold = self._reports.append
        return lambda report: hold((sink, report))

    def withdraw(self) -> None:
        """Withdraw the waiting reports and the outputs: the input has failed or will be retried."""
        self._reports.clear()
        del self._outputs[self._count_before :]
        for state, _, sequence in self._before:
            state.sequence = sequence

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for state, sink, _sequence in self._before:
            state.sink = sink
        if kind is not None and not issubclass(kind, StageError):
            return
        for sink, report in self._reports:
            sink(report)


class Announced:
    """The same in the driver, where reports of the outputs are counted at once, and subtracted if they are withdrawn.

    Args:
        announce: See `Run.announce`.
        task_id: The id of the generator's input.
        outputs: Where later stages collect their outputs.
        can_withdraw: Whether these outputs may be withdrawn.
        is_last: Whether there is no later stage, so that only the generator's own report counts them.
    """

    def __init__(
        self, announce: Announce, task_id: str, outputs: Outputs, *, can_withdraw: bool, is_last: bool
    ) -> None:
        self._is_last = is_last
        self._outputs = outputs
        self._count_before = len(outputs)
        self._withdraw = announce(task_id, can_withdraw=can_withdraw)

    def __enter__(self) -> Self:
        return self

    def withdraw(self) -> None:
        """Withdraw what was made from the outputs: the input has failed or will be retried."""
        self._withdraw()
        del self._outputs[self._count_before :]

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Keep what was counted; a generator that a signal interrupts has no report."""
        if self._is_last and kind is not None and not issubclass(kind, StageError):
            del self._outputs[self._count_before :]
