# SPDX-License-Identifier: Apache-2.0
"""Runs a plan in this process, as the reference for other executors, or in several processes of this machine."""

from __future__ import annotations

import logging
from contextlib import closing
from itertools import chain
from typing import TYPE_CHECKING, Any

from curator_core._adapter.adapter import BaseStageAdapter
from curator_core._adapter.chain import Chain
from curator_core._plan.groups import FusionLevel, group_stages
from curator_core._run.executor import BaseExecutor, empty_source, isolated_stages
from curator_core.errors import ExecutorError, WorkerDiedError
from curator_core.stages import NodeInfo, WorkerMetadata

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from curator_core._plan.compiled import CompiledStage
    from curator_core._plan.groups import StageGroup
    from curator_core._plan.plan import Plan
    from curator_core._run.run import Run

__all__ = ["LocalExecutor"]

logger = logging.getLogger(__name__)

_AGAIN = "%s: restarting with %d unfinished source tasks; restarts left: %d"


class LocalExecutor(BaseExecutor):
    """Runs a pipeline on this machine and returns the outputs in the order of the source.

    With one worker, everything runs in the calling thread, one source task and its descendants at a time: exceptions
    keep the user's traceback, and breakpoints work. Memory holds one source task with its descendants, less than one
    batch per stage, however many tasks the source emits, and the outputs.

    With more workers, stages run in that many processes (extra ``parallel``), and the source runs in the calling
    thread. Tasks must then pickle. The processes start when the run has work for them, and end with it. If one dies,
    all of them restart with the unfinished source tasks, and the outputs made after that come last.

    Args:
        workers: How many processes may work at once; 1 uses only the calling process.
        max_restarts: How often the processes may restart in a run. For this, the driver keeps each source task until
            it is finished; 0 keeps none.
        fuse: Whether neighboring stages share a process; see `Plan.explain`. Has no effect with one worker.
        bundle: Whether several batches are sent to a process at once. Has no effect with one worker.

    Raises:
        ExecutorError: An invalid number, or the extra is not installed.
    """

    def __init__(self, workers: int = 1, max_restarts: int = 3, *, fuse: bool = True, bundle: bool = True) -> None:
        _check_count("workers", workers, least=1, hint="use os.cpu_count() for all cores")
        _check_count("max_restarts", max_restarts, least=0, hint="use 0 to end the run when a process dies")
        if workers > 1:
            _check_installed(workers)
        self.workers = workers
        self.max_restarts = max_restarts
        self.fuse = fuse
        self.bundle = bundle
        self.in_process = workers == 1

    def sent_stages(self, plan: Plan) -> Sequence[CompiledStage]:
        """See `BaseExecutor.sent_stages`: all but the source, which runs in the driver."""
        source, following = plan.stages[: plan.has_source], plan.stages[plan.has_source :]
        return super().sent_stages(plan) if self.in_process else [*isolated_stages(source), *following]

    def run_plan(self, run: Run, sources: list[Any] | None) -> None:
        """See `BaseExecutor.run_plan`."""
        fusion = FusionLevel.EQUAL if self.fuse else FusionLevel.OFF
        groups = group_stages(run.plan.stages, fusion, has_source=sources is None) if self.workers > 1 else ()
        if sources is None and len(groups) > 1:
            self._run_from_source(run, groups)
        elif sources is not None and groups:
            run.fed = len(sources)
            if self.max_restarts:
                run.hold(sources)
            self._run_groups(run, groups, iter(sources), len(sources))
        else:
            self._run_here(run, sources)

    def _run_here(self, run: Run, sources: list[Any] | None) -> None:
        chain = Chain([self._adapter(run, compiled) for compiled in run.plan.stages], run.stop)
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

    def _run_from_source(self, run: Run, groups: Sequence[StageGroup]) -> None:
        source = self._adapter(run, run.plan.stages[0])
        alone = Chain([source])
        alone.set_up(NodeInfo(), WorkerMetadata())
        try:
            run.fed = 1
            if self.max_restarts:
                run.hold()
            with closing(run.admit(source.process_source(empty_source()))) as made:
                self._run_groups(run, groups[1:], made, None, source)
        finally:
            alone.tear_down()

    def _run_groups(
        self,
        run: Run,
        groups: Sequence[StageGroup],
        tasks: Iterator[Any],
        total: int | None,
        source: BaseStageAdapter | None = None,
    ) -> None:
        """Process tasks in worker processes; if one dies, restart them with the unfinished source tasks.

        Args:
            run: The run.
            groups: The groups of stages, without the source.
            tasks: The tasks for the first group, as they are made.
            total: How many tasks there are; None if a source makes them.
            source: That source.
        """
        from curator_core._local.scheduler import Scheduler  # noqa: PLC0415 - multiprocessing, not needed for a run in this process

        made, restarts_left = tasks, self.max_restarts
        while True:
            flow = Scheduler(run, groups, self.workers, tasks, total, bundle=self.bundle)
            try:
                flow.go()
                return
            except WorkerDiedError as exc:
                if flow.has_worked or not restarts_left:
                    raise
                reason = exc.message
            restarts_left -= 1
            again = run.begin_again()
            logger.warning(_AGAIN, reason, len(again), restarts_left)
            if source is None:
                tasks, total = iter(again), len(again)
            else:
                source.bind(run.context, run.report)  # its reports carry the new epoch
                tasks = chain(again, made)

    def _adapter(self, run: Run, compiled: CompiledStage) -> BaseStageAdapter:
        adapter = BaseStageAdapter(compiled.fresh_stage(), compiled)
        adapter.bind(run.context, run.report, run.announce)
        adapter.state.source_ids = run.new_source_ids()
        return adapter


def _check_count(field: str, value: Any, *, least: int, hint: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ExecutorError(
            f"invalid number of {field.removeprefix('max_')}",
            field=field,
            given=value,
            expected=f"a whole number, {least} or more",
            hint=hint,
        )


def _check_installed(workers: int) -> None:
    from importlib.util import find_spec  # noqa: PLC0415 - only needed with several workers

    if find_spec("loky") is None:
        raise ExecutorError(
            "more than one worker requires the package loky, which is not installed",
            field="workers",
            given=workers,
            expected="curator-core with its extra 'parallel'",
            hint="python -m pip install 'curator-core[parallel]', or use workers=1",
        )
