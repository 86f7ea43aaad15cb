# SPDX-License-Identifier: Apache-2.0
"""What the adapter calls in the place of a stage whose code runs in a process of its own."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from curator_core.errors import ProcessDiedError, StageTimeoutError
from curator_core.failure import RemoteTraceback, rebuild_error, unpickled
from curator_core.isolated.channel import Call
from curator_core.isolated.process import DeadError, LateError, StageProcess
from curator_core.logs import StageWork, current_work, this_thread
from curator_core.perf import StageMetrics
from curator_core.task import stamp, state_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from curator_core.adapter import NodeInfo, WorkerMetadata
    from curator_core.isolated.channel import Answer
    from curator_core.view import StageView

__all__ = ["IsolatedStage"]

logger = logging.getLogger(__name__)

_AGAIN = "stage '%s': its process %s %s; another one tries once more"


class IsolatedStage:
    """Stands for a stage that is held by another process, which is replaced when it dies or hangs.

    A call that kills the process raises, as one does that takes too long. Where the stage has one attempt, and the
    batch will not be parted, a second process tries the call once more before that: much that kills a process, as
    the system's want of memory, is not to be blamed on the task at hand.

    Args:
        view: The stage.
        stage: What is to run there.
        parts_batches: Whether a batch that fails goes in halves.

    Attributes:
        metrics: What the stage records.
    """

    def __init__(self, view: StageView, stage: Any, *, parts_batches: bool) -> None:
        self.metrics = StageMetrics()
        self._view = view
        self._stage = stage
        self._process: StageProcess | None = None
        self._worker: WorkerMetadata | None = None  # that it is set up for
        self._parts_batches = parts_batches

    # --- as a stage ---------------------------------------------------------------------------------------

    def setup_on_node(self, node_info: NodeInfo, worker_metadata: WorkerMetadata) -> None:
        """See `ProcessingStage`."""
        self._set_up(Call("setup_on_node", (node_info, worker_metadata), _work()))

    def setup(self, worker_metadata: WorkerMetadata) -> None:
        """See `ProcessingStage`."""
        self._worker = worker_metadata
        self._set_up(Call("setup", (worker_metadata,), _work()))

    def process(self, task: Any) -> Any:
        """See `ProcessingStage`; a generator has been read to its end."""
        return self._work_on("process", task, [task])

    def process_batch(self, tasks: list[Any]) -> Any:
        """See `ProcessingStage`."""
        return self._work_on("process_batch", tasks, tasks)

    def teardown(self) -> None:
        """See `ProcessingStage`. Ends the process; one that has died had nothing more to give back."""
        if self._process is None:
            return
        try:
            self._ask(Call("teardown", (), _work()), sets_up=False)
        finally:
            self._end(kill=False)

    def _set_up(self, call: Call) -> None:
        try:
            self._ask(call, sets_up=False)
        except BaseException:
            self._end(kill=True)  # nobody tears down what is not set up
            raise

    # --- the process --------------------------------------------------------------------------------------

    def _work_on(self, method: str, argument: Any, tasks: Sequence[Any]) -> Any:
        call = Call(method, (argument,), _work(), self.metrics.take())
        self.metrics.go_on(call.metrics)  # should nothing come back
        answer = self._ask_twice(call, last=len(tasks) > 1 and self._parts_batches)
        for task, notes in zip(tasks, answer.notes, strict=False):
            task_id, history, _ = state_of(task)
            stamp(task, (task_id, history, notes))
        return answer.value

    def _ask_twice(self, call: Call, *, last: bool) -> Answer:
        try:
            return self._ask(call, self._view.timeout_s)
        except ProcessDiedError as exc:
            if last or self._view.max_attempts > 1:
                raise
            logger.warning(_AGAIN, self._view.name, exc.how, _at(call.work))
        return self._ask(call, self._view.timeout_s)

    def _ask(self, call: Call, timeout_s: float | None = None, *, sets_up: bool = True) -> Answer:
        """Have the process call the stage; what the stage raised is raised here."""
        try:
            answer = self._started(sets_up=sets_up).ask(call, timeout_s)
        except DeadError as exc:
            self._end(kill=True)
            raise self._died(exc, call) from None
        except LateError:
            self._end(kill=True)
            raise self._timed_out(call) from None
        except BaseException:  # what it was sent does not pickle, or Ctrl-C: what it would answer now is not wanted
            self._end(kill=True)
            raise
        return self._open(answer)

    def _started(self, *, sets_up: bool) -> StageProcess:
        if self._process is None:
            self._process = StageProcess()
            self._open(self._process.ask(Call("hold", (self._stage,))))
            if sets_up and self._worker is not None:
                self._open(self._process.ask(Call("setup", (self._worker,), _work())))
        return self._process

    def _open(self, answer: Answer) -> Answer:
        """Take over what was recorded; raise what was raised."""
        this_thread.post.elsewhere_ns += answer.cpu_ns
        if answer.metrics:
            self.metrics.go_on(answer.metrics)
        if answer.error is None:
            return answer
        original = unpickled(answer.error)
        if original is None:
            raise rebuild_error(answer.error, self._view.name)
        raise original from RemoteTraceback(answer.error.traceback)

    def _end(self, *, kill: bool) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.end(kill=kill)

    def _died(self, exc: DeadError, call: Call) -> ProcessDiedError:
        error = ProcessDiedError(
            f"its process {exc.how} {_at(call.work) or f'in {call.method}()'}",
            stage=self._view.name,
            hint="what it wrote to stderr says where; a native library may have crashed, or memory run out",
        )
        error.how = exc.how
        return error

    def _timed_out(self, call: Call) -> StageTimeoutError:
        return StageTimeoutError(
            f"took longer than it may {_at(call.work)}; its process was ended",
            stage=self._view.name,
            field="timeout_s",
            given=self._view.timeout_s,
            expected=f"{call.method}() to return within so many seconds",
            hint="raise timeout_s where the task is only large; on_error='skip' leaves such tasks out",
        )


def _work() -> StageWork:
    return current_work() or StageWork()


def _at(work: StageWork) -> str:
    if work.task_id:
        return f"on task '{work.task_id}'"
    return f"on batch {work.batch_id}" if work.batch_id else ""
