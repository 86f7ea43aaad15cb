# SPDX-License-Identifier: Apache-2.0
"""One stage on one worker: the state that its adapter and the attempts at its batches share."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias

from curator_core._performance import Place
from curator_core.logs import StageWork
from curator_core.stages import NodeInfo, WorkerMetadata
from curator_core.tasks import SourceIds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from curator_core._calls.event_loop import EventLoop
    from curator_core._plan.compiled import CompiledStage
    from curator_core._reports.batch import BatchReport, WorkerReport

__all__ = ["Announce", "OnError", "RunContext", "WorkerClock", "WorkerState", "is_isolated"]


OnError: TypeAlias = Literal["raise", "skip"]


class Announce(Protocol):
    """See `Run.announce`."""

    def __call__(self, task_id: str, *, can_withdraw: bool) -> Callable[[], None]: ...


class RunContext(NamedTuple):
    """What an adapter needs to know about its run.

    Attributes:
        run_id: The id of the run.
        on_error: ``"raise"`` ends the run at the first failure; ``"skip"`` counts failures and continues.
        letter_bytes: Size of the largest failed task to include in a report, in bytes; None to include none.
        written_files_of: Index of the stage whose output files are reported; -1 for none.
        collect: Whether the pipeline's outputs go to the driver.
        isolates: Whether stages run in separate processes unless they opt out, because one killed a worker.
        epoch: How often the engine was restarted within the run.
        group: Index of the group of stages that the adapter belongs to.
        written: Tasks whose outputs are already in files of the last stage, and the output paths of each.
    """

    run_id: str = ""
    on_error: OnError = "raise"
    letter_bytes: int | None = None
    written_files_of: int = -1
    collect: bool = True
    isolates: bool = False
    epoch: int = 0
    group: int = 0
    written: Mapping[str, list[str]] = {}  # shared and never written to


class WorkerClock:
    """Keeps the time since which a worker is idle.

    Attributes:
        idle_since: Time since which the worker waits, in nanoseconds of ``time.perf_counter_ns``; 0 before setup.
    """

    __slots__ = ("idle_since",)

    def __init__(self) -> None:
        self.idle_since = 0


def is_isolated(compiled: CompiledStage, context: RunContext) -> bool:
    """Whether a stage runs in a process of its own."""
    if compiled.isolated is not None:
        return compiled.isolated
    # The ranks of an SPMD group find each other through state that the engine set up in their own processes.
    return compiled.limit_by_process is not None or (context.isolates and not compiled.engine_options.get("is_spmd"))


class WorkerState:
    """One stage on one worker: what the attempts at its batches share.

    Args:
        processing_stage: The stage to run.
        compiled: The stage as the plan read it.

    Attributes:
        processing_stage: The stage, or what stands in for it if it is isolated.
        compiled: The stage, as it was read.
        context: The run that the worker is part of.
        sink: Called with each report.
        skips_failures: Whether failures of the stage are counted and do not end the run.
        place: Stage name, worker id, and node id, as of the last call to ``setup`` or ``setup_on_node``.
        pid: The process id of the worker.
        sequence: Number of the next batch.
        startup_ns: How long loading the stage, with its imports, and setup took.
        clock: When the worker became idle. Stages that share a worker share the clock.
        bundle_id: The bundle that contained the current tasks; empty if they traveled individually.
        source_ids: Names the tasks that begin a lineage if the stage is a source.
        is_isolated: Whether the stage runs in a process of its own.
    """

    def __init__(self, processing_stage: Any, compiled: CompiledStage) -> None:
        self.processing_stage = processing_stage
        self.compiled = compiled
        self.enter(RunContext(), _nowhere)
        self.place = Place.of(compiled.name, WorkerMetadata().worker_id, NodeInfo().node_id)
        self.pid = os.getpid()
        self.sequence = 0
        self.startup_ns = 0
        self.clock = WorkerClock()
        self.bundle_id = ""
        self.source_ids = SourceIds()
        self.is_isolated = False
        self._loop: EventLoop | None = None

    def enter(self, context: RunContext, sink: Callable[[BatchReport | WorkerReport], None]) -> None:
        """Make the worker part of a run."""
        self.context, self.sink = context, sink
        self.skips_failures = context.on_error == "skip" or self.compiled.skips_failures

    @property
    def withdraws(self) -> bool:
        """Whether outputs of a generator that fails partway are withdrawn, because its input is retried or skipped."""
        return self.skips_failures or self.compiled.max_attempts > 1

    @property
    def splits_batches(self) -> bool:
        """Whether a batch that fails is split to retry its tasks separately."""
        # The ranks of an SPMD group must call the stage together, so a single rank must not split its batch.
        return self.skips_failures and not self.compiled.engine_options.get("is_spmd")

    @property
    def loop(self) -> EventLoop:
        """The worker's event loop, until `release_loop`."""
        if self._loop is None:
            from curator_core._calls.event_loop import EventLoop  # noqa: PLC0415 - asyncio, which few stages need

            self._loop = EventLoop()
        return self._loop

    def release_loop(self) -> None:
        """End the event loop, if there is one."""
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.release()

    def move_to(self, worker_id: str, node_id: str) -> None:
        """Record the worker and node that the stage runs on from now on."""
        self.place, self.pid = Place.of(self.compiled.name, worker_id, node_id), os.getpid()

    def current_work(self) -> StageWork:
        """Return what the stage works on outside batches, for log records."""
        return StageWork(self.context.run_id, self.compiled.name, worker_id=self.place.worker_id)


def _nowhere(report: BatchReport | WorkerReport) -> None:
    """Drop the report of a worker that is not part of a run."""
