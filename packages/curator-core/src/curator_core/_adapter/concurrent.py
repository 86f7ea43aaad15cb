# SPDX-License-Identifier: Apache-2.0
"""One attempt at one batch of an asynchronous stage: several calls run at once, and each may fail on its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from curator_core._adapter.attempt import Attempt
from curator_core._adapter.checks import check_count
from curator_core._adapter.input_copies import InputCopies
from curator_core._adapter.lineage import batch_id_of
from curator_core._adapter.retry import keeps_inputs, wait_before_retry
from curator_core._calls.async_calls import CANCELED, CallSettings, call_all
from curator_core._calls.returned import Failed
from curator_core._guard.user_code import check_failure
from curator_core._reports.batch import InputOutcome, input_fields, input_outcomes
from curator_core._reports.failures import error_info, is_of
from curator_core._transport.sizes import measure
from curator_core.errors import ContractError
from curator_core.logs import StageWork, this_thread

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from curator_core._adapter.worker_state import WorkerState
    from curator_core._reports.batch import BatchReport, OutcomeKind

__all__ = ["ConcurrentAttempt", "RetryingCalls"]


class ConcurrentAttempt(Attempt):
    """One attempt at one batch, with one task per call, or ``call_size`` tasks per call of ``process_batch``.

    Args:
        state: The worker.
        tasks: The inputs.
        number: Number of the attempt, from 1.
        last: Whether a failure is final, unless the inputs of a call can be split.
        copies: Copies of the original inputs; None if they cannot be restored.
        call_size: Number of tasks per call.

    Attributes:
        again: Positions of the inputs to retry in calls of the same size.
        alone: Positions of the inputs to retry individually, each in its own call.
    """

    def __init__(
        self,
        state: WorkerState,
        tasks: Sequence[Any],
        number: int,
        *,
        last: bool,
        copies: InputCopies | None,
        call_size: int,
    ) -> None:
        super().__init__(state, tasks, number, last=last, copies=copies)
        self._call_size = call_size
        self._ends_run = last and not state.skips_failures
        self._isolates = not self._ends_run
        self._sizes: list[tuple[int, int]] = []  # items and bytes of each input, before the calls
        self._retried: dict[int, BaseException] = {}
        self.again: list[int] = []
        self.alone: list[int] = []

    def by_input(self, outputs: list[Any]) -> list[list[Any]]:
        """Group the outputs of `execute` by input."""
        following = iter(outputs)
        return [[next(following) for _ in range(outcome.count)] for outcome in self._all_outcomes()]

    def report(self) -> None:
        """See `Attempt.report`."""
        for report in self._reports():
            self.state.sink(report)
        self._raise_error()

    def _reports(self) -> Iterator[BatchReport]:
        """End the attempt and yield its reports: one of the inputs that are done, and one of those to retry."""
        report = super().close()
        if not self._retried:
            yield report
            return
        outcomes = self._all_outcomes()
        settled = [number for number in range(len(outcomes)) if number not in self._retried]
        if settled:
            places = {number: place for place, number in enumerate(settled)}
            yield report._replace(
                **input_fields(outcomes[number] for number in settled),
                num_items=sum(self._sizes[number][0] for number in settled),
                in_bytes=sum(self._sizes[number][1] for number in settled),
                failed_input=tuple(each._replace(number=places[each.number]) for each in report.failed_input),
            )
            # The report above has the time of these inputs as well, because they share its calls.
            report = report._replace(
                sequence=self.state.sequence,
                duration_ns=0,
                cpu_ns=0,
                idle_ns=0,
                startup_ns=0,
                metrics={},
                out_bytes=0,
            )
            self.state.sequence += 1
        yield self._report_of_retried(report)

    def _report_of_retried(self, report: BatchReport) -> BatchReport:
        number, error = next(iter(self._retried.items()))
        ids = [self._ids[number] for number in self._retried]
        return report._replace(
            batch_id=batch_id_of(self.compiled.index, ids),
            **input_fields(InputOutcome(task_id, "retried", 0) for task_id in ids),
            num_items=sum(self._sizes[number][0] for number in self._retried),
            in_bytes=sum(self._sizes[number][1] for number in self._retried),
            error=error_info(error, f"on task '{self._ids[number]}'"),
            failed_input=(),
            written_files=(),
        )

    # --- calling the stage ------------------------------------------------------------------------------

    def _inspect(self) -> dict[int, Failed]:
        failed = super()._inspect()
        if self.copies is not None:  # otherwise there is only one attempt, with a single report
            self._sizes = [(0, 0) if number in failed else _size_of(task) for number, task in enumerate(self.tasks)]
        return failed

    def _call_with(self, tasks: Sequence[Any], entries: list[Any]) -> None:
        if not tasks:
            return
        size = self._call_size if self.compiled.batched else 1
        calls = [tasks[start : start + size] for start in range(0, len(tasks), size)]
        results = self._call_all(calls)
        if self._ends_run:
            self._raise_first_failure(calls, results)
        for call, result in zip(calls, results, strict=True):
            entries += self._entries_of(call, result)

    def _raise_first_failure(self, calls: Sequence[Sequence[Any]], results: Sequence[Any]) -> None:
        for call, result in zip(calls, results, strict=True):
            if isinstance(result, Failed) and result is not CANCELED:
                self._at = self._ids.index(call[0].task_id) if len(call) == 1 else None
                raise result.error

    def _entries_of(self, call: Sequence[Any], result: Any) -> Sequence[Any]:
        """Return an entry for each input of a call."""
        if self.compiled.batched and not isinstance(result, Failed):
            try:
                check_count(result, len(call), self.compiled)
            except ContractError as exc:
                if self._ends_run:
                    raise
                result = Failed(exc)
            else:
                entries: Sequence[Any] = result
                return entries
        return [result] * len(call)

    def _call_all(self, calls: Sequence[Sequence[Any]]) -> list[Any]:
        """Return the result of each call, a `Failed` if it failed."""
        state, compiled = self.state, self.compiled
        arguments = [list(call) for call in calls] if compiled.batched else [call[0] for call in calls]
        work_of_calls = [self._work_on(call) for call in calls]
        settings = CallSettings(compiled.concurrency, compiled.timeout_s, self._stops_at())
        stage = state.processing_stage
        if state.is_isolated:
            results: list[Any] = stage.call_all(arguments, work_of_calls, settings)
            return results
        method = stage.process_batch if compiled.batched else stage.process
        results, cpu_ns = state.loop.run(call_all(method, arguments, work_of_calls, settings, compiled.retry_on))
        this_thread.post.elsewhere_ns += cpu_ns
        return results

    def _stops_at(self) -> Any:
        if self._ends_run:
            return "all"
        return "none" if self.state.skips_failures else "final"

    def _work_on(self, call: Sequence[Any]) -> StageWork:
        state = self.state
        task_id = call[0].task_id if len(call) == 1 else ""
        return StageWork(state.context.run_id, self.compiled.name, task_id, self._batch_id, state.place.worker_id)

    def _task_at_hand(self) -> str:
        return self._ids[0] if len(self._ids) == 1 else ""  # otherwise several are in flight

    # --- failures ---------------------------------------------------------------------------------------

    def _settle(self, entries: Sequence[Any]) -> list[Any]:
        source_ids = self.state.source_ids
        outputs = super()._settle(entries)
        if self._retried and not all(self._ids):
            self.state.source_ids = source_ids  # a source that is retried reuses these names
        return outputs

    def _lose(self, number: int, failed: Failed, made: int = 0) -> tuple[OutcomeKind, int]:
        following = self._following(failed.error)
        if following is None:
            return super()._lose(number, failed, made)
        self._retried[number] = failed.error
        following.append(number)
        return ("retried", 0)

    def _following(self, error: BaseException) -> list[int] | None:
        """Return the list of inputs to retry that a failed input belongs in; None if it failed for good."""
        if self.copies is None:
            return None
        if not self.last and is_of(error, self.compiled.retry_on):
            return self.again
        can_be_split = self.compiled.batched and self._call_size > 1 and self.state.splits_batches
        return self.alone if can_be_split else None

    def _all_outcomes(self) -> tuple[InputOutcome, ...]:
        return input_outcomes(self._ids, self._outcomes)


def _size_of(task: Any) -> tuple[int, int]:
    try:
        return measure([task])
    except BaseException as exc:  # noqa: BLE001 - raised by user code; `Attempt._inspect` handles its failures
        check_failure(exc)
        return 0, 0


class _Round(NamedTuple):
    """Inputs for the next attempt.

    Attributes:
        places: Their positions in the batch.
        copies: The inputs, as the stage first received them.
        number: Number of the attempt.
        limit: Number of the last attempt.
        call_size: How many tasks each call receives.
    """

    places: Sequence[int]
    copies: InputCopies
    number: int
    limit: int
    call_size: int


class RetryingCalls:
    """A batch whose inputs fail and are retried individually.

    An input is tried ``max_attempts`` times, for exceptions of ``retry_on``. If failures are skipped, the inputs of a
    call of ``process_batch`` that fails for good are then tried individually, ``max_attempts`` times each; so are all
    inputs of a batch that kills a process, one after the other.

    Args:
        state: The worker.
        tasks: The inputs. If they do not pickle or unpickle, there is only one attempt.
    """

    def __init__(self, state: WorkerState, tasks: Sequence[Any]) -> None:
        self._state = state
        self._tasks = tasks
        self._outputs: list[list[Any]] = [[] for _ in tasks]  # of each input
        self._waiting: list[_Round] = []

    def run(self) -> list[Any]:
        """Return the outputs of the inputs that did not fail, in the order of the inputs.

        Raises:
            StageError: A call failed for good, and failures end the run.
        """
        state, tasks, compiled = self._state, self._tasks, self._state.compiled
        copies = InputCopies.of(tasks, compiled.name) if keeps_inputs(state, len(tasks)) else None
        if copies is None:
            attempt = ConcurrentAttempt(state, tasks, 1, last=True, copies=None, call_size=compiled.call_size)
            return attempt.run()
        self._waiting = [_Round(range(len(tasks)), copies, 1, compiled.max_attempts, compiled.call_size)]
        while self._waiting:
            self._try(self._waiting.pop())
        return [task for outputs in self._outputs for task in outputs]

    def _try(self, this: _Round) -> None:
        state, last = self._state, this.number >= this.limit
        tasks = this.copies.restore()
        attempt = ConcurrentAttempt(state, tasks, this.number, last=last, copies=this.copies, call_size=this.call_size)
        outputs = attempt.run()
        if attempt.comes_again:
            self._try_all_again(this)
            return
        for place, made in zip(this.places, attempt.by_input(outputs), strict=True):
            self._outputs[place] = made
        if attempt.again:
            wait_before_retry(state, this.number)
            self._waiting.append(self._some_of(this, attempt.again)._replace(limit=this.limit))
        if attempt.alone:
            self._waiting.append(self._some_of(this, attempt.alone)._replace(call_size=1))

    def _try_all_again(self, this: _Round) -> None:
        """Retry all inputs after a failure beyond a single call, such as the death of the process of all calls."""
        if len(this.places) == 1 or not self._state.splits_batches:
            wait_before_retry(self._state, this.number)
            self._waiting.append(this._replace(number=this.number + 1))
            return
        following = [self._some_of(this, [number])._replace(call_size=1) for number in range(len(this.places))]
        self._waiting += reversed(following)

    def _some_of(self, this: _Round, numbers: Sequence[int]) -> _Round:
        """Return some inputs of a round for the next attempt; each has all its attempts left."""
        tasks = this.copies.restore()
        return _Round(
            [this.places[number] for number in numbers],
            InputCopies([tasks[number] for number in numbers]),
            this.number + 1,
            this.number + self._state.compiled.max_attempts,
            this.call_size,
        )
