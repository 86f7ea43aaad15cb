# SPDX-License-Identifier: Apache-2.0
"""One immutable report for each batch, and the interface of its observers.

Every batch on every executor leaves a `BatchReport`, even if it outputs nothing or raises. The counts
of a run, its progress bar, its telemetry, and its accounting are all made from these reports and nothing else.
They are NamedTuples because millions of them cross process boundaries: making one costs 0.4 us and
unpickling 0.6 us, a tenth of a dataclass.
"""

# No `from __future__ import annotations` here: NamedTuple compiles each annotation that is a string, which made this
# module the slowest part of importing the package.

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from curator_core.deadletter.payload import Payload

__all__ = [
    "FIELD_OF",
    "ONE_OUT",
    "BatchReport",
    "ErrorInfo",
    "FailedInput",
    "InputOutcome",
    "OutcomeKind",
    "RunInfo",
    "StageInfo",
    "Tally",
    "WorkerReport",
    "WrittenFiles",
    "input_fields",
    "input_outcomes",
    "tally_of",
]

OutcomeKind = Literal["out", "filtered", "failed", "merged", "retried"]
"""The outcome of an input: it gave tasks, was dropped on purpose, was lost to an error, went into the tasks of another
input of its batch, or will be passed to the stage again (a later report of the same batch has its outcome).

Stages of this package never merge. A stage of another framework may turn a batch into any number of tasks: these count
as the outputs of the first input of the batch, and the other inputs are merged into it."""


class InputOutcome(NamedTuple):
    """The outcome of one input task of a batch.

    Attributes:
        task_id: The id of the input.
        kind: Its outcome.
        count: How many tasks it gave. Their ids follow from the input's: see `curator_core.tasks.child_id`.
            A source that failed halfway is ``failed`` and has a count: the tasks emitted before the failure.
    """

    task_id: str
    kind: OutcomeKind
    count: int  # type: ignore[assignment]  # hides tuple.count, which is not needed here


FIELD_OF: dict[OutcomeKind, str] = {
    "out": "passed",
    "filtered": "filtered",
    "failed": "failed",
    "merged": "merged",
    "retried": "retried",
}
"""The field of `Tally` that counts the inputs with an outcome, in the order of the fields."""


class Tally(NamedTuple):
    """How many inputs of a batch had which outcome.

    Attributes:
        passed: Inputs that gave at least one task.
        filtered: Inputs dropped on purpose.
        failed: Inputs lost to an error.
        merged: Inputs that went into the tasks of another input.
        retried: Inputs that will be passed to the stage again.
        out: Output tasks.
    """

    passed: int = 0
    filtered: int = 0
    failed: int = 0
    merged: int = 0
    retried: int = 0
    out: int = 0

    @property
    def num_in(self) -> int:
        """How many inputs have their final outcome."""
        return sum(self) - self.retried - self.out

    def plus(self, other: "Tally") -> "Tally":
        """Return the sum of both."""
        return Tally(*(mine + others for mine, others in zip(self, other, strict=True)))


def tally_of(num_inputs: int, others: Mapping[int, tuple[OutcomeKind, int]]) -> Tally:
    """Count inputs by outcome, and their output tasks.

    Args:
        num_inputs: How many inputs there are.
        others: Kind and count, by position, for the inputs that did not give exactly one task.
    """
    made = num_inputs - len(others)
    if not others:
        return Tally(made, 0, 0, 0, 0, made)  # positional arguments for speed: one is made for each batch
    counts = Counter[str]({"out": made})
    for kind, count in others.values():
        counts[kind] += 1
        made += count
    return Tally._make([*(counts[kind] for kind in FIELD_OF), made])


ONE_OUT: tuple[OutcomeKind, int] = ("out", 1)
"""The kind and count of an input that gave exactly one task, as most inputs do: reports do not contain it."""


def input_outcomes(ids: Sequence[str], others: Mapping[int, tuple[OutcomeKind, int]]) -> tuple[InputOutcome, ...]:
    """Return the outcome of each input, in order.

    Args:
        ids: The ids of the inputs.
        others: Kind and count, by position, for the inputs that did not give exactly one task.
    """
    return tuple(InputOutcome(task_id, *others.get(number, ONE_OUT)) for number, task_id in enumerate(ids))


def input_fields(outcomes: Iterable[InputOutcome]) -> dict[str, Any]:
    """Return the fields of a `BatchReport` that say which inputs it had and what their outcomes are."""
    known = tuple(outcomes)
    others = {i: (kind, count) for i, (_, kind, count) in enumerate(known) if (kind, count) != ONE_OUT}
    return {"input_ids": tuple(outcome.task_id for outcome in known), "other_outcomes": others}


class ErrorInfo(NamedTuple):
    """An exception that crossed a process boundary.

    Attributes:
        type: Qualified name of its class.
        message: Its ``str()``.
        traceback: The formatted traceback, with only the user's frames.
        pickled: The exception itself if it pickles within 64 kB, otherwise None.
        doing: What the stage was doing, to follow "raised ValueError": ``"in setup"``, ``"on task '3'"``.
        ends_run: Whether the run ends if failures end it.
    """

    type: str
    message: str
    traceback: str
    pickled: bytes | None = None
    doing: str = ""
    ends_run: bool = True


class WrittenFiles(NamedTuple):
    """Files that the last stage reports to have written, if the run keeps a checkpoint.

    Attributes:
        input_id: The id of the task that they were made from.
        task_id: The id of the output task that names them.
        paths: The files.
        dataset_name: The dataset that they belong to.
    """

    input_id: str
    task_id: str
    paths: list[str]
    dataset_name: str


class FailedInput(NamedTuple):
    """An input that failed for good, kept if the run asks for it.

    Attributes:
        number: Its position in the batch.
        error: The error.
        payload: The task as the stage first received it; None if it is not available.
    """

    number: int
    error: ErrorInfo
    payload: "Payload | None"


class BatchReport(NamedTuple):
    """One attempt at one batch in one stage.

    Attributes:
        run_id: The run.
        stage_index: Position of the stage in the plan, from 0.
        stage_name: The stage's name.
        batch_id: Deterministic: made from the stage and the ids of the inputs.
        worker_id: The worker.
        node_id: The worker's node.
        pid: The worker's process.
        sequence: Number of the batch on its worker and stage, from 0.
        start_unix_ns: When the attempt began, by the node's clock; in the driver, by the driver's clock if the executor
            corrects clocks that differ.
        duration_ns: How long it took, by a monotonic clock.
        input_ids: The ids of the inputs, in order.
        other_outcomes: Kind and count, by position, for the inputs that did not give exactly one task. Most do, and
            millions of reports cross process boundaries: see `inputs` for the outcome of each input.
        epoch: 0, plus 1 for each restart of the engine within the run.
        group: The group of stages (one Xenna stage each) that it ran in.
        attempt: Number of the attempt, from 1; higher if the stage retried the batch.
        bundle_id: The bundle in which the inputs were sent; empty if they were sent individually.
        cpu_ns: CPU time of the working thread, never more than `duration_ns`. A batch under 50 us counts in full,
            and up to 1 ms of the thread's earlier work may be counted for the batch.
        idle_ns: How long the worker had waited for this batch.
        startup_ns: Time of the worker's setup and imports, on its first batch; otherwise 0.
        ready_unix_ns: When the last of the inputs had been produced; 0 if unknown (first stage).
        ready_node_id: The node whose clock `ready_unix_ns` is from.
        parents: Ids of the batches that produced the inputs, each once.
        in_bytes: Payload bytes of the inputs, if tasks know their size (``num_bytes``); otherwise 0.
        out_bytes: Payload bytes of the outputs, if tasks know their size; otherwise 0.
        num_items: Sum of ``num_items`` over the inputs.
        metrics: The metrics that the stage recorded through ``self.metrics``.
        error: Why inputs failed or are retried; None if none did.
        failed_input: The inputs that failed for good, if the run keeps them; empty for observers.
        written_files: The files that the last stage wrote, if the run keeps a checkpoint.
    """

    run_id: str
    stage_index: int
    stage_name: str
    batch_id: str
    worker_id: str
    node_id: str
    pid: int
    sequence: int
    start_unix_ns: int
    duration_ns: int
    input_ids: tuple[str, ...]
    other_outcomes: Mapping[int, tuple[OutcomeKind, int]]
    epoch: int = 0
    group: int = 0
    attempt: int = 1
    bundle_id: str = ""
    cpu_ns: int = 0
    idle_ns: int = 0
    startup_ns: int = 0
    ready_unix_ns: int = 0
    ready_node_id: str = ""
    parents: tuple[str, ...] = ()
    in_bytes: int = 0
    out_bytes: int = 0
    num_items: int = 0
    metrics: dict[str, float | str] = {}  # noqa: RUF012 - a NamedTuple default; shared and never written to
    error: ErrorInfo | None = None
    failed_input: tuple[FailedInput, ...] = ()
    written_files: tuple[WrittenFiles, ...] = ()

    @property
    def end_unix_ns(self) -> int:
        """When the batch ended."""
        return self.start_unix_ns + self.duration_ns

    @property
    def inputs(self) -> tuple[InputOutcome, ...]:
        """The outcome of each input, in order. It is made for each access: `tally` counts without it."""
        return input_outcomes(self.input_ids, self.other_outcomes)

    @property
    def num_in(self) -> int:
        """How many inputs there are."""
        return len(self.input_ids)

    @property
    def num_out(self) -> int:
        """How many output tasks there are."""
        return self.tally().out

    @property
    def is_retried(self) -> bool:
        """Whether its inputs will be passed to the stage again: the attempt then does not count."""
        # A batch is retried as a whole.
        return 0 in self.other_outcomes and self.other_outcomes[0][0] == "retried"

    def tally(self) -> Tally:
        """Count the inputs by outcome, and the output tasks."""
        return tally_of(len(self.input_ids), self.other_outcomes)

    def all_as(self, kind: OutcomeKind) -> "BatchReport":
        """Return the report with this outcome for all inputs, and no output tasks."""
        return self._replace(other_outcomes=dict.fromkeys(range(len(self.input_ids)), (kind, 0)))


class WorkerReport(NamedTuple):
    """A step in the life of a stage's worker: workers that fail in setup leave no batch report.

    Attributes:
        run_id: The run.
        stage_index: Position of the stage in the plan.
        stage_name: The stage's name.
        worker_id: The worker.
        node_id: The worker's node.
        pid: The worker's process.
        event: ``"ready"`` after setup, ``"setup_failed"``, or ``"ended"`` after teardown.
        start_unix_ns: When the step began.
        duration_ns: How long setup or teardown took. In a worker process, setup includes loading the stage, with its
            imports.
        error: Why setup or teardown failed.
        epoch: As in `BatchReport`.
    """

    run_id: str
    stage_index: int
    stage_name: str
    worker_id: str
    node_id: str
    pid: int
    event: Literal["ready", "setup_failed", "ended"]
    start_unix_ns: int
    duration_ns: int
    error: ErrorInfo | None = None
    epoch: int = 0


class StageInfo(NamedTuple):
    """A stage, as observers see it before the run."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which is not needed here
    name: str
    class_name: str


class RunInfo(NamedTuple):
    """A run, as observers see it at its start.

    Attributes:
        run_id: 32 hex digits, from the operating system's randomness.
        pipeline_name: Name of the pipeline.
        executor_name: Class name of the executor.
        stages: The stages, in order.
        start_unix_ns: When the run began.
        num_source_tasks: How many source tasks there are, if known beforehand.
    """

    run_id: str
    pipeline_name: str
    executor_name: str
    stages: tuple[StageInfo, ...]
    start_unix_ns: int
    num_source_tasks: int | None = None
