# SPDX-License-Identifier: Apache-2.0
"""Runs a plan in this process: the reference that other executors are held against."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

from curator_core.adapter import BaseStageAdapter, NodeInfo, WorkerMetadata
from curator_core.chain import Chain
from curator_core.executor import BaseExecutor, empty_source

if TYPE_CHECKING:
    from curator_core.executor import Run
    from curator_core.view import StageView

__all__ = ["LocalExecutor"]


class LocalExecutor(BaseExecutor):
    """Runs everything in the calling thread, one task tree at a time, in the order of the source.

    Exceptions keep the user's traceback and breakpoints work. Memory holds one tree of tasks and, for each
    stage, less than one batch, however many tasks the source emits; and the outputs.
    """

    def run_plan(self, run: Run, sources: list[Any] | None) -> None:
        """See `BaseExecutor.run_plan`."""
        chain = Chain([self._adapter(run, view) for view in run.plan.stages])
        chain.set_up(NodeInfo(), WorkerMetadata())
        try:
            if sources is None:
                run.fed = 1
                with closing(chain.adapters[0].process_source(empty_source())) as made:
                    chain.run(made, run.outputs, level=1)
            else:
                run.fed = len(sources)
                chain.run(sources, run.outputs)
        finally:
            chain.tear_down()

    def _adapter(self, run: Run, view: StageView) -> BaseStageAdapter:
        adapter = BaseStageAdapter(view.fresh_stage(), view)
        adapter.bind(run.context, run.report)
        return adapter
