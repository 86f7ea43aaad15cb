# SPDX-License-Identifier: Apache-2.0
"""The one path that every batch takes, on every executor.

An adapter holds one copy of a stage. It sets it up, hands it batches, checks and names what comes out, and
reports. It knows nothing of engines: whoever owns it says where the reports go.
"""

from __future__ import annotations

import os
import pickle
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from curator_core.attempt import Attempt
from curator_core.failure import error_info, stage_error
from curator_core.plan import StageView, dumps, read_stage
from curator_core.report import BatchReport, ErrorInfo, WorkerReport
from curator_core.task import root_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["BaseStageAdapter", "NodeInfo", "OnError", "RunContext", "WorkerMetadata"]

OnError: TypeAlias = Literal["raise", "skip"]


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """The machine that a worker runs on.

    Attributes:
        node_id: The engine's id of the node.
    """

    node_id: str = "local"


@dataclass(frozen=True, slots=True)
class WorkerMetadata:
    """The worker that a stage runs in.

    Attributes:
        worker_id: The engine's id of the worker.
        allocation: What the engine allotted to it, in the engine's own terms; None where it allots nothing.
    """

    worker_id: str = "local"
    allocation: Any = None


@dataclass(frozen=True, slots=True)
class RunContext:
    """What an adapter needs to know of the run that it is part of.

    Attributes:
        run_id: The run.
        on_error: ``"raise"`` ends the run at the first failure; ``"skip"`` counts it and goes on.
        epoch: How often the engine was started again within the run.
        group: The group of stages that the adapter belongs to.
    """

    run_id: str = ""
    on_error: OnError = "raise"
    epoch: int = 0
    group: int = 0


class BaseStageAdapter:
    """Runs one stage for an executor.

    Args:
        processing_stage: The stage to run. The adapter sets it up and tears it down, so give it a copy.
        view: The stage as the plan read it; read now where it is not given.
    """

    def __init__(self, processing_stage: Any, view: StageView | None = None) -> None:
        self.processing_stage = processing_stage
        self.view = view if view is not None else read_stage(0, processing_stage)
        self.context = RunContext()
        self._sink: Callable[[BatchReport | WorkerReport], None] = _nowhere
        self.worker_id = WorkerMetadata().worker_id
        self.node_id = NodeInfo().node_id
        self.sequence = 0
        self.startup_ns = 0
        self.idle_since = 0
        self._root_names: dict[str, int] = {}
        self._num_roots = 0

    def bind(self, context: RunContext, sink: Callable[[BatchReport | WorkerReport], None]) -> None:
        """Say which run this is part of, and where its reports go."""
        self.context = context
        self._sink = sink

    # --- the life of a worker ---------------------------------------------------------------------------

    def setup_on_node(self, node_info: NodeInfo, worker_metadata: WorkerMetadata) -> None:
        """Prepare the node; called before ``setup`` on its first worker."""
        self.node_id, self.worker_id = node_info.node_id, worker_metadata.worker_id
        self._guarded_setup(lambda: self.processing_stage.setup_on_node(node_info, worker_metadata))

    def setup(self, worker_metadata: WorkerMetadata) -> None:
        """Prepare the worker, and report how long that took.

        Raises:
            StageError: The stage's set-up raised; the worker's report says so as well.
        """
        self.worker_id = worker_metadata.worker_id
        start_unix = time.time_ns() - self.startup_ns  # node set-up, if it was ours, came right before
        self._guarded_setup(lambda: self.processing_stage.setup(worker_metadata))
        self._report_worker("ready", start_unix, self.startup_ns)
        self.idle_since = time.perf_counter_ns()

    def teardown(self) -> None:
        """Let the stage give back what it took. An exception there is reported and goes no further."""
        start_unix, start = time.time_ns(), time.perf_counter_ns()
        error = None
        try:
            self.processing_stage.teardown()
        except Exception as exc:  # noqa: BLE001 - the work is done; a failing clean-up must not undo it
            error = error_info(exc)
        self._report_worker("ended", start_unix, time.perf_counter_ns() - start, error)

    def _guarded_setup(self, call: Callable[[], None]) -> None:
        start_unix, start = time.time_ns(), time.perf_counter_ns()
        try:
            call()
        except (Exception, SystemExit) as exc:
            took = time.perf_counter_ns() - start
            self._report_worker("setup_failed", start_unix, took, error_info(exc))
            raise stage_error(exc, self.view.name, doing="in set-up")  # noqa: B904 - it carries its cause
        self.startup_ns += time.perf_counter_ns() - start

    def _report_worker(
        self,
        event: Literal["ready", "setup_failed", "ended"],
        start_unix_ns: int,
        duration_ns: int,
        error: ErrorInfo | None = None,
    ) -> None:
        self._sink(
            WorkerReport(
                self.context.run_id,
                self.view.index,
                self.view.name,
                self.worker_id,
                self.node_id,
                os.getpid(),
                event,
                start_unix_ns,
                duration_ns,
                error,
                self.context.epoch,
            )
        )

    # --- batches ----------------------------------------------------------------------------------------

    def process_batch(self, tasks: Sequence[Any]) -> list[Any]:
        """Run one batch through the stage.

        Args:
            tasks: The inputs, with the framework's state on them.

        Returns:
            The output tasks, with theirs. Empty where all inputs were dropped.

        Raises:
            StageError: The stage raised, or broke the contract, and the run is to end at that.
        """
        snapshot = dumps(tasks) if self.view.max_attempts > 1 else b""
        attempt = 1
        while True:
            last = attempt >= self.view.max_attempts
            run = Attempt(self, tasks, attempt, last=last)
            outputs = run.execute()
            self._sink(run.report)
            if run.error is None or (last and self.context.on_error == "skip"):
                return outputs
            if last:
                raise stage_error(run.error, self.view.name)
            # What the failed attempt did to its inputs must not be seen by the next one.
            tasks, attempt = pickle.loads(snapshot), attempt + 1  # noqa: S301 - made by ourselves just now

    def process_source(self, task: Any) -> Iterator[Any]:
        """Run a source on its one task, handing on each output as soon as it is made.

        The report follows when the source is exhausted, or is no longer listened to.

        Raises:
            StageError: As `process_batch`.
        """
        if self.view.batched:
            yield from self.process_batch([task])
            return
        run = Attempt(self, [task], attempt=1, last=True)
        try:
            yield from run.stream()
        finally:
            self._sink(run.report)
        if run.error is not None and self.context.on_error == "raise":
            raise stage_error(run.error, self.view.name)

    def name_root(self, task: Any) -> str:
        name = root_id(task, self._num_roots, self._root_names)
        self._num_roots += 1
        return name


def _nowhere(report: BatchReport | WorkerReport) -> None:
    """Where the reports of an adapter go that no run has bound."""
