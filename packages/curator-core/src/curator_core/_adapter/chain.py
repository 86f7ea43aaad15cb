# SPDX-License-Identifier: Apache-2.0
"""Consecutive stages in one worker: a task passes through all of them before the next one is taken."""

from __future__ import annotations

from contextlib import ExitStack, closing, suppress
from typing import TYPE_CHECKING, Any, Protocol

from curator_core._adapter.provisional import Announced, Provisional
from curator_core._adapter.streamed import WITHDRAWN
from curator_core.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence

    from curator_core._adapter.adapter import BaseStageAdapter
    from curator_core._adapter.provisional import Outputs
    from curator_core.stages import NodeInfo, WorkerMetadata

__all__ = ["Chain"]

_AHEAD = 4  # batches of the later stages that a generator fills before it may cost those stages a partial batch


class Stop(Protocol):
    """Tells whether the run has to stop.

    Attributes:
        signal: The signal, or another number that is not 0, that stops it; 0 for none.
    """

    @property
    def signal(self) -> int: ...

    def check(self) -> None:
        """Raise the exception that ends the run, if it has to stop."""


class Chain:
    """The adapters of a group of stages, run as one.

    Each stage keeps its batch size: tasks wait in front of it until they fill a batch, and those left when the input
    ends make a smaller batch. `ConcurrentAttempt` divides the batch of an asynchronous stage into calls. Memory has
    the tasks made from one input and, for each stage, less than one batch.

    Args:
        adapters: One for each stage, in order. From now on they share a clock.
        stop: Checked before each batch, and for each output of a generator; None if the driver does this.
    """

    def __init__(self, adapters: Sequence[BaseStageAdapter], stop: Stop | None = None) -> None:
        self.adapters = tuple(adapters)
        self._stop = stop
        self._waiting: list[list[Any]] = [[] for _ in adapters]
        self._sizes = sizes = [adapter.compiled.batch_size for adapter in adapters]
        self._ahead = [_AHEAD * (max(sizes[number + 1 :], default=1) - 1) for number in range(len(sizes))]
        for adapter in self.adapters[1:]:
            adapter.state.clock = self.adapters[0].state.clock

    def set_up(self, node: NodeInfo | None, worker: WorkerMetadata) -> None:
        """Set up all stages in order. If one fails, tear down those before it.

        Args:
            node: The node; None if it is already set up.
            worker: The worker.

        Raises:
            StageError: A stage's setup raised.
        """
        with ExitStack() as done:
            for adapter in self.adapters:
                if node is not None:
                    adapter.setup_on_node(node, worker)
                adapter.setup(worker)
                done.callback(adapter.teardown)
            done.pop_all()

    def tear_down(self) -> None:
        """Tear down all stages, the last one first."""
        for adapter in reversed(self.adapters):
            adapter.teardown()

    def run(self, tasks: Iterable[Any], outputs: Outputs) -> None:
        """Run tasks through all stages.

        Args:
            tasks: The tasks.
            outputs: Collects each output as soon as it is made, so that it is there even if a later task fails.

        Raises:
            StageError: A stage raised, and this ends the run. Tasks in flight are dropped.
        """
        try:
            for task in tasks:
                self._pass_on(0, [task], outputs)
            self._work_off(0, outputs)
        finally:
            self._waiting = [[] for _ in self.adapters]

    def _pass_on(self, level: int, tasks: list[Any], outputs: Outputs) -> None:
        if level == len(self.adapters):
            outputs += tasks
            return
        waiting = self._waiting
        size = self._sizes[level]
        for task in tasks:
            waiting[level].append(task)
            if len(waiting[level]) >= size:
                self._work(level, outputs)

    def _work_off(self, level: int, outputs: Outputs) -> None:
        """Process all waiting tasks from a level on. The last batch of a stage may be smaller."""
        for each in range(level, len(self.adapters)):
            self._work(each, outputs)

    def _work(self, level: int, outputs: Outputs) -> None:
        batch = self._waiting[level]
        if not batch:
            return
        self._check_stop()
        self._waiting[level] = []
        adapter, task_id = self.adapters[level], batch[0].task_id
        made = adapter.stream_one(batch[0], self._ahead[level]) if adapter.streams else adapter.process_batch(batch)
        del batch  # frees the inputs while the outputs are passed on
        if isinstance(made, list):
            self._pass_on(level + 1, made, outputs)
        else:
            self._read(level + 1, made, task_id, outputs)

    def _read(self, level: int, made: Generator[Any, None, None], task_id: str, outputs: Outputs) -> None:
        """Read a generator of the previous stage, whose outputs may be withdrawn."""
        if self.adapters[level - 1].state.withdraws:
            self._work_off(level, outputs)  # outputs of other inputs must not share a batch with those
        with self._following(level, task_id, outputs) as following, closing(made):
            for task in made:
                if task is WITHDRAWN:
                    self._waiting[level:] = [[] for _ in self.adapters[level:]]
                    following.withdraw()
                    continue
                self._check_stop()
                try:
                    self._pass_on(level, [task], outputs)
                except StageError as exc:  # outputs made so far count, and the rest is not made
                    with suppress(StopIteration, StageError):
                        made.throw(exc)
                    raise

    def _check_stop(self) -> None:
        # In a process where signals raise, a stage may have swallowed the exception.
        if self._stop is not None and self._stop.signal:
            self._stop.check()

    def _following(self, level: int, task_id: str, outputs: Outputs) -> Announced | Provisional:
        generating = self.adapters[level - 1]
        withdraws = generating.state.withdraws
        if generating.announce is not None:
            is_last = level == len(self.adapters)
            return Announced(generating.announce, task_id, outputs, can_withdraw=withdraws, is_last=is_last)
        return Provisional([each.state for each in self.adapters[level:]], outputs, can_withdraw=withdraws)
