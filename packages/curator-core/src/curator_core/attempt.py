# SPDX-License-Identifier: Apache-2.0
"""One attempt at one batch: call the stage, check what comes out, name it, and write the report."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from curator_core.errors import ContractError, InputError
from curator_core.failure import error_info
from curator_core.perf import BYTES_PER_MB
from curator_core.report import BatchReport, InputOutcome
from curator_core.task import Task, TaskState, child_id, stamp, state_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from curator_core.adapter import BaseStageAdapter
    from curator_core.plan import Fields

__all__ = ["Attempt"]

_END = object()


@dataclass(frozen=True, slots=True)
class Failed:
    """Stands where a task's output would be."""

    error: BaseException


class Attempt:
    """One attempt at one batch: call, check, name, time."""

    def __init__(self, adapter: BaseStageAdapter, tasks: Sequence[Any], attempt: int, *, last: bool) -> None:
        self.adapter = adapter
        self.view = adapter.view
        self.tasks = tasks
        self.attempt = attempt
        self.last = last
        self.states = [state_of(task) for task in tasks]
        self.error: BaseException | None = None
        self.outcomes: list[InputOutcome] = []
        self.num_items = self.in_bytes = self.out_bytes = 0
        self.duration_ns = self.cpu_ns = 0
        self.metrics: dict[str, float | str] = {}
        ids = [state.task_id for state in self.states]
        self.batch_id = _batch_id(self.view.index, ids)
        self.start = time.perf_counter_ns()
        self.start_unix = time.time_ns()
        self.idle_ns = self.start - adapter.idle_since if adapter.idle_since else 0
        self.isolating = last and adapter.context.on_error == "skip"

    def execute(self) -> list[Any]:
        """Run the batch; the outputs, or none where it failed (`error` then says why)."""
        cpu_start = time.thread_time_ns()
        try:
            self._measure_inputs()
            entries = self._call()
        except (Exception, SystemExit) as exc:  # noqa: BLE001 - reported, and raised by the adapter
            self._clock(cpu_start)
            return self._fail(exc)
        self._clock(cpu_start)
        try:
            return self._settle(entries)
        except ContractError as exc:
            return self._fail(exc)

    def stream(self) -> Iterator[Any]:
        """As `execute`, for a source: outputs are handed on one by one, and only its own time is counted."""
        count, row = 0, None
        cpu_start, start = time.thread_time_ns(), time.perf_counter_ns()
        try:
            made = iter(_as_iterable(self.adapter.processing_stage.process(self.tasks[0])))
            while True:
                output = next(made, _END)
                self.duration_ns += time.perf_counter_ns() - start
                self.cpu_ns += time.thread_time_ns() - cpu_start
                if output is _END:
                    break
                self._check_output(output)
                row = row or self._perf_row()
                self._stamp(output, self.states[0], self.adapter.name_root(output), row)
                count += 1
                yield output
                cpu_start, start = time.thread_time_ns(), time.perf_counter_ns()
        except (Exception, SystemExit) as exc:  # noqa: BLE001 - as in `execute`
            self.error = exc
        finally:  # also where nobody listens any longer, because a later stage failed
            self.metrics = self.adapter.processing_stage.metrics.take()
            kind: Any = "failed" if self.error and not count else "out" if count else "filtered"
            self.outcomes = [InputOutcome(self.states[0].task_id, kind, count)]

    # --- calling the stage ------------------------------------------------------------------------------

    def _measure_inputs(self) -> None:
        for task in self.tasks:
            self.num_items += task.num_items
            self.in_bytes += task.num_bytes

    def _call(self) -> list[Any]:
        stage = self.adapter.processing_stage
        bad = self._bad_inputs()
        if not self.view.batched:
            return [bad.get(number) or self._call_one(stage, task) for number, task in enumerate(self.tasks)]
        tasks = [task for number, task in enumerate(self.tasks) if number not in bad] if bad else list(self.tasks)
        entries = stage.process_batch(tasks) if tasks else []
        self._check_entries(entries, len(tasks))
        if not bad:
            return entries  # type: ignore[no-any-return]
        good = iter(entries)
        return [bad.get(number) or next(good) for number in range(len(self.tasks))]

    def _call_one(self, stage: Any, task: Any) -> Any:
        try:
            entry = stage.process(task)
            # A generator does its work when it is read, and that belongs to this stage's time.
            return list(entry) if isinstance(entry, Iterator) else entry
        except (Exception, SystemExit) as exc:
            if self.isolating:
                return Failed(exc)
            raise

    def _bad_inputs(self) -> dict[int, Failed]:
        """Inputs that the stage must not see, by position. Raises at the first where the run ends at that."""
        needs, bad = self.view.needs, {}
        for number, task in enumerate(self.tasks):
            problem = _problem(task, needs)
            if problem is None:
                continue
            message, details = problem
            error = InputError(f"task '{self.states[number].task_id}' {message}", stage=self.view.name, **details)
            if not self.isolating:
                raise error
            bad[number] = Failed(error)
        return bad

    def _check_entries(self, entries: Any, expected: int) -> None:
        is_list = isinstance(entries, list | tuple)
        if is_list and len(entries) == expected:
            return
        returned = f"{len(entries)} entries" if is_list else f"a {type(entries).__name__}"
        raise ContractError(
            f"process_batch returned {returned} for {expected} task{'s' * (expected != 1)}",
            stage=self.view.name,
            field="process_batch",
            given=entries,
            expected=f"a list of {expected} entries, one for each input: a task, a list of tasks, or None",
            hint="return None for a task that is to be dropped, and a list for one that becomes several",
        )

    # --- what came out ----------------------------------------------------------------------------------

    def _settle(self, entries: Sequence[Any]) -> list[Any]:
        """Check, name and count what came out of each input."""
        self.metrics = self.adapter.processing_stage.metrics.take()
        row = self._perf_row()
        outputs: list[Any] = []
        for state, entry in zip(self.states, entries, strict=True):
            before = len(outputs)
            if entry is not None:
                try:
                    self._settle_one(state, entry, row, outputs)
                except ContractError as exc:
                    if not self.isolating:
                        raise
                    del outputs[before:]
                    entry = Failed(exc)  # noqa: PLW2901 - the entry is what became of the input
            if isinstance(entry, Failed):
                self.error = self.error or entry.error
                self.outcomes.append(InputOutcome(state.task_id, "failed", 0))
            else:
                made = len(outputs) - before
                self.outcomes.append(InputOutcome(state.task_id, "out" if made else "filtered", made))
        if len(outputs) > 1 and len(set(map(id, outputs))) != len(outputs):
            raise self._returned_twice()
        self.out_bytes = sum(task.num_bytes for task in outputs)
        return outputs

    def _settle_one(self, state: TaskState, entry: Any, row: tuple[Any, ...], outputs: list[Any]) -> None:
        is_source = not state.task_id
        if isinstance(entry, list | tuple):
            for number, task in enumerate(entry):
                self._check_output(task, state)
                name = self.adapter.name_root(task) if is_source else child_id(state.task_id, number)
                self._stamp(task, state, name, row)
            outputs.extend(entry)
        elif not isinstance(entry, Failed):
            self._check_output(entry, state)
            self._stamp(entry, state, self.adapter.name_root(entry) if is_source else state.task_id, row)
            outputs.append(entry)

    def _check_output(self, task: Any, state: TaskState | None = None) -> None:
        if not isinstance(task, Task):
            raise ContractError(
                f"returned a {type(task).__name__} where a task was expected",
                stage=self.view.name,
                field="process_batch" if self.view.batched else "process",
                given=task,
                expected="a task, a list of tasks, or None for each input",
                hint="wrap the data: Task(data=…)",
            )
        known = state_of(task).task_id
        if known and state is not None and known != state.task_id:
            raise ContractError(
                f"returned task '{known}' as the output of task '{state.task_id}'",
                stage=self.view.name,
                field="process_batch" if self.view.batched else "process",
                given=task,
                expected="entry i to be made of input i; no task to be kept from an earlier call",
                hint="keep the order of the inputs, and make a new task of data that you remember",
            )

    def _returned_twice(self) -> ContractError:
        return ContractError(
            "returned the same task object twice",
            stage=self.view.name,
            field="process_batch" if self.view.batched else "process",
            expected="an object of its own for each output",
            hint="make a copy: dataclasses.replace(task)",
        )

    def _stamp(self, task: Any, parent: TaskState, task_id: str, row: tuple[Any, ...]) -> None:
        mine, inherited = state_of(task).metadata, parent.metadata
        if inherited and mine is not inherited:
            mine = {**inherited, **mine} if mine else dict(inherited)
        stamp(task, TaskState(task_id, (*parent.perf, row), mine))

    # --- accounts ---------------------------------------------------------------------------------------

    def _clock(self, cpu_start: int) -> None:
        self.duration_ns = time.perf_counter_ns() - self.start
        self.cpu_ns = time.thread_time_ns() - cpu_start

    def _fail(self, exc: BaseException) -> list[Any]:
        self.error = exc
        self.metrics = self.metrics or self.adapter.processing_stage.metrics.take()
        kind: Any = "failed" if self.last else "retried"
        self.outcomes = [InputOutcome(state.task_id, kind, 0) for state in self.states]
        return []

    def _perf_row(self) -> tuple[Any, ...]:
        """The fields of `StagePerfStats`, in their order."""
        adapter = self.adapter
        return (
            self.view.name,
            self.duration_ns / 1e9,
            self.idle_ns / 1e9,
            self.in_bytes / BYTES_PER_MB,
            self.num_items,
            self.metrics,
            self.start_unix,
            adapter.startup_ns / 1e9 if adapter.sequence == 0 else 0.0,
            adapter.worker_id,
            adapter.node_id,
            self.batch_id,
        )

    @property
    def report(self) -> BatchReport:
        """The report of this attempt; reading it closes the attempt."""
        adapter, context = self.adapter, self.adapter.context
        ready_ns, ready_node, parents = _produced(self.states)
        report = BatchReport(
            run_id=context.run_id,
            stage_index=self.view.index,
            stage_name=self.view.name,
            batch_id=self.batch_id,
            worker_id=adapter.worker_id,
            node_id=adapter.node_id,
            pid=os.getpid(),
            sequence=adapter.sequence,
            start_unix_ns=self.start_unix,
            duration_ns=self.duration_ns,
            inputs=tuple(self.outcomes),
            epoch=context.epoch,
            group=context.group,
            attempt=self.attempt,
            cpu_ns=self.cpu_ns,
            idle_ns=self.idle_ns,
            startup_ns=adapter.startup_ns if adapter.sequence == 0 else 0,
            ready_unix_ns=ready_ns,
            ready_node_id=ready_node,
            parents=parents,
            in_bytes=self.in_bytes,
            out_bytes=self.out_bytes,
            num_items=self.num_items,
            metrics=self.metrics,
            error=None if self.error is None else error_info(self.error),
        )
        adapter.sequence += 1
        adapter.idle_since = time.perf_counter_ns()
        return report


def _batch_id(stage_index: int, ids: Sequence[str]) -> str:
    """The same for the same inputs in the same stage, in every run."""
    if len(ids) == 1:
        return f"{stage_index}/{ids[0]}"
    digest = blake2b("\0".join(ids).encode(), digest_size=8).hexdigest()
    return f"{stage_index}/{len(ids)}:{digest}"


def _produced(states: Sequence[TaskState]) -> tuple[int, str, tuple[str, ...]]:
    """When the last of the inputs was ready, on which node's clock, and the batches that made them."""
    ready, node = 0, ""
    parents: dict[str, None] = {}
    for state in states:
        if not state.perf:
            continue
        row = state.perf[-1]
        end = row[_START_NS] + int(row[_SECONDS] * 1e9)
        if end > ready:
            ready, node = end, row[_NODE]
        parents[row[_BATCH]] = None
    return ready, node, tuple(parents)


def _problem(task: Any, fields: Fields | None) -> tuple[str, dict[str, Any]] | None:
    """What is wrong with an input, as a message and the details of the error; None where it is fine."""
    if fields is not None:
        for name in fields.attributes:
            if not hasattr(task, name):
                have = sorted(key for key in vars(task) if not key.startswith("_"))
                return f"has no attribute '{name}'", {"field": name, "given": have, **_DECLARED}
        if fields.columns:
            have = list(getattr(task, "columns", ()))
            for name in fields.columns:
                if name not in have:
                    return f"has no column '{name}'", {"field": name, "given": have, **_DECLARED}
    if task.validate():
        return None
    return "is not valid", {
        "field": "validate()",
        "given": task,
        "expected": f"{type(task).__name__}.validate() to be true",
        "hint": "mend the stage that made it, or drop such tasks there",
    }


_DECLARED: dict[str, Any] = {
    "expected": "what the stage declares in inputs()",
    "hint": "add it in an earlier stage, or drop it from inputs() if it is not needed",
}
# Positions in the rows that TaskState.perf holds: the order of the fields of StagePerfStats.
_SECONDS, _START_NS, _NODE, _BATCH = 1, 6, 9, 10


def _as_iterable(entry: Any) -> Iterable[Any]:
    if entry is None:
        return ()
    return entry if isinstance(entry, list | tuple | Iterator) else (entry,)
