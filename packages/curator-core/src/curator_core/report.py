# SPDX-License-Identifier: Apache-2.0
"""One immutable report for each batch, and the interface of whoever reads them.

Every batch on every executor leaves a `BatchReport`, also one that outputs nothing or raises. The counts
of a run, its progress bar, its telemetry and its accounting are all made from these and from nothing else.
They are NamedTuples because millions of them cross process boundaries: making one costs 0.4 us and
unpickling 0.6 us, a tenth of a dataclass.
"""

# No `from __future__ import annotations` here: NamedTuple compiles each annotation that is text, which made this module
# the slowest part of importing the package.

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

if TYPE_CHECKING:
    from curator_core.deadletter.payload import Payload
    from curator_core.executor import RunResult

__all__ = [
    "BatchReport",
    "ErrorInfo",
    "Fallen",
    "InputOutcome",
    "Manifest",
    "OutcomeKind",
    "Outcomes",
    "RunInfo",
    "RunObserver",
    "StageInfo",
    "Tally",
    "WorkerReport",
]

OutcomeKind = Literal["out", "filtered", "failed", "retried"]
"""What became of an input: it gave tasks, it was dropped on purpose, it is lost to an error, or it will be
handed to the stage again (a later report of the same batch says what became of it)."""


class InputOutcome(NamedTuple):
    """What became of one input task of a batch.

    Attributes:
        task_id: The input.
        kind: What became of it.
        count: Tasks that came out of it. Their ids follow from the input's: see `curator_core.task.child_id`.
            A source that failed half-way is ``failed`` and has a count: what it had emitted went on.
    """

    task_id: str
    kind: OutcomeKind
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody misses here


class Tally(NamedTuple):
    """How many inputs of a batch came to what.

    Attributes:
        passed: Inputs that gave at least one task.
        filtered: Inputs that were dropped on purpose.
        failed: Inputs that are lost to an error.
        retried: Inputs that will be handed to the stage again.
        out: Tasks that came out.
    """

    passed: int = 0
    filtered: int = 0
    failed: int = 0
    retried: int = 0
    out: int = 0

    def plus(self, other: "Tally") -> "Tally":
        """Both together."""
        return Tally(*(mine + others for mine, others in zip(self, other, strict=True)))


class Outcomes(Sequence[InputOutcome]):
    """What became of each input of a batch, in order.

    It reads as a sequence of `InputOutcome`. Inside it has the ids, and what became only of those inputs that did not
    give just one task: most do, and millions of reports cross process boundaries.

    Args:
        ids: The inputs.
        others: By position, kind and count of those that did not give exactly one task.
    """

    __slots__ = ("_ids", "_others")

    def __init__(self, ids: tuple[str, ...], others: Mapping[int, tuple[OutcomeKind, int]]) -> None:
        self._ids = ids
        self._others = others

    @classmethod
    def of(cls, outcomes: Iterable[InputOutcome]) -> "Outcomes":
        """From outcomes one by one."""
        known = tuple(outcomes)
        others = {i: (kind, count) for i, (_, kind, count) in enumerate(known) if (kind, count) != ("out", 1)}
        return cls(tuple(outcome.task_id for outcome in known), others)

    def all_as(self, kind: OutcomeKind) -> "Outcomes":
        """The same inputs, which all gave nothing."""
        return Outcomes(self._ids, dict.fromkeys(range(len(self._ids)), (kind, 0)))

    @property
    def are_retried(self) -> bool:
        """Whether they will be handed to the stage again: a batch is retried as a whole."""
        return 0 in self._others and self._others[0][0] == "retried"

    def tally(self) -> Tally:
        """How many came to what."""
        if not self._others:
            number = len(self._ids)
            return Tally(number, 0, 0, 0, number)  # by position: one is made for each batch
        counts = Counter[str]()
        made = 0
        for kind, count in self._others.values():
            counts[kind] += 1
            made += count
        single = len(self._ids) - len(self._others)
        return Tally(counts["out"] + single, counts["filtered"], counts["failed"], counts["retried"], made + single)

    @property
    def parts(self) -> tuple[tuple[str, ...], Mapping[int, tuple[OutcomeKind, int]]]:
        """What it is made of."""
        return self._ids, self._others

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, index: int) -> InputOutcome: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[InputOutcome, ...]: ...
    def __getitem__(self, index: int | slice) -> InputOutcome | tuple[InputOutcome, ...]:
        if isinstance(index, slice):
            return tuple(self)[index]
        number = range(len(self._ids))[index]
        return InputOutcome(self._ids[number], *self._others.get(number, ("out", 1)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"Outcomes{tuple(self)!r}"

    def __reduce__(self) -> tuple[Any, ...]:
        return Outcomes, self.parts


class ErrorInfo(NamedTuple):
    """An exception that crossed a process boundary.

    Attributes:
        type: Qualified name of its class.
        message: ``str()`` of it.
        traceback: The formatted traceback, the user's frames only.
        pickled: The exception itself where it pickles within 64 kB, else None.
        doing: What the stage was at, to follow "raised ValueError": ``"in set-up"``, ``"on task '3'"``.
    """

    type: str
    message: str
    traceback: str
    pickled: bytes | None = None
    doing: str = ""


class Manifest(NamedTuple):
    """Files that the last stage says that it wrote, where the run keeps a checkpoint.

    Attributes:
        input_id: The task that they were made of.
        task_id: The task that says so.
        paths: The files.
        dataset_name: Which dataset they belong to.
    """

    input_id: str
    task_id: str
    paths: list[str]
    dataset_name: str


class Fallen(NamedTuple):
    """An input that failed for good, kept where the run asks for it.

    Attributes:
        number: Its position in the batch.
        error: Why.
        payload: The task as it first came into the stage; None where it cannot be had.
    """

    number: int
    error: ErrorInfo
    payload: "Payload | None"


class BatchReport(NamedTuple):
    """One attempt at one batch in one stage.

    Attributes:
        run_id: The run.
        stage_index: Position of the stage in the plan, from 0.
        stage_name: Its name.
        batch_id: Deterministic: made from the stage and the ids of the inputs.
        worker_id: The worker.
        node_id: Its node.
        pid: Its process.
        sequence: Number of the batch on its worker and stage, from 0.
        start_unix_ns: When it began, by the node's clock; once it is in the driver, by the driver's, where the executor
            corrects clocks that differ.
        duration_ns: How long it took, monotonic clock.
        inputs: The outcome of each input, in order.
        epoch: 0, and one more for each restart of the engine within the run.
        group: Which group of stages (one Xenna stage each) it ran in.
        attempt: From 1; above it where the stage retried the batch.
        bundle_id: The bundle that the inputs travelled in; empty where they travelled alone.
        cpu_ns: CPU time of the working thread, never more than `duration_ns`. A batch under 50 us counts throughout,
            and up to 1 ms that the thread had worked before it may count as the batch's.
        idle_ns: How long the worker had waited for this batch.
        startup_ns: Set-up time of the worker, on its first batch; else 0.
        ready_unix_ns: When the last of the inputs had been produced; 0 where not known (first stage).
        ready_node_id: The node whose clock says so.
        parents: Ids of the batches that produced the inputs, each once.
        in_bytes: Payload bytes in, where tasks know their size (``num_bytes``); else 0.
        out_bytes: Payload bytes out, likewise.
        num_items: Sum of ``num_items`` over the inputs.
        metrics: What the stage recorded through ``self.metrics``.
        error: Why inputs failed or are retried; None where none did.
        fallen: The inputs that failed for good, where the run keeps them; observers are told without.
        manifests: What the last stage wrote, where the run keeps a checkpoint.
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
    inputs: Outcomes
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
    fallen: tuple[Fallen, ...] = ()
    manifests: tuple[Manifest, ...] = ()

    @property
    def end_unix_ns(self) -> int:
        """When the batch ended."""
        return self.start_unix_ns + self.duration_ns

    @property
    def num_out(self) -> int:
        """Tasks that came out."""
        return self.inputs.tally().out

    @property
    def is_retried(self) -> bool:
        """Whether its inputs are handed to the stage again: it counts for nothing then."""
        return self.inputs.are_retried


class WorkerReport(NamedTuple):
    """A step in the life of a worker of a stage: workers that fail in set-up leave no batch report.

    Attributes:
        run_id: The run.
        stage_index: Position of the stage in the plan.
        stage_name: Its name.
        worker_id: The worker.
        node_id: Its node.
        pid: Its process.
        event: ``"ready"`` after set-up, ``"setup_failed"``, or ``"ended"`` after teardown.
        start_unix_ns: When the step began.
        duration_ns: How long it took: set-up time, or teardown time.
        error: Why set-up or teardown failed.
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
    """What an observer is told about a stage before the run."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody misses here
    name: str
    class_name: str


class RunInfo(NamedTuple):
    """What an observer is told when a run starts.

    Attributes:
        run_id: 32 hex digits, from the operating system's randomness.
        pipeline_name: Name of the pipeline.
        executor_name: Class name of the executor.
        stages: The stages, in order.
        start_unix_ns: When the run began.
        num_source_tasks: How many source tasks there are, where that is known beforehand.
    """

    run_id: str
    pipeline_name: str
    executor_name: str
    stages: tuple[StageInfo, ...]
    start_unix_ns: int
    num_source_tasks: int | None = None


class RunObserver:
    """Watches a run through its reports. Override what you need.

    Calls come from one thread at a time, in the driver process, in the order in which reports arrive. An
    exception in an observer never reaches the run: it is logged, and the observer is told nothing more but the end.
    """

    def on_run_start(self, run: RunInfo) -> None:
        """The run begins; nothing has been set up yet."""

    def on_batch(self, report: BatchReport) -> None:
        """A batch, or one attempt at it, has ended."""

    def on_worker(self, report: WorkerReport) -> None:
        """A worker was set up, failed to, or ended."""

    def trace_of(self, run_id: str) -> str:
        """The trace that it writes of a run that has begun, 32 hex digits; empty where it writes none."""
        del run_id
        return ""

    def on_run_end(self, result: "RunResult", error: BaseException | None) -> None:
        """The run is over. Always called, once, also after an error or Ctrl-C."""
