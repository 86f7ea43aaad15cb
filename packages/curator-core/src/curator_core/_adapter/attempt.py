# SPDX-License-Identifier: Apache-2.0
"""One attempt at one batch: call the stage, check and name the outputs, and write the report."""

from __future__ import annotations

import time
from operator import attrgetter, is_
from typing import TYPE_CHECKING, Any

from curator_core._adapter.attachments import failed_inputs, written_files_of
from curator_core._adapter.checks import are_always_valid, check_count, check_output, check_task
from curator_core._adapter.lineage import batch_id_of, histories_of, produced, with_row
from curator_core._calls.returned import AT_REST, LISTS, MERGED, Failed, read_out
from curator_core._guard.user_code import check_failure, leave_fork, this_process
from curator_core._reports.batch import ONE_OUT, BatchReport, input_outcomes
from curator_core._reports.failures import error_info, is_of, stage_error
from curator_core._transport.sizes import measure
from curator_core.logs import StageWork, this_thread
from curator_core.tasks import UNSEEN, FileGroupTask, Task, child_id, state_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from curator_core._adapter.input_copies import InputCopies
    from curator_core._adapter.worker_state import WorkerState
    from curator_core._performance import PerfRow
    from curator_core._reports.batch import ErrorInfo, FailedInput, OutcomeKind, WrittenFiles
    from curator_core.tasks import TaskState

__all__ = ["Attempt"]

_TOO_SHORT_NS = 50_000  # wall time below which CPU time is not read: reading takes 1.5 us, a no-op batch 10
_CPU_FRESH_NS = 1_000_000  # how long a reading of a thread's CPU time stays valid
_FILTERED: tuple[OutcomeKind, int] = ("filtered", 0)
_FAILED: tuple[OutcomeKind, int] = ("failed", 0)
_MERGED: tuple[OutcomeKind, int] = ("merged", 0)
_RETRIED: tuple[OutcomeKind, int] = ("retried", 0)
_state_of = attrgetter("_state")


class Attempt:
    """One attempt at one batch.

    Args:
        state: The worker.
        tasks: The inputs.
        number: Number of the attempt, from 1.
        last: Whether a failure is final, unless the inputs fail together and can be split.
        copies: Copies of the original inputs; None if they cannot be restored.

    Attributes:
        error: The first error, if there is one.
        doing: What the stage was doing when the error was raised, for a message.
        comes_again: Whether the inputs will be retried.
        ends_run: Whether the error ends the run if failures end it.
    """

    # Defaults that most batches never change: setting them on each instance would cost 0.1 us apiece.
    error: BaseException | None = None
    doing = ""
    comes_again = False
    ends_run = True
    _ids_called: Sequence[str] = ()  # ids of the inputs that the stage sees, if it does not see all of them
    _num_items = _in_bytes = _out_bytes = 0
    _start_unix = _start = _duration_ns = _cpu_ns = 0
    _pid = 0  # the process that executes the attempt
    _errors: dict[int, BaseException] = {}  # noqa: RUF012 - of inputs that failed for good; replaced, never written to
    _written_files: tuple[WrittenFiles, ...] = ()
    _metrics: dict[str, float | str] = {}  # noqa: RUF012 - replaced, never written to

    def __init__(
        self,
        state: WorkerState,
        tasks: Sequence[Any],
        number: int,
        *,
        last: bool,
        copies: InputCopies | None = None,
    ) -> None:
        self.state = state
        self.compiled = state.compiled
        self.tasks = tasks
        self.number = number
        self.last = last
        self.copies = copies
        self._at: int | None = 0 if len(tasks) == 1 else None  # the input that the error is about; None if unknown
        self._isolates = last and state.skips_failures  # a failed input then does not fail the others
        self._recorder = state.processing_stage.metrics
        self._states: list[TaskState] = [*map(_state_of, tasks)]
        self._ids = [state[0] for state in self._states]
        self._histories = histories_of(self._states)
        self._batch_id = batch_id_of(self.compiled.index, self._ids)
        self._outcomes: dict[int, tuple[OutcomeKind, int]] = {}  # of inputs without exactly one output
        self._entries: list[Any] = []  # one for each input that the stage has finished
        idle_since = state.clock.idle_since
        self._idle_ns = time.perf_counter_ns() - idle_since if idle_since else 0

    def run(self) -> list[Any]:
        """Execute the attempt, and report it.

        Raises:
            StageError: It failed for good, and failures end the run.
        """
        outputs = self.execute()
        self.report()
        return outputs

    def report(self) -> None:
        """Report the attempt after `execute`.

        Raises:
            StageError: See `run`.
        """
        self.state.sink(self.close())
        self._raise_error()

    def _raise_error(self) -> None:
        if self.error is not None and self.ends_run and not (self.comes_again or self.state.skips_failures):
            raise stage_error(self.error, self.compiled.name, self.doing)

    def execute(self) -> list[Any]:
        """Run the batch and return the outputs; none if it failed, in which case `error` says why."""
        state, entries, self._pid = self.state, self._entries, this_process.pid
        post = this_thread.post
        before, post.caller = post.caller, self
        try:
            known = self._inspect()
            if state.context.written and state.context.written_files_of == self.compiled.index:
                known |= self._written()
            self._start_clock()
            try:
                self._call(known, entries)
            finally:
                self._add_clock()
            outputs = self._settle(entries)
            if state.context.written_files_of == self.compiled.index:
                self._written_files = written_files_of(self._ids, self._outcomes, outputs)
            return outputs
        except BaseException as exc:  # noqa: BLE001 - reported; the adapter raises it
            check_failure(exc, self._pid)
            return self._fail(exc)
        finally:
            post.caller = before

    # --- calling the stage ------------------------------------------------------------------------------

    def _inspect(self) -> dict[int, Any]:
        """Measure and check the inputs; return by position a `Failed` for each that the stage must not see.

        Raises the error instead if it ends the run.
        """
        needs_check = self.compiled.needs is not None or not are_always_valid(self.tasks)
        try:
            self._num_items, self._in_bytes = measure(self.tasks)
            if not needs_check:
                return {}
        except BaseException as exc:
            check_failure(exc)
            if len(self.tasks) == 1 and not self._isolates:
                raise exc from None
        failed: dict[int, Any] = {}
        num_items = in_bytes = 0
        for number, task in enumerate(self.tasks):
            try:
                num_items += task.num_items
                in_bytes += task.num_bytes
                check_task(task, self._ids[number], self.compiled)
            except BaseException as exc:
                check_failure(exc)
                if not self._isolates:
                    self._at = number
                    raise
                failed[number] = Failed(exc)
        self._num_items, self._in_bytes = num_items, in_bytes
        return failed

    def _written(self) -> dict[int, Any]:
        """Return by position the outputs of inputs already in published files, which the stage must not see again."""
        written = self.state.context.written
        return {
            number: FileGroupTask([*written[task_id]], self.tasks[number].dataset_name)
            for number, task_id in enumerate(self._ids)
            if task_id in written
        }

    def _call(self, known: dict[int, Any], entries: list[Any]) -> None:
        """Call the stage, and add one entry for each input.

        Args:
            known: By position, the entries of inputs that the stage must not see.
            entries: The list to add the entries to.
        """
        if not known:
            self._call_with(self.tasks, entries)
            return
        good: list[Any] = []
        self._entries = good
        self._ids_called = [task_id for number, task_id in enumerate(self._ids) if number not in known]
        self._call_with([task for number, task in enumerate(self.tasks) if number not in known], good)
        following = iter(good)
        entries += [known.get(number) or next(following) for number in range(len(self.tasks))]

    def _call_with(self, tasks: Sequence[Any], entries: list[Any]) -> None:
        stage: Any = self.state.processing_stage
        pid = self._pid
        if self.compiled.batched:
            returned = stage.process_batch(list(tasks)) if tasks else []
            if pid != this_process.pid:
                leave_fork()
            check_count(returned, len(tasks), self.compiled)
            entries += returned
            return
        process = stage.process
        for task in tasks:
            try:
                entry = process(task)
                if entry.__class__ not in AT_REST:
                    entry = read_out(entry)  # a generator works while it is read: that is this stage's time
            except BaseException as exc:
                check_failure(exc, pid)
                if not self._isolates:
                    self._at = len(entries)
                    raise
                entry = Failed(exc)
            if pid != this_process.pid:
                leave_fork()
            entries.append(entry)

    def current_work(self) -> StageWork:
        """Return what the stage works on, for log records."""
        state = self.state
        run_id, worker_id = state.context.run_id, state.place.worker_id
        return StageWork(run_id, self.compiled.name, self._task_at_hand(), self._batch_id, worker_id)

    def _task_at_hand(self) -> str:
        """Return the input that `_call_with` works on: the first one without an entry."""
        if len(self._ids) == 1:
            return self._ids[0]
        if not self._start or self.compiled.batched:  # not called yet
            return ""
        ids, number = self._ids_called or self._ids, len(self._entries)
        return ids[number] if number < len(ids) else ""

    # --- outputs ----------------------------------------------------------------------------------------

    def _settle(self, entries: Sequence[Any]) -> list[Any]:
        """Check, name, and count the outputs of each input."""
        self._metrics = self._recorder.take()
        row = self._perf_row()
        if all(self._ids) and all(map(is_, entries, self.tasks)):
            return self._settle_unchanged(row)
        return self._settle_each(entries, row)

    def _settle_unchanged(self, row: PerfRow) -> list[Any]:
        """Do the work of `_settle_each` for a batch that returned its inputs: no output needs a check or a name."""
        outputs = [*self.tasks]
        longer = with_row(self._histories, row)
        before: tuple[PerfRow, ...] | None = None
        for task in outputs:
            task_id, perf, notes = task._state
            if perf is not before:  # as in `histories_of`
                before, after = perf, longer[id(perf)]
            task.__dict__["_state"] = (task_id, after, notes)
        return self._weigh(outputs)

    def _weigh(self, outputs: list[Any]) -> list[Any]:
        """Measure the outputs. If one of them cannot be measured, its input fails and all outputs of it are dropped."""
        try:
            self._out_bytes = measure(outputs)[1]
            return outputs
        except BaseException as exc:
            check_failure(exc)
            if not self._isolates:
                raise
        good: list[Any] = []
        for number, (_, _, count) in enumerate(input_outcomes(self._ids, dict(self._outcomes))):
            made, outputs = outputs[:count], outputs[count:]
            try:
                self._out_bytes += measure(made)[1]
                good += made
            except BaseException as exc:  # noqa: BLE001 - raised by a method of the user's task
                check_failure(exc)
                self._outcomes[number] = self._lose(number, Failed(exc))
        return good

    def _settle_each(self, entries: Sequence[Any], row: PerfRow) -> list[Any]:
        longer = with_row(self._histories, row)
        source_ids = self.state.source_ids
        if not all(self._ids):
            self.state.source_ids = source_ids.copy()  # if this attempt fails, the next one reuses these names
        outputs: list[Any] = []
        try:
            for number, (given, parent, entry) in enumerate(zip(self.tasks, self._states, entries, strict=True)):
                perf = longer[id(parent[1])]
                if isinstance(entry, Task) and entry._state is UNSEEN and parent[0]:  # a new task: the usual case
                    notes = given._state[2]
                    entry.__dict__["_state"] = (parent[0], perf, dict(notes) if notes else None)
                    outputs.append(entry)
                    continue
                outcome = self._settle_one(number, given, entry, perf, outputs)
                if outcome != ONE_OUT:
                    self._outcomes[number] = outcome
            return self._weigh(outputs)
        except BaseException:
            self.state.source_ids = source_ids
            raise

    def _settle_one(
        self, number: int, given: Any, entry: Any, perf: tuple[PerfRow, ...], outputs: list[Any]
    ) -> tuple[OutcomeKind, int]:
        if entry is None:
            return _FILTERED
        if entry is MERGED:
            return _MERGED
        failed = entry if isinstance(entry, Failed) else None
        try:
            made = self._adopt(given, self._states[number], entry if failed is None else failed.outputs, perf)
        except BaseException as exc:
            check_failure(exc)
            if not self._isolates:
                raise
            return self._lose(number, Failed(exc))
        outputs += made
        if failed is not None:
            return self._lose(number, failed, len(made))
        return ("out", len(made)) if made else _FILTERED

    def _lose(self, number: int, failed: Failed, made: int = 0) -> tuple[OutcomeKind, int]:
        """Record that an input failed. The report shows the error of the first one."""
        if self.error is None or (failed.ends_run and not self.ends_run):
            self._at = number
            self.ends_run = failed.ends_run
            self._blame(failed.error)
        self._errors = self._errors or {}
        self._errors[number] = failed.error
        return ("failed", made) if made else _FAILED

    def _adopt(
        self, given: Any, parent: TaskState, entry: Any, perf: tuple[PerfRow, ...], first: int = 0
    ) -> Sequence[Any]:
        """Put the framework's state on the outputs of an input, numbered from `first`; return them as a sequence."""
        is_list = isinstance(entry, LISTS)
        made = entry if is_list else (entry,)
        parent_id = parent[0]
        notes = state_of(given)[2]  # read after the call: includes what the stage noted on its input
        for index, task in enumerate(made):
            known = state_of(task) if isinstance(task, Task) else None
            if known is None or (known is not parent and known[0]):  # neither the input nor a new task
                check_output(task, parent_id, perf[-1], self.compiled)
            own = state_of(task)[2]
            if (notes or own) and (is_list or task is not given):
                own = {**(notes or {}), **(own or {})}  # a separate dict, even if outputs of one task share theirs
            if not parent_id:
                task_id = self.state.source_ids.name(task)
            else:
                task_id = child_id(parent_id, first + index) if is_list else parent_id
            task.__dict__["_state"] = (task_id, perf, own)  # same as `stamp`, without a call per task
        return made

    def _fail(self, exc: BaseException) -> list[Any]:
        """Record that all inputs failed, for good or to be retried."""
        self._blame(exc)
        self._metrics = self._metrics or self._recorder.take()
        self.comes_again = self._is_worth_another(exc)
        numbers = range(len(self._ids))
        self._outcomes = dict.fromkeys(numbers, _RETRIED if self.comes_again else _FAILED)
        if not self.comes_again:
            self._errors = dict.fromkeys(numbers, exc)
        return []

    def _is_worth_another(self, exc: BaseException) -> bool:
        """Whether another attempt may succeed: a later one, or one with fewer tasks."""
        if self.copies is None:
            return False
        can_be_split = len(self.tasks) > 1 and self.state.splits_batches
        return can_be_split or (not self.last and is_of(exc, self.compiled.retry_on))

    def _blame(self, exc: BaseException) -> None:
        self.error = exc
        if self._at is None:
            self.doing = f"on a batch of {len(self.tasks)} tasks"
        elif self._ids[self._at]:  # a source's one input has none
            self.doing = f"on task '{self._ids[self._at]}'"

    # --- clock and report -------------------------------------------------------------------------------

    def _start_clock(self) -> None:
        self._start_unix = self._start_unix or time.time_ns()
        now = self._start = time.perf_counter_ns()
        post = this_thread.post
        if now - post.cpu_read_ns > _CPU_FRESH_NS:
            post.cpu_ns, post.cpu_read_ns = time.thread_time_ns(), now
        self._cpu_start = post.cpu_ns

    def _add_clock(self) -> None:
        """Add the wall time since `_start_clock`, and the CPU time, which is capped at the wall time."""
        now = time.perf_counter_ns()
        took, self._start = now - self._start, now
        self._duration_ns += took
        if took < _TOO_SHORT_NS:
            self._cpu_ns += took
            return
        post = this_thread.post
        post.cpu_ns, post.cpu_read_ns = time.thread_time_ns(), now
        self._cpu_ns += min(took, post.cpu_ns - self._cpu_start + post.elsewhere_ns)
        post.elsewhere_ns = 0

    def _perf_row(self) -> PerfRow:
        state = self.state
        return (
            state.place,
            self._duration_ns,
            self._idle_ns,
            self._in_bytes,
            self._num_items,
            self._metrics,
            self._start_unix,
            state.startup_ns if state.sequence == 0 else 0,
            self._batch_id,
        )

    def _error_info(self, error: BaseException) -> ErrorInfo:
        ends_run = self.ends_run and not self.compiled.skips_failures
        return error_info(error, self.doing)._replace(ends_run=ends_run)

    def close(self) -> BatchReport:
        """End the attempt and return the report. The worker is idle from now on."""
        state, context = self.state, self.state.context
        self._start_unix = self._start_unix or time.time_ns()  # if the stage was not called
        failed_input: tuple[FailedInput, ...] = ()
        if self._errors and context.letter_bytes is not None:
            together = self.doing if self._at is None else ""
            failed_input = failed_inputs(self._errors, self._ids, together, self.copies, context.letter_bytes)
        ready_unix_ns, ready_node_id, parents = produced(self._histories.values())
        report = BatchReport(  # positional arguments take half the time; this runs for each batch
            context.run_id,
            self.compiled.index,
            self.compiled.name,
            self._batch_id,
            state.place.worker_id,
            state.place.node_id,
            state.pid,
            state.sequence,
            self._start_unix,
            self._duration_ns,
            tuple(self._ids),
            self._outcomes,
            context.epoch,
            context.group,
            self.number,
            state.bundle_id,
            self._cpu_ns,
            self._idle_ns,
            0 if state.sequence else state.startup_ns,
            ready_unix_ns,
            ready_node_id,
            parents,
            self._in_bytes,
            self._out_bytes,
            self._num_items,
            self._metrics,
            None if self.error is None else self._error_info(self.error),
            failed_input,
            self._written_files,
        )
        state.sequence += 1
        state.clock.idle_since = time.perf_counter_ns()
        return report
