# SPDX-License-Identifier: Apache-2.0
"""The path that every batch takes, on every executor.

An adapter owns one copy of a stage. It sets the stage up, passes it batches, checks and names the outputs, and
reports. It knows nothing about engines: its owner decides where the reports go.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal

from curator_core._adapter.attempt import Attempt
from curator_core._adapter.input_copies import InputCopies
from curator_core._adapter.retry import RetryingBatch, keeps_inputs
from curator_core._adapter.source import SourceAttempt
from curator_core._adapter.streamed import RetryingStream, StreamedAttempt
from curator_core._adapter.worker_state import Announce, RunContext, WorkerState, is_isolated
from curator_core._guard.user_code import check_failure, leave_fork, this_process
from curator_core._plan.compiled import CompiledStage, compile_stage
from curator_core._reports.batch import BatchReport, ErrorInfo, WorkerReport
from curator_core._reports.failures import error_info, stage_error
from curator_core.logs import at_work

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from curator_core.stages import NodeInfo, WorkerMetadata


__all__ = ["BaseStageAdapter"]

_IN_SETUP, _IN_TEARDOWN = "in setup", "in teardown"


class BaseStageAdapter:
    """Runs one stage for an executor.

    Args:
        processing_stage: The stage to run. The adapter sets it up and tears it down, so pass a copy.
        compiled: The stage as the plan read it; None to read it now.

    Attributes:
        state: The stage and its worker, as the attempts at batches see them.
        announce: Records that outputs are reported before their input; None outside the driver.
        streams: Whether the outputs of a generator are passed on one by one.
    """

    def __init__(self, processing_stage: Any, compiled: CompiledStage | None = None) -> None:
        compiled = compiled if compiled is not None else compile_stage(0, processing_stage)
        self.state = WorkerState(processing_stage, compiled)
        self.announce: Announce | None = None
        self.streams = False
        self._keeps_input = False

    @property
    def processing_stage(self) -> Any:
        """The stage."""
        return self.state.processing_stage

    @property
    def compiled(self) -> CompiledStage:
        """The stage, as the plan read it."""
        return self.state.compiled

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
        state, compiled = self.state, self.state.compiled
        state.enter(context, sink)
        is_called_by_task = compiled.batch_size == 1 and not (compiled.batched or compiled.concurrency)
        # The report of the last stage names all files of its input.
        is_last_of_files = context.written_files_of == compiled.index
        self.streams = is_called_by_task and not is_last_of_files and not is_isolated(compiled, context)
        self.announce = announce
        self._keeps_input = keeps_inputs(state, 1)

    # --- the life of a worker ---------------------------------------------------------------------------

    def setup_on_node(self, node_info: NodeInfo, worker_metadata: WorkerMetadata) -> None:
        """Prepare the node. Called before ``setup`` on the first worker of the node."""
        self.state.move_to(worker_metadata.worker_id, node_info.node_id)
        self._isolate()
        self._guarded_setup(lambda: self.state.processing_stage.setup_on_node(node_info, worker_metadata))

    def setup(self, worker_metadata: WorkerMetadata) -> None:
        """Prepare the worker, and report how long that took.

        Raises:
            StageError: The stage's setup raised. The failure is also reported.
        """
        self.state.move_to(worker_metadata.worker_id, self.state.place.node_id)
        self._isolate()
        began = self._guarded_setup(lambda: self.state.processing_stage.setup(worker_metadata))
        self._report_worker("ready", began, self.state.startup_ns)
        self.state.clock.idle_since = time.perf_counter_ns()

    def teardown(self) -> None:
        """Let the stage release its resources. If it raises, the exception is reported but not raised."""
        start_unix, start = time.time_ns(), time.perf_counter_ns()
        error = None
        try:
            self._call(self.state.processing_stage.teardown)
        except BaseException as exc:  # noqa: BLE001 - reported; the work is done, so the run continues
            check_failure(exc)
            error = error_info(exc, _IN_TEARDOWN)
        finally:
            self.state.release_loop()
        self._report_worker("ended", start_unix, time.perf_counter_ns() - start, error)

    def _isolate(self) -> None:
        """Move the stage to a process of its own if it needs one and does not have one yet."""
        if not is_isolated(self.state.compiled, self.state.context):
            return
        from curator_core._processes.stage import IsolatedStage  # noqa: PLC0415 - sockets, which few stages need

        if not self.state.is_isolated:
            self.state.processing_stage = IsolatedStage(
                self.state.compiled, self.state.processing_stage, splits_batches=self.state.splits_batches
            )
            self.state.is_isolated = True

    def _guarded_setup(self, call: Callable[[], None]) -> int:
        """Call a setup; return when the start of the stage began, as if all before this call had run just before it.

        In a worker process, the stages of a group are loaded together, before the first one is set up.
        """
        began, start = time.time_ns() - self.state.startup_ns, time.perf_counter_ns()
        try:
            self._call(call)
        except BaseException as exc:  # noqa: BLE001 - reported, and raised as a StageError
            self.state.release_loop()
            check_failure(exc)
            took = self.state.startup_ns + time.perf_counter_ns() - start
            self._report_worker("setup_failed", began, took, error_info(exc, _IN_SETUP))
            raise stage_error(exc, self.state.compiled.name, _IN_SETUP)  # noqa: B904 - stage_error sets the cause
        self.state.startup_ns += time.perf_counter_ns() - start
        return began

    def _call(self, method: Callable[[], Any]) -> None:
        """Call a method of the stage, which may be a coroutine. If user code forks, the child ends here."""
        pid = this_process.pid
        try:
            with at_work(self.state):
                made = method()
                if made is not None and hasattr(made, "__await__"):
                    self.state.loop.run(made, self.state.current_work())
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
        self.state.sink(
            WorkerReport(
                self.state.context.run_id,
                self.state.compiled.index,
                self.state.compiled.name,
                self.state.place.worker_id,
                self.state.place.node_id,
                self.state.pid,
                event,
                start_unix_ns,
                duration_ns,
                error,
                self.state.context.epoch,
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
        if self.state.compiled.concurrency:
            from curator_core._adapter.concurrent import RetryingCalls  # noqa: PLC0415 - asyncio, which few stages need

            return RetryingCalls(self.state, tasks).run()
        if keeps_inputs(self.state, len(tasks)):
            return RetryingBatch(self.state, tasks).run()
        return Attempt(self.state, tasks, 1, last=True).run()

    def stream_one(self, task: Any, ahead: int) -> list[Any] | Generator[Any, None, None]:
        """Run one task through a stage that `streams`, passing on the outputs of a generator as they are made.

        Args:
            task: The input.
            ahead: How many outputs to buffer before the first one is passed on, if outputs can be withdrawn.

        Returns:
            A list of the outputs, or a generator that yields `WITHDRAWN` after the outputs of a failed attempt.

        Raises:
            StageError: See `process_batch`. Also raised while outputs are read.
        """
        copies = InputCopies.of([task], self.state.compiled.name) if self._keeps_input else None
        attempt = StreamedAttempt(self.state, task, copies=copies)
        del task  # frees it while its outputs are passed on
        outputs = attempt.execute()
        if attempt.generator is None and not attempt.comes_again:
            attempt.report()
            return outputs
        return RetryingStream(self.state, attempt).run(ahead) if self.state.withdraws else attempt.read()

    def process_source(self, task: Any) -> Generator[Any, None, None]:
        """Run a source on its one task, passing on each output as soon as it is made.

        The report follows when the source is exhausted or this generator is closed.

        Raises:
            StageError: See `process_batch`.
        """
        compiled = self.state.compiled
        is_limited = compiled.concurrency > 0 and compiled.timeout_s is not None
        if compiled.batched or compiled.max_attempts > 1 or is_limited:  # what was passed on cannot be withdrawn
            yield from self.process_batch([task])
            return
        yield from SourceAttempt(self.state, task).read()
