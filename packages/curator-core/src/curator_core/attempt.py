# SPDX-License-Identifier: Apache-2.0
"""One attempt at one batch: call the stage, check what comes out, name it, and write the report."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from curator_core.checks import check_count, check_output, check_task
from curator_core.failure import error_info
from curator_core.history import Place
from curator_core.report import BatchReport, InputOutcome
from curator_core.task import Task, TaskState, child_id, digest, stamp, state_of

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence

    from curator_core.adapter import BaseStageAdapter
    from curator_core.history import PerfRow
    from curator_core.report import OutcomeKind

__all__ = ["Attempt"]

_END = object()
_LISTS = (list, tuple)
# Past the constructors of the NamedTuples, which take twice the time: these are made for every task.
_outcome = partial(tuple.__new__, InputOutcome)
_state = partial(tuple.__new__, TaskState)


class Failed:
    """Stands where a task's output would be."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Attempt:
    """One attempt at one batch.

    Args:
        adapter: Whose stage is called.
        tasks: The inputs.
        number: From 1.
        last: Whether this attempt decides what becomes of the inputs.

    Attributes:
        error: What went wrong, if anything did.
        doing: What the stage was at when it did, for a message.
    """

    def __init__(self, adapter: BaseStageAdapter, tasks: Sequence[Any], number: int, *, last: bool) -> None:
        self.adapter = adapter
        self.view = adapter.view
        self.tasks = tasks
        self.number = number
        self.last = last
        self.error: BaseException | None = None
        self.doing = ""
        self._at: int | None = 0 if len(tasks) == 1 else None  # the input that the error is about, where that is known
        self._isolates = last and adapter.context.on_error == "skip"  # a failure then takes no neighbour along
        self._recorder = adapter.processing_stage.metrics
        self._states: list[TaskState] = [state_of(task) for task in tasks]
        self._batch_id = _batch_id(self.view.index, self._states)
        self._outcomes: list[InputOutcome] = []
        self._num_items = self._in_bytes = self._out_bytes = 0
        self._metrics: dict[str, float | str] = {}
        self._duration_ns = self._cpu_ns = 0
        self._start_unix = time.time_ns()
        self._start = time.perf_counter_ns()
        self._cpu_start = time.thread_time_ns()
        self._idle_ns = self._start - adapter.idle_since if adapter.idle_since else 0

    # --- the two ways to run ----------------------------------------------------------------------------

    def execute(self) -> list[Any]:
        """Run the batch; the outputs, or none where it failed (`error` then says why)."""
        entries: list[Any] = []
        try:
            failed = self._inspect()
            self._call(failed, entries)
        except (Exception, SystemExit) as exc:  # noqa: BLE001 - reported, and raised by the adapter
            self._stop_clock()
            return self._fail(exc)
        self._stop_clock()
        try:
            return self._settle(entries)
        except Exception as exc:  # noqa: BLE001 - of the contract, or of a method of the user's task
            return self._fail(exc)

    def stream(self) -> Generator[Any, None, None]:
        """As `execute`, for a source: outputs are handed on one by one, and only its own time is counted."""
        count, row, made = 0, None, None
        self._metrics = {}  # the tasks' history holds on to it, and sees what is filled in at the end
        try:
            made = iter(_as_iterable(self.adapter.processing_stage.process(self.tasks[0])))
            while (output := next(made, _END)) is not _END:
                self._add_clock()
                row = row or self._perf_row()
                self._adopt(self.tasks[0], self._states[0], (output,), row)
                count += 1
                try:
                    yield output
                finally:  # what was done with it further down is not the source's time, also where that failed
                    self._start, self._cpu_start = time.perf_counter_ns(), time.thread_time_ns()
        except (Exception, SystemExit) as exc:  # noqa: BLE001 - as in `execute`
            self._blame(exc)
        finally:  # also where nobody listens any longer, because a later stage failed
            self._close_source(made)
            self._add_clock()
            self._metrics.update(self._recorder.take())
            kind: OutcomeKind = "failed" if self.error else "out" if count else "filtered"
            self._outcomes = [InputOutcome(self._states[0].task_id, kind, count)]

    # --- calling the stage ------------------------------------------------------------------------------

    def _inspect(self) -> dict[int, Failed]:
        """Measure the inputs; those that the stage must not see, by position. Raises where the run ends at one."""
        failed: dict[int, Failed] = {}
        needs, num_items, in_bytes = self.view.needs, 0, 0
        for number, task in enumerate(self.tasks):
            try:
                num_items += task.num_items
                in_bytes += task.num_bytes
                if needs is not None or type(task).validate is not Task.validate:
                    check_task(task, self._states[number].task_id, self.view)
            except Exception as exc:
                if not self._isolates:
                    self._at = number
                    raise
                failed[number] = Failed(exc)
        self._num_items, self._in_bytes = num_items, in_bytes
        return failed

    def _call(self, failed: dict[int, Failed], entries: list[Any]) -> None:
        """Call the stage, and fill in one entry for each input."""
        if not failed:
            self._call_with(self.tasks, entries)
            return
        good: list[Any] = []
        self._call_with([task for number, task in enumerate(self.tasks) if number not in failed], good)
        following = iter(good)
        entries += [failed.get(number) or next(following) for number in range(len(self.tasks))]

    def _call_with(self, tasks: Sequence[Any], entries: list[Any]) -> None:
        stage: Any = self.adapter.processing_stage
        if self.view.batched:
            returned = stage.process_batch(list(tasks)) if tasks else []
            check_count(returned, len(tasks), self.view)
            entries += returned
            return
        process = stage.process
        for task in tasks:
            try:
                entry = process(task)
                if not (entry is None or isinstance(entry, Task)) and isinstance(entry, Iterator):
                    entry = list(entry)  # a generator does its work when it is read: that is this stage's time
            except (Exception, SystemExit) as exc:
                if not self._isolates:
                    self._at = len(entries)
                    raise
                entry = Failed(exc)
            entries.append(entry)

    def _close_source(self, made: Iterator[Any] | None) -> None:
        """Let a generator clean up now, and not when it happens to be collected."""
        try:
            getattr(made, "close", int)()
        except Exception as exc:  # noqa: BLE001 - as in `execute`
            if self.error is None:
                self._blame(exc)

    # --- what came out ----------------------------------------------------------------------------------

    def _settle(self, entries: Sequence[Any]) -> list[Any]:
        """Check, name and count what came out of each input."""
        self._metrics = self._recorder.take()
        row = self._perf_row()
        roots = self.adapter.roots
        if not all(state.task_id for state in self._states):
            self.adapter.roots = roots.copy()  # where this attempt fails, the next one names from here again
        outputs: list[Any] = []
        try:
            for given, parent, entry in zip(self.tasks, self._states, entries, strict=True):
                self._outcomes.append(self._settle_one(given, parent, entry, row, outputs))
            self._out_bytes = sum([task.num_bytes for task in outputs])
        except Exception:
            self.adapter.roots = roots
            raise
        return outputs

    def _settle_one(self, given: Any, parent: TaskState, entry: Any, row: PerfRow, outputs: list[Any]) -> InputOutcome:
        task_id = parent.task_id
        if entry is None:
            return _outcome((task_id, "filtered", 0))
        if not isinstance(entry, Failed):
            try:
                made = self._adopt(given, parent, entry, row)
            except Exception as exc:
                if not self._isolates:
                    raise
                entry = Failed(exc)
            else:
                outputs += made
                return _outcome((task_id, "out" if made else "filtered", len(made)))
        if self.error is None:
            self._at = len(self._outcomes)
            self._blame(entry.error)
        return _outcome((task_id, "failed", 0))

    def _adopt(self, given: Any, parent: TaskState, entry: Any, row: PerfRow) -> Sequence[Any]:
        """Put the framework's state on what came out of an input, and give it as a sequence."""
        is_list = isinstance(entry, _LISTS)
        made = entry if is_list else (entry,)
        parent_id, perf = parent.task_id, (*parent.perf, row)
        notes = state_of(given).metadata  # read after the call: what the stage noted on its input goes along
        for index, task in enumerate(made):
            known = state_of(task) if isinstance(task, Task) else None
            if known is None or (known is not parent and known.task_id):  # neither the input nor a new task
                check_output(task, parent_id, row, self.view)
            own = state_of(task).metadata
            if (notes or own) and (is_list or task is not given):
                own = {**(notes or {}), **(own or {})}  # of its own, also where what was made of one task shares one
            if not parent_id:
                task_id = self.adapter.roots.name(task)
            else:
                task_id = child_id(parent_id, index) if is_list else parent_id
            stamp(task, _state((task_id, perf, own)))
        return made

    def _fail(self, exc: BaseException) -> list[Any]:
        """All inputs failed, or are to be tried again."""
        self._blame(exc)
        self._metrics = self._metrics or self._recorder.take()
        kind: OutcomeKind = "failed" if self.last else "retried"
        self._outcomes = [_outcome((state.task_id, kind, 0)) for state in self._states]
        return []

    def _blame(self, exc: BaseException) -> None:
        self.error = exc
        if self._at is None:
            self.doing = f"on a batch of {len(self.tasks)} tasks"
        elif self._states[self._at].task_id:  # a source's one input has none
            self.doing = f"on task '{self._states[self._at].task_id}'"

    # --- accounts ---------------------------------------------------------------------------------------

    def _stop_clock(self) -> None:
        self._duration_ns = time.perf_counter_ns() - self._start
        self._cpu_ns = time.thread_time_ns() - self._cpu_start

    def _add_clock(self) -> None:
        now, cpu_now = time.perf_counter_ns(), time.thread_time_ns()
        self._duration_ns += now - self._start
        self._cpu_ns += cpu_now - self._cpu_start
        self._start, self._cpu_start = now, cpu_now

    def _perf_row(self) -> PerfRow:
        adapter = self.adapter
        return (
            Place.of(self.view.name, adapter.worker_id, adapter.node_id),
            self._duration_ns,
            self._idle_ns,
            self._in_bytes,
            self._num_items,
            self._metrics,
            self._start_unix,
            adapter.startup_ns if adapter.sequence == 0 else 0,
            self._batch_id,
        )

    def close(self) -> BatchReport:
        """End the attempt: the worker waits from now on. Gives the report."""
        adapter, context = self.adapter, self.adapter.context
        ready_unix_ns, ready_node_id, parents = _produced(self._states)
        report = BatchReport(
            run_id=context.run_id,
            stage_index=self.view.index,
            stage_name=self.view.name,
            batch_id=self._batch_id,
            worker_id=adapter.worker_id,
            node_id=adapter.node_id,
            pid=os.getpid(),
            sequence=adapter.sequence,
            start_unix_ns=self._start_unix,
            duration_ns=self._duration_ns,
            inputs=tuple(self._outcomes),
            epoch=context.epoch,
            group=context.group,
            attempt=self.number,
            cpu_ns=self._cpu_ns,
            idle_ns=self._idle_ns,
            startup_ns=adapter.startup_ns if adapter.sequence == 0 else 0,
            ready_unix_ns=ready_unix_ns,
            ready_node_id=ready_node_id,
            parents=parents,
            in_bytes=self._in_bytes,
            out_bytes=self._out_bytes,
            num_items=self._num_items,
            metrics=self._metrics,
            error=None if self.error is None else error_info(self.error, self.doing),
        )
        adapter.sequence += 1
        adapter.idle_since = time.perf_counter_ns()
        return report


def _batch_id(stage_index: int, states: Sequence[TaskState]) -> str:
    """The same for the same inputs in the same stage, in every run."""
    if len(states) == 1:
        return f"{stage_index}/{states[0].task_id}"
    ids = "\0".join([state.task_id for state in states])
    return f"{stage_index}/{len(states)}:{digest(ids, 8)}"


def _produced(states: Sequence[TaskState]) -> tuple[int, str, tuple[str, ...]]:
    """When the last of the inputs was ready, on which node's clock, and the batches that made them."""
    rows = {perf[-1][-1]: perf[-1] for _, perf, _ in states if perf}
    ready, node = 0, ""
    for place, duration_ns, _, _, _, _, start_unix_ns, _, _ in rows.values():
        if start_unix_ns + duration_ns > ready:
            ready, node = start_unix_ns + duration_ns, place.node_id
    return ready, node, tuple(rows)


def _as_iterable(entry: Any) -> Iterable[Any]:
    if entry is None:
        return ()
    return entry if isinstance(entry, (*_LISTS, Iterator)) else (entry,)
