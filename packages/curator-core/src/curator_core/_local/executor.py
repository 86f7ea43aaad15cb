# SPDX-License-Identifier: Apache-2.0
"""The executor for this machine: runs a plan in the calling process, or in several worker processes."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

from curator_core._adapter.chain import Chain
from curator_core._numbers import is_whole
from curator_core._plan.groups import FusionLevel, group_stages
from curator_core._run.executor import BaseExecutor
from curator_core.errors import ExecutorError
from curator_core.stages import NodeInfo, WorkerMetadata

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from curator_core._run.run import Run

__all__ = ["LocalExecutor"]


class LocalExecutor(BaseExecutor):
    """Runs a pipeline on this machine and returns the outputs in the order of the source.

    With one worker, everything runs in the calling thread, one source task and its descendants at a time: exceptions
    keep the user's traceback, and breakpoints work. Memory holds one source task with its descendants, less than one
    batch per stage, however many tasks the source emits, and the outputs.

    With more workers, stages run in that many processes, and the source runs in the calling
    thread. Tasks must then be picklable. The processes start when the run has work for them, and end with it. If one
    dies, all of them restart with the unfinished source tasks, and the outputs made after that come last.

    Args:
        workers: Maximum number of processes; 1 uses only the calling process.
        max_restarts: How often the processes may restart in a run. For this, the driver keeps each source task until
            it is finished; 0 keeps none.
        fuse: Whether neighboring stages share a process; see `Plan.explain`. Has no effect with one worker.
        bundle: Whether several batches are sent to a process at once. Has no effect with one worker.

    Raises:
        ExecutorError: An invalid number.
    """

    def __init__(self, workers: int = 1, max_restarts: int = 3, *, fuse: bool = True, bundle: bool = True) -> None:
        _check_count("workers", workers, least=1, hint="pass os.cpu_count() to use all cores")
        _check_count("max_restarts", max_restarts, least=0, hint="pass 0 to end the run when a process dies")
        self.workers = workers
        self.max_restarts = max_restarts
        self.fuse = fuse
        self.bundle = bundle
        self.in_process = workers == 1

    def run_plan(self, run: Run) -> None:
        """See `BaseExecutor.run_plan`."""
        with run.source("local") as tasks:
            if self.in_process or not run.stages:
                self._run_here(run, tasks)
            else:
                self._run_in_processes(run, tasks)

    def _run_here(self, run: Run, tasks: Generator[Any, None, None]) -> None:
        chain = Chain([run.adapter(compiled) for compiled in run.stages], run.stop)
        chain.set_up(NodeInfo(), WorkerMetadata())
        try:
            with closing(tasks):  # the source ends before the stages that it feeds
                chain.run(tasks, run.outputs)
        finally:
            chain.tear_down()

    def _run_in_processes(self, run: Run, tasks: Iterable[Any]) -> None:
        from curator_core._local.scheduler import Scheduler  # noqa: PLC0415 - multiprocessing, not needed in one process

        fusion = FusionLevel.EQUAL if self.fuse else FusionLevel.OFF
        groups = group_stages(run.plan.stages, fusion, has_source=run.runs_source)[run.runs_source :]
        for attempt in run.attempts(tasks, self.max_restarts):
            with attempt:
                scheduler = Scheduler(run, groups, self.workers, attempt.tasks, attempt.count, bundle=self.bundle)
                try:
                    scheduler.run()
                finally:
                    attempt.is_done = scheduler.has_worked


def _check_count(field: str, value: Any, *, least: int, hint: str) -> None:
    if not is_whole(value, least):
        raise ExecutorError(
            f"invalid number of {field.removeprefix('max_')}",
            field=field,
            given=value,
            expected=f"a whole number, {least} or more",
            hint=hint,
        )
