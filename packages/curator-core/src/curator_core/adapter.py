# SPDX-License-Identifier: Apache-2.0
"""The one path that every batch takes, on every executor.

An adapter holds one copy of a stage. It sets it up, hands it batches, checks and names what comes out, and
reports. It knows nothing of engines: whoever owns it says where the reports go.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias

from curator_core.attempt import Attempt
from curator_core.failure import error_info, stage_error
from curator_core.guard import check_failure, leave_fork, this_process
from curator_core.history import Place
from curator_core.logs import StageWork, at_work
from curator_core.report import BatchReport, ErrorInfo, WorkerReport
from curator_core.snapshot import Snapshot
from curator_core.source import SourceAttempt
from curator_core.streamed import StreamedAttempt
from curator_core.streamed_tries import StreamedTries
from curator_core.task import RootNames
from curator_core.tries import Tries, keeps_inputs
from curator_core.view import StageView, read_stage

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    from curator_core.concurrent_attempt import ConcurrentAttempt
    from curator_core.event_loop import EventLoop

__all__ = ["BaseStageAdapter", "NodeInfo", "OnError", "RunContext", "WorkerMetadata", "is_isolated"]

_IN_SETUP, _IN_TEARDOWN = "in set-up", "in teardown"

OnError: TypeAlias = Literal["raise", "skip"]


class Announce(Protocol):
    """See `Run.announce`."""

    def __call__(self, task_id: str, *, may_drop: bool) -> Callable[[], None]: ...


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


class RunContext(NamedTuple):
    """What an adapter needs to know of the run that it is part of.

    Attributes:
        run_id: The run.
        on_error: ``"raise"`` ends the run at the first failure; ``"skip"`` counts it and goes on.
        letter_bytes: The largest task that is kept with the report of its failure; None where none is kept.
        manifests_of: Index of the stage whose outputs' files are reported; -1 for none.
        collect: Whether the pipeline's outputs are wanted in the driver.
        isolates: Whether stages run in processes of their own, unless they refuse: a worker has died of one.
        epoch: How often the engine was started again within the run.
        group: The group of stages that the adapter belongs to.
        written: Tasks that the last stage has in its files already, and the paths that each gave.
    """

    run_id: str = ""
    on_error: OnError = "raise"
    letter_bytes: int | None = None
    manifests_of: int = -1
    collect: bool = True
    isolates: bool = False
    epoch: int = 0
    group: int = 0
    written: Mapping[str, list[str]] = {}  # shared and never written to


class WorkerClock:
    """When a worker last had something to do.

    Attributes:
        idle_since: Since when it waits, by the monotonic clock; 0 before set-up.
    """

    __slots__ = ("idle_since",)

    def __init__(self) -> None:
        self.idle_since = 0


class BaseStageAdapter:
    """Runs one stage for an executor.

    Args:
        processing_stage: The stage to run. The adapter sets it up and tears it down, so give it a copy.
        view: The stage as the plan read it; read now where it is not given.

    Attributes:
        processing_stage: The stage.
        view: The stage, as it was read.
        context: The run that the adapter is part of.
        place: The stage's name, the worker's and its node's, as of the last call of ``setup`` or ``setup_on_node``.
        pid: The worker's process.
        sequence: Number of the next batch.
        startup_ns: How long set-up took.
        clock: Since when its worker has waited for a batch; stages that share a worker share it.
        bundle_id: The bundle that the tasks at hand came in; empty where they travelled alone.
        roots: Names the tasks that begin a lineage, where the stage is a source.
        is_isolated: Whether the stage is held by a process of its own.
        sink: Where reports go.
        announce: Enters that outputs are reported before their input; None outside of the driver.
        streams: Whether the outputs of a generator go on one by one.
        takes_back: Whether they do not count where it fails half-way: others are tried, or the run goes on without.
    """

    def __init__(self, processing_stage: Any, view: StageView | None = None) -> None:
        self.processing_stage = processing_stage
        self.view = view if view is not None else read_stage(0, processing_stage)
        self.context = RunContext()
        self.sink: Callable[[BatchReport | WorkerReport], None] = _nowhere
        self.place = Place.of(self.view.name, WorkerMetadata().worker_id, NodeInfo().node_id)
        self.pid = os.getpid()
        self.sequence = 0
        self.startup_ns = 0
        self.clock = WorkerClock()
        self.bundle_id = ""
        self.roots = RootNames()
        self.is_isolated = False
        self.streams = self.takes_back = False
        self.announce: Announce | None = None
        self._keeps_input = False
        self._loop: EventLoop | None = None

    @property
    def loop(self) -> EventLoop:
        """The worker's event loop, until `teardown`."""
        if self._loop is None:
            from curator_core.event_loop import EventLoop  # noqa: PLC0415 - asyncio, which few stages need

            self._loop = EventLoop()
        return self._loop

    def bind(
        self,
        context: RunContext,
        sink: Callable[[BatchReport | WorkerReport], None],
        announce: Announce | None = None,
    ) -> None:
        """Say which run this is part of.

        Args:
            context: The run.
            sink: Where reports go.
            announce: See `Run.announce`. Where there is none, what becomes of a generator's outputs is reported when
                its input is.
        """
        self.context = context
        self.sink = sink
        view = self.view
        is_called_by_task = view.batch_size == 1 and not (view.batched or view.concurrency)
        # The report of the last stage names all files of its input.
        is_last_of_files = context.manifests_of == view.index
        self.streams = is_called_by_task and not is_last_of_files and not is_isolated(view, context)
        self.takes_back = context.on_error == "skip" or view.max_attempts > 1
        self.announce = announce
        self._keeps_input = keeps_inputs(self, 1)

    @property
    def parts_batches(self) -> bool:
        """Whether the tasks of a batch that fails are tried apart from each other."""
        # The ranks of an SPMD group have to call it together: one of them alone must not part its batch.
        return self.context.on_error == "skip" and not self.view.engine_options.get("is_spmd")

    @property
    def worker_id(self) -> str:
        """The worker."""
        return self.place.worker_id

    @property
    def node_id(self) -> str:
        """The worker's node."""
        return self.place.node_id

    def move_to(self, worker_id: str, node_id: str) -> None:
        """Say which worker this is from now on."""
        self.place, self.pid = Place.of(self.view.name, worker_id, node_id), os.getpid()

    def current_work(self) -> StageWork:
        """What the stage is at outside of batches, for log records."""
        return StageWork(self.context.run_id, self.view.name, worker_id=self.worker_id)

    # --- the life of a worker ---------------------------------------------------------------------------

    def setup_on_node(self, node_info: NodeInfo, worker_metadata: WorkerMetadata) -> None:
        """Prepare the node; called before ``setup`` on its first worker."""
        self.move_to(worker_metadata.worker_id, node_info.node_id)
        self._isolate()
        self._guarded_setup(lambda: self.processing_stage.setup_on_node(node_info, worker_metadata))

    def setup(self, worker_metadata: WorkerMetadata) -> None:
        """Prepare the worker, and report how long that took.

        Raises:
            StageError: The stage's set-up raised; the worker's report says so as well.
        """
        self.move_to(worker_metadata.worker_id, self.node_id)
        self._isolate()
        start_unix = time.time_ns() - self.startup_ns  # node set-up, if it was ours, came right before
        self._guarded_setup(lambda: self.processing_stage.setup(worker_metadata))
        self._report_worker("ready", start_unix, self.startup_ns)
        self.clock.idle_since = time.perf_counter_ns()

    def teardown(self) -> None:
        """Let the stage give back what it took. An exception there is reported and goes no further."""
        start_unix, start = time.time_ns(), time.perf_counter_ns()
        error = None
        try:
            self._call(self.processing_stage.teardown)
        except BaseException as exc:  # noqa: BLE001 - the work is done: the run says so, and goes on
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
        """Give the stage a process of its own, if it is to have one and has none yet."""
        if not is_isolated(self.view, self.context):
            return
        from curator_core.isolated import IsolatedStage  # noqa: PLC0415 - sockets and processes, which few stages need

        if not self.is_isolated:
            self.processing_stage = IsolatedStage(self.view, self.processing_stage, parts_batches=self.parts_batches)
            self.is_isolated = True

    def _guarded_setup(self, call: Callable[[], None]) -> None:
        start_unix, start = time.time_ns(), time.perf_counter_ns()
        try:
            self._call(call)
        except BaseException as exc:  # noqa: BLE001 - reported, and raised as ours
            self._release_loop()
            check_failure(exc)
            took = time.perf_counter_ns() - start
            self._report_worker("setup_failed", start_unix, took, error_info(exc, _IN_SETUP))
            raise stage_error(exc, self.view.name, _IN_SETUP)  # noqa: B904 - it carries its cause
        self.startup_ns += time.perf_counter_ns() - start

    def _call(self, method: Callable[[], Any]) -> None:
        """Call a method of the stage's, which may be a coroutine; only the process that does so returns from it."""
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
                self.view.index,
                self.view.name,
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
            The output tasks, with theirs. Empty where all inputs were dropped.

        Raises:
            StageError: The stage raised, or broke the contract, and the run is to end at that.
        """
        if not tasks:
            return []
        if self.view.concurrency:
            from curator_core.rounds import Rounds  # noqa: PLC0415 - asyncio, which few stages need

            return Rounds(self, tasks).run()
        if keeps_inputs(self, len(tasks)):
            return Tries(self, tasks).run()
        return self.run_attempt(Attempt(self, tasks, 1, last=True))

    def run_attempt(self, attempt: Attempt) -> list[Any]:
        """Make an attempt at a batch, and report it.

        Raises:
            StageError: It failed for good, and the run is to end at that.
        """
        outputs = attempt.execute()
        self.report_attempt(attempt)
        return outputs

    def report_attempt(self, attempt: Attempt) -> None:
        """Report an attempt that has been made.

        Raises:
            StageError: As `run_attempt`.
        """
        self.sink(attempt.close())
        self._raise_error(attempt)

    def run_concurrently(self, attempt: ConcurrentAttempt) -> list[Any]:
        """As `run_attempt`, for a stage whose calls are under way at once."""
        outputs = attempt.execute()
        for report in attempt.reports():
            self.sink(report)
        self._raise_error(attempt)
        return outputs

    def _raise_error(self, attempt: Attempt) -> None:
        if attempt.error is not None and not attempt.comes_again and self.context.on_error == "raise":
            raise stage_error(attempt.error, self.view.name, attempt.doing)

    def stream_one(self, task: Any, ahead: int) -> list[Any] | Generator[Any, None, None]:
        """As `process_batch`, for one task of a stage that `streams`: a generator's outputs as they are made.

        Args:
            task: The input.
            ahead: How many outputs are made before the first one goes on, where they may be taken back.

        Returns:
            The outputs: a list, or one by one, with `TAKEN_BACK` after those of an attempt that failed.

        Raises:
            StageError: As `process_batch`, also while outputs are read.
        """
        snapshot = Snapshot.of([task], self.view.name) if self._keeps_input else None
        attempt = StreamedAttempt(self, task, snapshot=snapshot)
        del task  # not to be held while what came of it goes on
        outputs = attempt.execute()
        if attempt.generator is None and not attempt.comes_again:
            self.report_attempt(attempt)
            return outputs
        return StreamedTries(self, attempt).run(ahead) if self.takes_back else self.read_streamed(attempt)

    def read_streamed(self, attempt: StreamedAttempt) -> Generator[Any, None, None]:
        """Hand on the outputs of an attempt; then report it."""
        try:
            yield from attempt.stream()
        finally:
            if attempt.has_ended:
                self.sink(attempt.close())
        self._raise_error(attempt)

    def process_source(self, task: Any) -> Generator[Any, None, None]:
        """Run a source on its one task, handing on each output as soon as it is made.

        The report follows when the source is exhausted, or is no longer listened to.

        Raises:
            StageError: As `process_batch`.
        """
        view = self.view
        is_limited = view.concurrency > 0 and view.timeout_s is not None
        if view.batched or view.max_attempts > 1 or is_limited:  # what has been handed on cannot be taken back
            yield from self.process_batch([task])
            return
        yield from self.read_streamed(SourceAttempt(self, task))


def is_isolated(view: StageView, context: RunContext) -> bool:
    """Whether a stage has a process of its own."""
    if view.isolated is not None:
        return view.isolated
    # The ranks of an SPMD group find each other through what the engine has set up in their own processes.
    return view.limit_by_process is not None or (context.isolates and not view.engine_options.get("is_spmd"))


def _nowhere(report: BatchReport | WorkerReport) -> None:
    """Where the reports of an adapter go that no run has bound."""
