# SPDX-License-Identifier: Apache-2.0
"""The path that every batch takes, on every executor.

An adapter owns one copy of a stage. It sets the stage up, passes it batches, checks and names the outputs, and
reports. It knows nothing about engines: its owner decides where the reports go.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Literal

from curator_core._adapter.attempt import Attempt
from curator_core._adapter.input_copies import InputCopies
from curator_core._adapter.retry import RetryingBatch, keeps_inputs
from curator_core._adapter.source import SourceAttempt
from curator_core._adapter.streamed import RetryingStream, StreamedAttempt
from curator_core._adapter.worker_state import Announce, RunContext, WorkerClock
from curator_core._guard.user_code import check_failure, leave_fork, this_process
from curator_core._performance import Place
from curator_core._plan.compiled import CompiledStage, compile_stage
from curator_core._reports.batch import BatchReport, ErrorInfo, WorkerReport
from curator_core._reports.failures import error_info, stage_error
from curator_core.logs import StageWork, at_work
from curator_core.stages import NodeInfo, WorkerMetadata
from curator_core.tasks import SourceIds

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from curator_core._adapter.concurrent import ConcurrentAttempt
    from curator_core._calls.event_loop import EventLoop

__all__ = ["BaseStageAdapter", "is_isolated"]

_IN_SETUP, _IN_TEARDOWN = "in setup", "in teardown"


class BaseStageAdapter:
    """Runs one stage for an executor.

    Args:
        processing_stage: The stage to run. The adapter sets it up and tears it down, so pass a copy.
        compiled: The stage as the plan read it; None to read it now.

    Attributes:
        processing_stage: The stage.
        compiled: The stage, as it was read.
        context: The run that the adapter is part of.
        place: Stage name, worker id, and node id, as of the last call to ``setup`` or ``setup_on_node``.
        pid: The process id of the worker.
        sequence: Number of the next batch.
        startup_ns: How long setup took.
        clock: When its worker became idle. Stages that share a worker share the clock.
        bundle_id: The bundle that contained the current tasks; empty if they traveled individually.
        source_ids: Names the tasks that begin a lineage if the stage is a source.
        is_isolated: Whether the stage runs in a process of its own.
        sink: Called with each report.
        announce: Records that outputs are reported before their input; None outside the driver.
        streams: Whether the outputs of a generator are passed on one by one.
        takes_back: Whether the outputs of a generator that fails partway are withdrawn, because its input is retried
            or skipped.
    """

    def __init__(self, processing_stage: Any, compiled: CompiledStage | None = None) -> None:
        self.processing_stage = processing_stage
        self.compiled = compiled if compiled is not None else compile_stage(0, processing_stage)
        self.context = RunContext()
        self.sink: Callable[[BatchReport | WorkerReport], None] = _nowhere
        self.place = Place.of(self.compiled.name, WorkerMetadata().worker_id, NodeInfo().node_id)
        self.pid = os.getpid()
        self.sequence = 0
        self.startup_ns = 0
        self.clock = WorkerClock()
        self.bundle_id = ""
        self.source_ids = SourceIds()
        self.is_isolated = False
        self.streams = self.takes_back = False
        self.announce: Announce | None = None
        self._keeps_input = False
        self._loop: EventLoop | None = None

    @property
    def loop(self) -> EventLoop:
        """The worker's event loop, until `teardown`."""
        if self._loop is None:
            from curator_core._calls.event_loop import EventLoop  # noqa: PLC0415 - asyncio, which few stages need

            self._loop = EventLoop()
        return self._loop

    def bind(
        self,
        context: RunContext,
        sink: Callable[[BatchReport | WorkerReport], None],
        announce: Announce | None = None,
    ) -> None:
        """Attach the adapter to a run.

        Args:
            context: The run.
            sink: Called with each report.
            announce: See `Run.announce`. Without it, the reports about a generator's outputs wait until its input is
                reported.
        """
        self.context = context
        self.sink = sink
        compiled = self.compiled
        is_called_by_task = compiled.batch_size == 1 and not (compiled.batched or compiled.concurrency)
        # The report of the last stage names all files of its input.
        is_last_of_files = context.written_files_of == compiled.index
        self.streams = is_called_by_task and not is_last_of_files and not is_isolated(compiled, context)
        self.takes_back = context.on_error == "skip" or compiled.max_attempts > 1
        self.announce = announce
        self._keeps_input = keeps_inputs(self, 1)

    @property
    def parts_batches(self) -> bool:
        """Whether a batch that fails is split to retry its tasks separately."""
        # The ranks of an SPMD group must call the stage together, so a single rank must not split its batch.
        return self.context.on_error == "skip" and not self.compiled.engine_options.get("is_spmd")

    @property
    def worker_id(self) -> str:
        """The id of the worker."""
        return self.place.worker_id

    @property
    def node_id(self) -> str:
        """The id of the worker's node."""
        return self.place.node_id

    def move_to(self, worker_id: str, node_id: str) -> None:
        """Record the worker and node that the adapter runs on from now on."""
        self.place, self.pid = Place.of(self.compiled.name, worker_id, node_id), os.getpid()

    def current_work(self) -> StageWork:
        """Return what the stage works on outside batches, for log records."""
        return StageWork(self.context.run_id, self.compiled.name, worker_id=self.worker_id)

    # --- the life of a worker ---------------------------------------------------------------------------

    def setup_on_node(self, node_info: NodeInfo, worker_metadata: WorkerMetadata) -> None:
        """Prepare the node. Called before ``setup`` on the first worker of the node."""
        self.move_to(worker_metadata.worker_id, node_info.node_id)
        self._isolate()
        self._guarded_setup(lambda: self.processing_stage.setup_on_node(node_info, worker_metadata))

    def setup(self, worker_metadata: WorkerMetadata) -> None:
        """Prepare the worker, and report how long that took.

        Raises:
            StageError: The stage's setup raised. The failure is also reported.
        """
        self.move_to(worker_metadata.worker_id, self.node_id)
        self._isolate()
        start_unix = time.time_ns() - self.startup_ns  # node setup, if it ran here, ran just before
        self._guarded_setup(lambda: self.processing_stage.setup(worker_metadata))
        self._report_worker("ready", start_unix, self.startup_ns)
        self.clock.idle_since = time.perf_counter_ns()

    def teardown(self) -> None:
        """Let the stage release its resources. If it raises, the exception is reported but not raised."""
        start_unix, start = time.time_ns(), time.perf_counter_ns()
        error = None
        try:
            self._call(self.processing_stage.teardown)
        except BaseException as exc:  # noqa: BLE001 - reported; the work is done, so the run continues
            check_failure(exc)
            error = error_info(exc, _IN_TEARDOWN)
        finally:
            self._release_loop()
        self._report_worker("ended", start_unix, time.perf_counter_ns() - start, error)

    def _release_loop(self) -> None:
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.release()

    def _isolate(self) -> None:
        """Move the stage to a process of its own if it needs one and does not have one yet."""
        if not is_isolated(self.compiled, self.context):
            return
        from curator_core._processes import IsolatedStage  # noqa: PLC0415 - sockets and processes, which few stages need

        if not self.is_isolated:
            self.processing_stage = IsolatedStage(
                self.compiled, self.processing_stage, parts_batches=self.parts_batches
            )
            self.is_isolated = True

    def _guarded_setup(self, call: Callable[[], None]) -> None:
        start_unix, start = time.time_ns(), time.perf_counter_ns()
        try:
            self._call(call)
        except BaseException as exc:  # noqa: BLE001 - reported, and raised as a StageError
            self._release_loop()
            check_failure(exc)
            took = time.perf_counter_ns() - start
            self._report_worker("setup_failed", start_unix, took, error_info(exc, _IN_SETUP))
            raise stage_error(exc, self.compiled.name, _IN_SETUP)  # noqa: B904 - stage_error sets the cause
        self.startup_ns += time.perf_counter_ns() - start

    def _call(self, method: Callable[[], Any]) -> None:
        """Call a method of the stage, which may be a coroutine. If user code forks, the child ends here."""
        pid = this_process.pid
        try:
            with at_work(self):
                made = method()
                if made is not None and hasattr(made, "__await__"):
                    self.loop.run(made, self.current_work())
        except BaseException as exc:
            check_failure(exc, pid)
            raise
        if pid != this_process.pid:
            leave_fork()

    def _report_worker(
        self,
        event: Literal["ready", "setup_failed", "ended"],
        start_unix_ns: int,
        duration_ns: int,
        error: ErrorInfo | None = None,
    ) -> None:
        self.sink(
            WorkerReport(
                self.context.run_id,
                self.compiled.index,
                self.compiled.name,
                self.worker_id,
                self.node_id,
                self.pid,
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
            The output tasks, with the framework's state on them; empty if all inputs were dropped.

        Raises:
            StageError: The stage raised or broke the contract, and this ends the run.
        """
        if not tasks:
            return []
        if self.compiled.concurrency:
            from curator_core._adapter.concurrent import RetryingCalls  # noqa: PLC0415 - asyncio, which few stages need

            return RetryingCalls(self, tasks).run()
        if keeps_inputs(self, len(tasks)):
            return RetryingBatch(self, tasks).run()
        return self.run_attempt(Attempt(self, tasks, 1, last=True))

    def run_attempt(self, attempt: Attempt) -> list[Any]:
        """Execute an attempt at a batch, and report it.

        Raises:
            StageError: The attempt failed for good, and this ends the run.
        """
        outputs = attempt.execute()
        self.report_attempt(attempt)
        return outputs

    def report_attempt(self, attempt: Attempt) -> None:
        """Report an attempt that was executed.

        Raises:
            StageError: See `run_attempt`.
        """
        self.sink(attempt.close())
        self._raise_error(attempt)

    def run_concurrently(self, attempt: ConcurrentAttempt) -> list[Any]:
        """Execute and report an attempt, as `run_attempt` does, for a stage whose calls run concurrently."""
        outputs = attempt.execute()
        for report in attempt.reports():
            self.sink(report)
        self._raise_error(attempt)
        return outputs

    def _raise_error(self, attempt: Attempt) -> None:
        if attempt.error is not None and not attempt.comes_again and self.context.on_error == "raise":
            raise stage_error(attempt.error, self.compiled.name, attempt.doing)

    def stream_one(self, task: Any, ahead: int) -> list[Any] | Generator[Any, None, None]:
        """Run one task through a stage that `streams`, passing on the outputs of a generator as they are made.

        Args:
            task: The input.
            ahead: How many outputs to buffer before the first one is passed on, if outputs can be withdrawn.

        Returns:
            A list of the outputs, or a generator that yields `TAKEN_BACK` after the outputs of a failed attempt.

        Raises:
            StageError: See `process_batch`. Also raised while outputs are read.
        """
        copies = InputCopies.of([task], self.compiled.name) if self._keeps_input else None
        attempt = StreamedAttempt(self, task, copies=copies)
        del task  # frees it while its outputs are passed on
        outputs = attempt.execute()
        if attempt.generator is None and not attempt.comes_again:
            self.report_attempt(attempt)
            return outputs
        return RetryingStream(self, attempt).run(ahead) if self.takes_back else self.read_streamed(attempt)

    def read_streamed(self, attempt: StreamedAttempt) -> Generator[Any, None, None]:
        """Yield the outputs of an attempt, then report it."""
        try:
            yield from attempt.stream()
        finally:
            if attempt.has_ended:
                self.sink(attempt.close())
        self._raise_error(attempt)

    def process_source(self, task: Any) -> Generator[Any, None, None]:
        """Run a source on its one task, passing on each output as soon as it is made.

        The report follows when the source is exhausted or this generator is closed.

        Raises:
            StageError: See `process_batch`.
        """
        compiled = self.compiled
        is_limited = compiled.concurrency > 0 and compiled.timeout_s is not None
        if compiled.batched or compiled.max_attempts > 1 or is_limited:  # what was passed on cannot be withdrawn
            yield from self.process_batch([task])
            return
        yield from self.read_streamed(SourceAttempt(self, task))


def is_isolated(compiled: CompiledStage, context: RunContext) -> bool:
    """Whether a stage runs in a process of its own."""
    if compiled.isolated is not None:
        return compiled.isolated
    # The ranks of an SPMD group find each other through state that the engine set up in their own processes.
    return compiled.limit_by_process is not None or (context.isolates and not compiled.engine_options.get("is_spmd"))


def _nowhere(report: BatchReport | WorkerReport) -> None:
    """Drop a report: the sink of an adapter that is not attached to a run."""
