# SPDX-License-Identifier: Apache-2.0
"""Runs a plan in this process, the reference that other executors are held against, or on several of this machine."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

from curator_core.adapter import BaseStageAdapter, NodeInfo, WorkerMetadata
from curator_core.chain import Chain
from curator_core.errors import ExecutorError
from curator_core.executor import BaseExecutor, empty_source
from curator_core.fusion import group_stages

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from curator_core.executor import Run
    from curator_core.fusion import Group
    from curator_core.view import StageView

__all__ = ["LocalExecutor"]


class LocalExecutor(BaseExecutor):
    """Runs a pipeline on this machine. The outputs come in the order of the source.

    With one worker everything runs in the calling thread, one task tree at a time: exceptions keep the user's
    traceback and breakpoints work. Memory holds one tree of tasks and, for each stage, less than one batch, however
    many tasks the source emits; and the outputs.

    With more, stages run in as many processes (extra ``parallel``) and the source in the calling thread. Tasks have to
    pickle then. The processes are started for the run, when there is work for them, and are gone after it.

    Args:
        workers: How many processes may work at once; 1 for none but this one.

    Raises:
        ExecutorError: A number of workers that makes no sense, or the extra is not installed.
    """

    def __init__(self, workers: int = 1) -> None:
        if isinstance(workers, bool) or not _is_count(workers):
            raise ExecutorError(
                "this number of workers makes no sense",
                field="workers",
                given=workers,
                expected="a whole number, 1 or more",
                hint="use os.cpu_count() for all cores",
            )
        if workers > 1:
            _check_installed(workers)
        self.workers = workers
        self.in_process = workers == 1

    def run_plan(self, run: Run, sources: list[Any] | None) -> None:
        """See `BaseExecutor.run_plan`."""
        groups = group_stages(run.plan.stages, has_source=sources is None) if self.workers > 1 else ()
        if sources is None and len(groups) > 1:
            self._run_from_source(run, groups)
        elif sources is not None and groups:
            run.fed = len(sources)
            self._run_groups(run, groups, (task for task in sources), len(sources))
        else:
            self._run_here(run, sources)

    def _run_here(self, run: Run, sources: list[Any] | None) -> None:
        chain = Chain([self._adapter(run, view) for view in run.plan.stages])
        chain.set_up(NodeInfo(), WorkerMetadata())
        try:
            if sources is None:
                run.fed = 1
                with closing(run.admit(chain.adapters[0].process_source(empty_source()))) as made:
                    chain.run(made, run.outputs, level=1)
            else:
                run.fed = len(sources)
                chain.run(sources, run.outputs)
        finally:
            chain.tear_down()

    def _run_from_source(self, run: Run, groups: Sequence[Group]) -> None:
        source = self._adapter(run, run.plan.stages[0])
        chain = Chain([source])
        chain.set_up(NodeInfo(), WorkerMetadata())
        try:
            run.fed = 1
            self._run_groups(run, groups[1:], run.admit(source.process_source(empty_source())), None)
        finally:
            chain.tear_down()

    def _run_groups(
        self, run: Run, groups: Sequence[Group], tasks: Generator[Any, None, None], total: int | None
    ) -> None:
        from curator_core.processes.flow import Flow  # noqa: PLC0415 - multiprocessing, which a run in this process spares

        Flow(run, groups, self.workers, tasks, total).go()

    def _adapter(self, run: Run, view: StageView) -> BaseStageAdapter:
        adapter = BaseStageAdapter(view.fresh_stage(), view)
        adapter.bind(run.context, run.report)
        adapter.roots = run.new_names()
        return adapter


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value >= 1


def _check_installed(workers: int) -> None:
    from importlib.util import find_spec  # noqa: PLC0415 - only for who asks for processes

    if find_spec("loky") is None:
        raise ExecutorError(
            "more than one worker needs the package loky, which is not installed",
            field="workers",
            given=workers,
            expected="curator-core with its extra 'parallel'",
            hint="python -m pip install 'curator-core[parallel]', or use workers=1",
        )
