# SPDX-License-Identifier: Apache-2.0
"""The object that the adapter calls in place of an isolated stage, whose code runs in a process of its own."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

from curator_core._calls.returned import Failed
from curator_core._performance import StageMetrics
from curator_core._processes.channel import Call, FailedCall
from curator_core._processes.process import ChildProcess, DeadError, LateError
from curator_core._reports.failures import ForeignError, error_info
from curator_core._transport.packed import Packed
from curator_core._transport.pickling import engines_cloudpickle
from curator_core.errors import ProcessDiedError, StageError, StageTimeoutError
from curator_core.logs import StageWork, current_work, relay, this_thread
from curator_core.tasks import stamp, state_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from curator_core._calls.async_calls import CallSettings
    from curator_core._plan.compiled import CompiledStage
    from curator_core._processes.channel import Answer
    from curator_core.stages import NodeInfo, WorkerMetadata

__all__ = ["IsolatedStage"]

logger = logging.getLogger(__name__)

_CANCELED_S = 5.0  # for calls that exceed their time limit to be canceled
_RETRYING = "stage '%s': its process %s %s; retrying once in a new process"


class IsolatedStage:
    """Stands for a stage in another process, which is replaced if it dies or hangs.

    A call that kills the process, or exceeds its time limit, raises. If the tasks of a call that killed the process
    would not be retried, a new process retries the call once before this raises: the task is not always to blame, for
    example if the system ran out of memory.

    Args:
        compiled: The stage as the plan read it.
        stage: The stage to run in the process.
        splits_batches: Whether a batch that fails is split to retry its tasks separately.

    Attributes:
        metrics: The metrics that the stage records.
    """

    def __init__(self, compiled: CompiledStage, stage: Any, *, splits_batches: bool) -> None:
        self.metrics = StageMetrics()
        self._compiled = compiled
        self._stage = stage
        self._process: ChildProcess | None = None
        self._worker: WorkerMetadata | None = None  # the worker that the stage is set up for; None before setup
        self._splits_batches = splits_batches

    # --- as a stage ---------------------------------------------------------------------------------------

    def setup_on_node(self, node_info: NodeInfo, worker_metadata: WorkerMetadata) -> None:
        """See `ProcessingStage`."""
        self._set_up(Call("setup_on_node", (node_info, worker_metadata), _work()))

    def setup(self, worker_metadata: WorkerMetadata) -> None:
        """See `ProcessingStage`."""
        self._set_up(Call("setup", (worker_metadata,), _work()))
        self._worker = worker_metadata

    def process(self, task: Any) -> Any:
        """See `ProcessingStage`. A generator is returned as a list of its outputs."""
        return self._work_on("process", (task,), [task], self._compiled.timeout_s)

    def process_batch(self, tasks: list[Any]) -> Any:
        """See `ProcessingStage`."""
        return self._work_on("process_batch", (tasks,), tasks, self._compiled.timeout_s)

    def call_all(
        self, arguments: Sequence[Any], work_of_calls: Sequence[StageWork], settings: CallSettings
    ) -> list[Any]:
        """Call an asynchronous stage once for each argument; see `curator_core._calls.async_calls.call_all`.

        Returns:
            The result of each call, a `Failed` if it failed.
        """
        batched = self._compiled.batched
        tasks = [task for batch in arguments for task in batch] if batched else arguments
        method = "process_batch" if batched else "process"
        request = (method, arguments, work_of_calls, settings)
        results = self._work_on("call_all", request, tasks, _limit(settings, len(arguments)))
        return [_failed(each) if isinstance(each, FailedCall) else each for each in results]

    def teardown(self) -> None:
        """See `ProcessingStage`. Ends the process; if it has died already, there is nothing to release."""
        if self._process is None:
            return
        try:
            self._ask(Call("teardown", (), _work()), self._compiled.setup_timeout_s)
        finally:
            self._end(kill=False)

    def _set_up(self, call: Call) -> None:
        try:
            self._ask(call, self._compiled.setup_timeout_s)
        except BaseException:
            self._end(kill=True)  # a stage whose setup failed is not torn down
            raise

    # --- the process --------------------------------------------------------------------------------------

    def _work_on(self, method: str, arguments: tuple[Any, ...], tasks: Sequence[Any], timeout_s: float | None) -> Any:
        call = Call(method, arguments, _work(), self.metrics.take())
        self.metrics.go_on(call.metrics)  # in case no answer arrives
        answer = self._ask_with_retry(call, timeout_s, comes_again=self._comes_again(len(tasks)))
        for task, notes in zip(tasks, answer.notes, strict=False):
            task_id, history, _ = state_of(task)
            stamp(task, (task_id, history, notes))
        return answer.value

    def _comes_again(self, count: int) -> bool:
        """Whether the adapter retries the tasks of a call that kills the process, separately or together."""
        is_split = count > 1 and self._splits_batches
        return is_split or (self._compiled.max_attempts > 1 and issubclass(ProcessDiedError, self._compiled.retry_on))

    def _ask_with_retry(self, call: Call, timeout_s: float | None, *, comes_again: bool) -> Answer:
        try:
            return self._ask(call, timeout_s)
        except ProcessDiedError as exc:
            if comes_again:
                raise
            logger.warning(_RETRYING, self._compiled.name, exc.how, _where(call.work))
        return self._ask(call, timeout_s)

    def _ask(self, call: Call, timeout_s: float | None = None) -> Answer:
        """Call the stage in its process, started first if there is none. Raise the exception that the stage raised."""
        if self._process is None:
            self._start()
        answer = self._answer_to(call, timeout_s)
        this_thread.post.elsewhere_ns += answer.cpu_ns
        if answer.logs:
            relay(answer.logs)
        if answer.metrics:
            self.metrics.go_on(answer.metrics)
        self._raise_error(answer)
        return answer

    def _start(self) -> None:
        """Start a process, and call setup in it if it replaces an earlier one."""
        level = logging.getLogger().getEffectiveLevel()
        self._process = ChildProcess("curator_core._processes.runner", engines_cloudpickle(), level)
        try:
            self._raise_error(self._answer_to(Call("load", (self._stage, self._compiled.retry_on))))
            if self._worker is not None:
                set_up = Call("setup", (self._worker,), StageWork(stage=self._compiled.name))
                self._raise_error(self._answer_to(set_up, self._compiled.setup_timeout_s))
        except Exception as exc:
            self._end(kill=True)
            if self._worker is None:
                raise
            info = error_info(exc)
            raise StageError(
                f"its new process cannot be set up: {info.type}: {info.message}",
                stage=self._compiled.name,
                expected="a setup() that works again after a process died or was killed",
                hint="make setup() cope with what a dead process leaves behind, such as files, "
                "or GPU memory that is not freed yet",
            ) from exc

    def _answer_to(self, call: Call, timeout_s: float | None = None) -> Answer:
        """Return the process's answer. If there is none, kill the process and raise an error."""
        process = self._process
        assert process is not None  # noqa: S101 - the callers have started it
        try:
            process.send(Packed.of(call))
            answer: Answer = process.receive(timeout_s).open()
        except DeadError as exc:
            self._end(kill=True)
            raise self._died(exc, call) from None
        except LateError:
            self._end(kill=True)
            raise self._timed_out(call, timeout_s) from None
        except BaseException:  # such as a call that does not pickle, or Ctrl-C: any later answer is unwanted
            self._end(kill=True)
            raise
        return answer

    def _raise_error(self, answer: Answer) -> None:
        if answer.error is not None:
            raise ForeignError(answer.error, is_of_retry_on=answer.is_of_retry_on)

    def _end(self, *, kill: bool) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.end(kill=kill)
            process.close()

    def _died(self, exc: DeadError, call: Call) -> ProcessDiedError:
        error = ProcessDiedError(
            f"its process {exc.how} {_where(call.work) or f'in {call.method}()'}",
            stage=self._compiled.name,
            hint="see its stderr for the location; a native library may have crashed, or the system ran out of memory",
        )
        error.how = exc.how
        return error

    def _timed_out(self, call: Call, limit: float | None) -> StageTimeoutError:
        on_tasks = bool(call.work.batch_id)
        name = "timeout_s" if on_tasks else "setup_timeout_s"
        given = getattr(self._compiled, name)
        method = call.method if call.method != "call_all" else call.arguments[0]
        return StageTimeoutError(
            f"timed out after {limit:g} s {_where(call.work) or f'in {method}()'}; its process was killed",
            stage=self._compiled.name,
            field=name,
            given=given,
            expected=f"a {method}() that returns within {given:g} s",
            hint=f"raise {name} if the stage is just slow" + ", or pass on_error='skip' to skip such tasks" * on_tasks,
        )


def _limit(settings: CallSettings, calls: int) -> float | None:
    """Return after how many seconds the process counts as hanging.

    It cancels calls that exceed their own time limit, if their code allows that.
    """
    if settings.timeout_s is None:
        return None
    return (settings.timeout_s + 1.0) * math.ceil(calls / settings.concurrency) + _CANCELED_S


def _failed(call: FailedCall) -> Failed:
    if call.is_canceled:
        from curator_core._calls.async_calls import CANCELED  # noqa: PLC0415 - asyncio, which few stages need

        return CANCELED
    return Failed(ForeignError(call.error, is_of_retry_on=call.is_of_retry_on))


def _work() -> StageWork:
    return current_work() or StageWork()


def _where(work: StageWork) -> str:
    if work.task_id:
        return f"on task '{work.task_id}'"
    return f"on batch {work.batch_id}" if work.batch_id else ""
