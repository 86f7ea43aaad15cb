# SPDX-License-Identifier: Apache-2.0
"""Runs a plan in this process: the reference that other executors are held against."""

from __future__ import annotations

from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

from curator_core.adapter import BaseStageAdapter, NodeInfo, WorkerMetadata
from curator_core.executor import BaseExecutor, Run, empty_source

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["LocalExecutor"]


class LocalExecutor(BaseExecutor):
    """Runs everything in the calling thread, one task tree at a time, in the order of the source.

    Exceptions keep the user's traceback and breakpoints work. Memory holds one tree of tasks and, for each
    stage, less than one batch, however many tasks the source emits; and the outputs.
    """

    def run_plan(self, run: Run, sources: list[Any] | None) -> None:
        """See `BaseExecutor.run_plan`."""
        with ExitStack() as stack:
            adapters = []
            for view in run.plan.stages:
                adapter = BaseStageAdapter(view.fresh_stage(), view)
                adapter.bind(run.context, run.report)
                adapters.append(adapter)
                worker = WorkerMetadata()
                adapter.setup_on_node(NodeInfo(), worker)
                adapter.setup(worker)
                stack.callback(adapter.teardown)
            if sources is None:
                run.fed = 1
                made = stack.enter_context(closing(adapters[0].process_source(empty_source())))
                _Cascade(adapters[1:], run.outputs).run(made)
            else:
                run.fed = len(sources)
                _Cascade(adapters, run.outputs).run(sources)


class _Cascade:
    """Drops each task through all the stages before it takes the next one."""

    def __init__(self, adapters: list[BaseStageAdapter], outputs: list[Any]) -> None:
        self._adapters = adapters
        self._waiting: list[list[Any]] = [[] for _ in adapters]
        self._outputs = outputs

    def run(self, tasks: Iterable[Any]) -> None:
        for task in tasks:
            self._drop(0, [task])
        for level in range(len(self._adapters)):
            self._work(level, self._waiting[level])  # the last batch of a stage may be a smaller one

    def _drop(self, level: int, tasks: list[Any]) -> None:
        if level == len(self._adapters):
            self._outputs += tasks
            return
        waiting = self._waiting[level]
        size = self._adapters[level].view.batch_size
        for task in tasks:
            waiting.append(task)
            if len(waiting) >= size:
                self._work(level, waiting)

    def _work(self, level: int, waiting: list[Any]) -> None:
        if waiting:
            batch = waiting[:]
            waiting.clear()
            outputs = self._adapters[level].process_batch(batch)
            del batch  # not to be held while what came of it goes on
            self._drop(level + 1, outputs)
