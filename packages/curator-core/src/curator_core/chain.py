# SPDX-License-Identifier: Apache-2.0
"""Stages one after the other in one worker: a task drops through all of them before the next one is taken."""

from __future__ import annotations

from contextlib import ExitStack, closing, suppress
from typing import TYPE_CHECKING, Any, Protocol

from curator_core.errors import StageError
from curator_core.provisional import Announced, Provisional
from curator_core.streamed import TAKEN_BACK

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence

    from curator_core.adapter import BaseStageAdapter, NodeInfo, WorkerMetadata
    from curator_core.provisional import Outputs

__all__ = ["Chain"]

_AHEAD = 4  # batches of the following stages that a generator makes before it costs those a batch that is not full


class Stop(Protocol):
    """Whether the run has to end.

    Attributes:
        signal: What asks for that; 0 for nothing.
    """

    @property
    def signal(self) -> int: ...

    def check(self) -> None:
        """Raise what ends the run, where something asks for that."""


class Chain:
    """The adapters of a group of stages, run as one.

    Each stage keeps its batch size: tasks wait in front of it until there are as many, and those that are left when
    the input ends make a smaller batch. Memory holds one tree of tasks and, for each stage, less than one batch.

    Args:
        adapters: One for each stage, in order. They share a clock from here on.
        stop: Looked at before each batch, and each output of a generator; None where the driver sees to that.
    """

    def __init__(self, adapters: Sequence[BaseStageAdapter], stop: Stop | None = None) -> None:
        self.adapters = tuple(adapters)
        self._stop = stop
        self._waiting: list[list[Any]] = [[] for _ in adapters]
        sizes = [adapter.view.batch_size for adapter in adapters]
        self._ahead = [_AHEAD * (max(sizes[number + 1 :], default=1) - 1) for number in range(len(sizes))]
        for adapter in self.adapters[1:]:
            adapter.clock = self.adapters[0].clock

    def set_up(self, node: NodeInfo | None, worker: WorkerMetadata) -> None:
        """Set all stages up, in order; where one fails, those before it are torn down again.

        Args:
            node: The node; None where its set-up is done.
            worker: The worker.

        Raises:
            StageError: A stage's set-up raised.
        """
        with ExitStack() as done:
            for adapter in self.adapters:
                if node is not None:
                    adapter.setup_on_node(node, worker)
                adapter.setup(worker)
                done.callback(adapter.teardown)
            done.pop_all()

    def tear_down(self) -> None:
        """Tear all stages down, the last one first."""
        for adapter in reversed(self.adapters):
            adapter.teardown()

    def run(self, tasks: Iterable[Any], outputs: Outputs, level: int = 0) -> None:
        """Run tasks through all stages, or through those from a level on.

        Args:
            tasks: The tasks.
            outputs: Where to add what comes out, as soon as it does: it is there also where a later task fails.
            level: The first stage to take the tasks.

        Raises:
            StageError: A stage raised, and the run is to end at that. What was under way is dropped.
        """
        try:
            for task in tasks:
                self._drop(level, [task], outputs)
            self._work_off(level, outputs)
        finally:
            self._waiting = [[] for _ in self.adapters]

    def _drop(self, level: int, tasks: list[Any], outputs: Outputs) -> None:
        if level == len(self.adapters):
            outputs += tasks
            return
        waiting = self._waiting
        size = self.adapters[level].view.batch_size
        for task in tasks:
            waiting[level].append(task)
            if len(waiting[level]) >= size:
                self._work(level, outputs)

    def _work_off(self, level: int, outputs: Outputs) -> None:
        """Work on all that waits from a level on: the last batch of a stage may be a smaller one."""
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
        del batch  # not to be held while what came of it goes on
        if isinstance(made, list):
            self._drop(level + 1, made, outputs)
        else:
            self._read(level + 1, made, task_id, outputs)

    def _read(self, level: int, made: Generator[Any, None, None], task_id: str, outputs: Outputs) -> None:
        """Read a generator of the stage before, whose outputs may turn out not to count."""
        if self.adapters[level - 1].takes_back:
            self._work_off(level, outputs)  # what other inputs gave must not share a batch with what may be taken back
        with self._following(level, task_id, outputs) as following, closing(made):
            for task in made:
                if task is TAKEN_BACK:
                    self._waiting[level:] = [[] for _ in self.adapters[level:]]
                    following.take_back()
                    continue
                self._check_stop()
                try:
                    self._drop(level, [task], outputs)
                except StageError as exc:  # what was made counts, and the rest is not made
                    with suppress(StopIteration, StageError):
                        made.throw(exc)
                    raise

    def _check_stop(self) -> None:
        # Where signals raise, a stage may have swallowed what was raised.
        if self._stop is not None and self._stop.signal:
            self._stop.check()

    def _following(self, level: int, task_id: str, outputs: Outputs) -> Announced | Provisional:
        generating = self.adapters[level - 1]
        if generating.announce is not None:
            return Announced(generating.announce, task_id, outputs, may_drop=generating.takes_back)
        return Provisional(self.adapters[level:], outputs, may_drop=generating.takes_back)
