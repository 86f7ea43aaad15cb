# SPDX-License-Identifier: Apache-2.0
"""The result of a run: its outputs and its totals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


__all__ = ["TOO_SHORT", "Accounting", "RunResult", "RunState", "StageSpeed", "StageSummary", "Verdict", "VerdictKind"]


RunState: TypeAlias = Literal["complete", "failed", "interrupted", "terminated", "preempted"]

_WIDTH = 120  # columns of the terminal that the table should fit
_SHORTEST_NAME = 12  # characters left of a stage's name if long counts make the table too wide
_LINE_LIMIT = 120  # characters of an error that the summary shows
_NODES_LIMIT = 4  # nodes whose clocks the summary shows: those that differ most
_IDS_LIMIT = 5  # source tasks that the summary names
_ACCOUNTS = "no tasks lost: in = {outcomes} in each stage, and each output went into the next stage"
_RESUMED = ", except those that an earlier run finished"
_ELSEWHERE = ", except those of other shards"


VerdictKind = Literal["busy", "equal", "waits", "retries", "transport", "skew", "setup", "too_short", "unclear"]
"""The bottleneck of a run: a busy stage, several equally busy stages, a stage that waits for something other than a
CPU, failed attempts, transport between stages, one batch, setup; or unknown, because the run was too short or the cause
is unclear."""


class Verdict(NamedTuple):
    """Where the time of a run went.

    Attributes:
        kind: The kind of bottleneck.
        stage: The stage to look at; empty if there is no single one.
        busy_ratio: Share of the run's time in which the workers of that stage were busy, 0 to 1.
        reason: The explanation, in words.
        advice: What to change; empty if nothing is known to help.
    """

    kind: VerdictKind
    stage: str = ""
    busy_ratio: float = 0.0
    reason: str = ""
    advice: str = ""

    def __str__(self) -> str:
        said = f"bottleneck: {self.reason}" if self.stage else self.reason
        return f"{said}; {self.advice}" if self.advice else said


TOO_SHORT = Verdict("too_short", reason="run too short to find a bottleneck")


@dataclass(frozen=True, slots=True)
class StageSummary:
    """Totals of one stage in a run. ``tasks_in`` is always the sum of the other four numbers of inputs.

    Attributes:
        name: Name of the stage.
        batches: Batches that ended, not counting retried attempts.
        tasks_in: Input tasks.
        tasks_passed: Inputs that gave at least one task.
        tasks_out: Output tasks; more than passed if the stage fans out.
        tasks_filtered: Inputs that the stage dropped.
        tasks_failed: Inputs lost to an error.
        tasks_merged: Inputs that went into the tasks of another input: only stages of other frameworks do that.
        attempts_retried: Attempts that raised and were retried.
        items: Sum of ``num_items`` over the inputs.
        process_s: Seconds in the stage's code, over all workers.
        cpu_s: Seconds of CPU time of the working threads.
        idle_s: Seconds that workers waited for input.
        startup_s: Seconds of setup, and of imports in worker processes, over all workers.
        workers: Workers that were set up.
        first_start_unix_ns: When its first batch began; 0 if it had none.
        last_end_unix_ns: When its last batch ended.
        first_error: Its first failure, as ``ValueError: …``; empty if it had none.
    """

    name: str
    batches: int = 0
    tasks_in: int = 0
    tasks_passed: int = 0
    tasks_out: int = 0
    tasks_filtered: int = 0
    tasks_failed: int = 0
    tasks_merged: int = 0
    attempts_retried: int = 0
    items: int = 0
    process_s: float = 0.0
    cpu_s: float = 0.0
    idle_s: float = 0.0
    startup_s: float = 0.0
    workers: int = 0
    first_start_unix_ns: int = 0
    last_end_unix_ns: int = 0
    first_error: str = ""

    @property
    def items_per_s(self) -> float:
        """Items per second of work in the stage; 0 if it did no work."""
        return self.items / self.process_s if self.process_s else 0.0


class StageSpeed(NamedTuple):
    """How fast a stage is, per input task.

    Attributes:
        seconds: Seconds in the stage's code.
        cpu_seconds: Seconds of CPU time of the thread that runs the stage, without its other threads and processes.
        outputs: Output tasks.
    """

    seconds: float
    cpu_seconds: float = 0.0
    outputs: float = 1.0


class Accounting(NamedTuple):
    """The source tasks of a run by outcome, with their ids.

    Attributes:
        admitted: How many source tasks the run had to process.
        resumed: Source tasks that were skipped because an earlier run with the same checkpoint finished them.
        failed: By stage, the tasks that failed for good in it.
        restarts: How often the engine restarted because it had lost some of the work.
        unfinished: Source tasks with work left when the run ended; empty after a complete run.
        shard: Index and count, if the run processed only a shard of the source.
        elsewhere: How many source tasks belong to the other shards.
    """

    admitted: int = 0
    resumed: tuple[str, ...] = ()
    failed: Mapping[str, tuple[str, ...]] = {}  # shared, and never written to
    restarts: int = 0
    unfinished: tuple[str, ...] = ()
    shard: tuple[int, int] | None = None
    elsewhere: int = 0

    @property
    def finished(self) -> int:
        """How many of the admitted source tasks are finished."""
        return self.admitted - len(self.unfinished)


class RunResult(list[Any]):
    """The output tasks of a run, with its totals.

    With `LocalExecutor`, the tasks are in the order of the source; with others, in the order of completion.

    Attributes:
        run_id: 32 hex digits.
        pipeline_name: Name of the pipeline.
        wall_time_s: Seconds from start to end, including the setup of the engine.
        stages: The totals of each stage.
        complete: Whether the run completed.
        state: How the run ended: ``"complete"``, ``"failed"``, ``"interrupted"`` (Ctrl-C), ``"terminated"`` (SIGTERM),
            or ``"preempted"`` (SIGUSR1).
        lost: Where the counts do not add up, in words; empty if no tasks were lost.
        verdict: The bottleneck of the run, and how to fix it.
        clock_offsets: By node, the seconds added to the times in its reports to correct for the difference between its
            clock and the driver's: the last estimate. Only nodes that were corrected; empty on one machine.
        accounting: The outcome of the source tasks.
        trace_id: The trace that an observer wrote, 32 hex digits; empty if none did.
    """

    def __init__(
        self,
        tasks: Iterable[Any] = (),
        *,
        run_id: str = "",
        pipeline_name: str = "",
        wall_time_s: float = 0.0,
        stages: Sequence[StageSummary] = (),
        complete: bool = True,
        lost: Sequence[str] = (),
        verdict: Verdict | None = None,
        clock_offsets: Mapping[str, float] | None = None,
        accounting: Accounting | None = None,
        state: RunState | None = None,
    ) -> None:
        super().__init__(tasks)
        self.run_id = run_id
        self.pipeline_name = pipeline_name
        self.wall_time_s = wall_time_s
        self.stages = tuple(stages)
        self.complete = complete
        self.state: RunState = state or ("complete" if complete else "failed")
        self.lost = tuple(lost)
        self.verdict = verdict or TOO_SHORT
        self.clock_offsets = dict(clock_offsets or {})
        self.accounting = accounting or Accounting()
        self.trace_id = ""

    @property
    def speeds(self) -> dict[str, StageSpeed]:
        """The speed of each stage that had inputs, by name; retried attempts count as time."""
        return {
            stage.name: StageSpeed(
                stage.process_s / stage.tasks_in, stage.cpu_s / stage.tasks_in, stage.tasks_out / stage.tasks_in
            )
            for stage in self.stages
            if stage.tasks_in
        }

    def summary(self) -> str:
        """Return the run as a text table, and whether its counts add up: if they do not, what is missing."""
        state = "" if self.complete else f" (ended early: {self.state})"
        run = f"run {self.run_id}" + (f", trace {self.trace_id}" if self.trace_id not in ("", self.run_id) else "")
        count = max(len(self), self.stages[-1].tasks_out if self.stages else 0)  # they may not have been collected
        lines = [f"{self.pipeline_name}: {count:,} tasks out in {self.wall_time_s:.1f} s{state}, {run}"]
        if self.stages:
            lines.append(_table(self.stages))
            if self.complete and not self.lost:
                left_out = _RESUMED * bool(self.accounting.resumed) + _ELSEWHERE * bool(self.accounting.elsewhere)
                outcomes = " + ".join(_outcomes(self.stages))
                lines.append(_ACCOUNTS.format(outcomes=outcomes) + left_out)
            lines.append(str(self.verdict))
        for stage in self.stages:
            if stage.first_error:
                failed = _counted(stage.tasks_failed, "task")
                lines.append(f"'{stage.name}' failed on {failed}; first error: {_first_line(stage.first_error)}")
        lines += _about_sources(self.accounting)
        if self.clock_offsets:
            lines.append(f"clocks corrected: {_shown_offsets(self.clock_offsets)}")
        lines += [f"unaccounted for: {finding}" for finding in self.lost]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<RunResult {self.run_id}: {len(self)} tasks, {len(self.stages)} stages>"


def _table(summaries: Sequence[StageSummary]) -> str:
    """Return the totals as a text table, one line per stage: its inputs, their outcomes, and its outputs."""
    outcomes = _outcomes(summaries)
    header = ("batches", "in", *outcomes, "out", "process s", "idle s", "start-up s", "items/s")
    rows = [header, *(_row(stage, outcomes) for stage in summaries)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    room = max(_WIDTH - sum(width + 2 for width in widths), _SHORTEST_NAME)
    names = ["stage", *(_cut(stage.name, room) for stage in summaries)]
    name_width = max(map(len, names))
    lines = []
    for name, row in zip(names, rows, strict=True):
        cells = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join([name.ljust(name_width), *cells]))
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(lines)


def _cut(name: str, room: int) -> str:
    return name if len(name) <= room else f"{name[: room - 1]}…"


def _outcomes(summaries: Sequence[StageSummary]) -> list[str]:
    """Return the outcomes of inputs that a table shows: stages that merge are rare."""
    merged = ["merged"] if any(stage.tasks_merged for stage in summaries) else []
    return ["passed", "filtered", "failed", *merged]


def _row(stage: StageSummary, outcomes: Sequence[str]) -> tuple[str, ...]:
    return (
        f"{stage.batches:,}",
        f"{stage.tasks_in:,}",
        *(f"{getattr(stage, f'tasks_{outcome}'):,}" for outcome in outcomes),
        f"{stage.tasks_out:,}",
        f"{stage.process_s:.2f}",
        f"{stage.idle_s:.2f}",
        f"{stage.startup_s:.2f}",
        f"{stage.items_per_s:,.1f}",
    )


def _about_sources(accounting: Accounting) -> list[str]:
    """Describe the source tasks that were skipped, left to other shards, or not finished."""
    lines = []
    if accounting.shard is not None:
        index, count = accounting.shard
        left = _counted(accounting.elsewhere, "source task")
        lines.append(f"shard {index} of {count} (from 0): {left} left to the other shards")
    if accounting.resumed:
        lines.append(f"skipped: {_counted(len(accounting.resumed), 'source task')} that earlier runs finished")
    if accounting.restarts:
        lines.append(
            f"the engine restarted {_counted(accounting.restarts, 'time')} because it had lost some of the work"
        )
    if accounting.unfinished:
        some = f"{len(accounting.unfinished):,} of {_counted(accounting.admitted, 'source task')}"
        lines.append(f"unfinished: {some}{_shown_ids(accounting.unfinished)}")
    return lines


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _shown_ids(ids: Sequence[str]) -> str:
    shown = [repr(each) for each in ids[:_IDS_LIMIT] if each]  # a source stage's own task, on a worker, has none
    left = len(ids) - _IDS_LIMIT
    return (f": {', '.join(shown)}" if shown else "") + (f", and {left:,} more" if left > 0 else "")


def _first_line(text: str) -> str:
    line = text.split("\n", 1)[0]
    return line if len(line) <= _LINE_LIMIT else f"{line[:_LINE_LIMIT]}…"


def _shown_offsets(offsets: Mapping[str, float]) -> str:
    largest = sorted(offsets.items(), key=lambda item: -abs(item[1]))
    shown = [f"node {node_id[:8]} by {seconds:+.3f} s" for node_id, seconds in largest[:_NODES_LIMIT]]
    left = len(largest) - len(shown)
    return ", ".join(shown) + (f", and {left} more" if left else "")
