# SPDX-License-Identifier: Apache-2.0
"""The verdict on pipelines with one fault each. They exist only as reports with exact times, without an engine."""

from __future__ import annotations

import heapq
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator_core import LocalExecutor, Pipeline, ProcessingStage, Task
from curator_core._bottleneck.activity import Activity
from curator_core._bottleneck.rules import Evidence, Loner, StageEvidence, Team, judge
from curator_core._plan.plan import Plan
from curator_core._reports.batch import BatchReport, ErrorInfo, InputOutcome, WorkerReport, input_fields
from curator_core._reports.columns import ReportColumns
from curator_core._reports.wire import AnyReport, pack_reports, unpack_reports
from curator_core._run.run import Run
from curator_core._run.run_totals import RunTotals
from curator_core._run.settings import RunSettings
from curator_core.results import TOO_SHORT, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

START = 1_800_000_000_000_000_000
_ERROR = ErrorInfo("ValueError", "no", "")


class Noop(ProcessingStage[Task[int], Task[int]]):
    def process(self, task: Task[int]) -> Task[int]:
        return task


@dataclass
class OnPaper:
    """A stage with its own workers.

    Attributes:
        name: Its name.
        seconds: Seconds per task.
        workers: Number of workers.
        setup: Seconds of setup.
        cpu: Share of its time that is CPU time.
        failing: Interval of attempts that fail and are retried; 0 for none.
        slow: Seconds of single tasks, by number.
        fused: Stages that run after it in the same workers.
    """

    name: str
    seconds: float
    workers: int = 1
    setup: float = 0.0
    cpu: float = 1.0
    failing: int = 0
    slow: dict[int, float] = field(default_factory=dict)
    fused: tuple[OnPaper, ...] = ()


def judged(stages: list[OnPaper], tasks: int = 200, hop: float = 0.001) -> Verdict:
    """Return the verdict on a run.

    Args:
        stages: The stages.
        tasks: Number of tasks.
        hop: Seconds that a task takes from one worker to the next.
    """
    return judged_by([one for stage in stages for one in (stage, *stage.fused)], reports(stages, tasks, hop))


def judged_by(stages: list[OnPaper], told: list[BatchReport | WorkerReport]) -> Verdict:
    """Return the verdict on the reports of these stages, whether they arrive one by one or in bundles."""
    plan = Plan.from_stages([Noop().with_(name=stage.name) for stage in stages], fed=True)
    verdict = _judged(plan, told)
    assert _judged(plan, in_bundles(told)) == verdict
    return verdict


def _judged(plan: Plan, told: Iterable[AnyReport]) -> Verdict:
    ledger, activity = RunTotals(plan), Activity(len(plan.stages))
    for report in told:
        if isinstance(report, BatchReport):
            ledger.on_batch(report)
            activity.on_batch(report)
        elif isinstance(report, ReportColumns):
            ledger.on_columns(report)
            activity.on_columns(report)
        else:
            ledger.on_worker(report)
            activity.on_worker(report)
    evidence = activity.evidence(ledger.stage_evidence())
    assert all(0 <= share <= 1 for team in evidence.teams for share in (team.use, team.starved, team.gap))
    return judge(evidence)


def in_bundles(told: list[BatchReport | WorkerReport]) -> Iterator[AnyReport]:
    """Yield reports as they arrive if each worker sends four at a time, or fewer at the end."""
    waiting: dict[str, list[BatchReport | WorkerReport]] = {}
    for report in told:
        mine = waiting.setdefault(report.worker_id, [])
        mine.append(report)
        if len(mine) == 4:
            yield from unpack_reports(pack_reports(mine))
            mine.clear()
    for mine in waiting.values():
        yield from unpack_reports(pack_reports(mine))


def reports(stages: list[OnPaper], tasks: int, hop: float) -> list[BatchReport | WorkerReport]:
    made: list[tuple[float, BatchReport | WorkerReport]] = []
    ready = dict.fromkeys(range(tasks), 0.0)
    first = 0
    for stage in stages:
        group = [stage, *stage.fused]
        ready = _run(group, first, ready, hop, made, source=first == 0)
        first += len(group)
    return [report for _, report in sorted(made, key=lambda pair: pair[0])]


def _run(
    group: list[OnPaper],
    first: int,
    ready: dict[int, float],
    hop: float,
    made: list[tuple[float, BatchReport | WorkerReport]],
    *,
    source: bool,
) -> dict[int, float]:
    setup = sum(stage.setup for stage in group)
    free = [(setup, f"{group[0].name}-{number}") for number in range(group[0].workers)]
    for _, worker in free:
        for index, stage in enumerate(group, first):
            made.append((setup, _life(index, stage.name, worker, "ready", 0.0, stage.setup)))
    since = {worker: setup for _, worker in free}
    after = {}
    for task, came in sorted(ready.items(), key=lambda item: item[1]):
        at, worker = heapq.heappop(free)
        when, start = came, max(at, came + hop)
        for index, stage in enumerate(group, first):
            known = 0.0 if source and index == first else when
            for failed in [True, False] if stage.failing and task % stage.failing == 0 else [False]:
                took = stage.slow.get(task, stage.seconds)
                report = _batch(index, stage, worker, task, start, took, start - since[worker], known, failed=failed)
                since[worker] = start = when = start + took
                made.append((start, report))
        after[task] = start
        heapq.heappush(free, (start, worker))
    for at, worker in free:
        for index, stage in enumerate(group, first):
            made.append((at + 1e-6, _life(index, stage.name, worker, "ended", max(after.values()), 0.0)))
    return after


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def _batch(
    index: int,
    stage: OnPaper,
    worker: str,
    task: int,
    start: float,
    took: float,
    idle: float,
    ready: float,
    *,
    failed: bool,
) -> BatchReport:
    return BatchReport(
        run_id="r",
        stage_index=index,
        stage_name=stage.name,
        batch_id=f"{index}/{task}",
        worker_id=worker,
        node_id="n",
        pid=1,
        sequence=task,
        start_unix_ns=START + _ns(start),
        duration_ns=_ns(took),
        **input_fields([InputOutcome(str(task), "retried" if failed else "out", 0 if failed else 1)]),
        cpu_ns=_ns(took * stage.cpu),
        idle_ns=_ns(idle),
        ready_unix_ns=START + _ns(ready) if ready else 0,
        error=_ERROR if failed else None,
    )


def _life(index: int, name: str, worker: str, event: str, start: float, took: float) -> WorkerReport:
    return WorkerReport("r", index, name, worker, "n", 1, event, START + _ns(start), _ns(took))  # type: ignore[arg-type]


# --- one fault each ---------------------------------------------------------------------------


FAST, SLOW = 0.005, 0.05


def chain(**slow: float) -> list[OnPaper]:
    """Return three stages, some of which are slow."""
    return [OnPaper(name, slow.get(name, FAST)) for name in "ABC"]


@pytest.mark.parametrize("name", "ABC")
def test_the_slow_stage_is_named(name: str) -> None:
    verdict = judged(chain(**{name: SLOW}))
    assert (verdict.kind, verdict.stage) == ("busy", name)
    assert verdict.busy_ratio > 0.9
    assert re.search(rf"'{name}' are busy \d+% of the time while the others wait", verdict.reason)


@pytest.mark.parametrize("workers", [2, 4])
def test_the_slow_stage_is_named_if_it_has_several_workers(workers: int) -> None:
    stages = chain(B=SLOW * workers)
    stages[1].workers = workers
    verdict = judged(stages)
    assert (verdict.kind, verdict.stage) == ("busy", "B")
    assert verdict.busy_ratio > 0.9


@pytest.mark.parametrize("pair", ["AB", "BC", "AC"])
def test_two_equally_slow_stages_are_both_named(pair: str) -> None:
    verdict = judged(chain(**dict.fromkeys(pair, SLOW)))
    assert verdict.kind == "equal"
    assert all(f"'{name}'" in verdict.reason for name in pair)


def test_a_slow_setup_is_named() -> None:
    stages = chain()
    stages[1].setup = 9.0
    verdict = judged(stages, tasks=700)
    assert (verdict.kind, verdict.stage) == ("setup", "B")
    assert "9.0 s" in verdict.reason


def test_a_setup_that_is_short_for_the_run_is_not_the_bottleneck() -> None:
    stages = chain(C=SLOW)
    stages[1].setup = 2.0
    assert judged(stages, tasks=400).kind == "busy"


def test_a_giant_task_is_named() -> None:
    stages = chain(B=0.02)
    stages[1].workers = 4
    stages[1].slow = {150: 8.0}
    verdict = judged(stages, tasks=400)
    assert (verdict.kind, verdict.stage) == ("skew", "B")
    assert "task '150' took 8.0 s" in verdict.reason


def test_a_giant_task_that_delays_nothing_is_not_named() -> None:
    stages = chain(B=0.02)
    stages[1].workers = 2
    stages[1].slow = {0: 4.0}
    assert judged(stages, tasks=800).kind != "skew"


def test_a_stage_that_waits_is_named() -> None:
    stages = chain(B=SLOW)
    stages[1].cpu = 0.05
    verdict = judged(stages)
    assert (verdict.kind, verdict.stage) == ("waits", "B")
    assert "95%" in verdict.reason


def test_a_stage_with_many_failed_attempts_is_named() -> None:
    stages = chain(B=SLOW)
    stages[1].failing = 1
    verdict = judged(stages)
    assert (verdict.kind, verdict.stage) == ("retries", "B")
    assert "50%" in verdict.reason


def test_transfer_time_above_processing_time_is_named() -> None:
    # A worker is idle while the next task is in transit, as if tasks were sent one at a time.
    told: list[BatchReport | WorkerReport] = []
    stages = [OnPaper("A", 0.002), OnPaper("B", 0.002)]
    for index, stage in enumerate(stages):
        told.append(_life(index, stage.name, stage.name, "ready", 0.0, 0.0))
        for task in range(300):
            sent = 0.02 * task + 0.015 * index
            told.append(_batch(index, stage, stage.name, task, sent + 0.013, 0.002, 0.018, sent * index, failed=False))
    verdict = judged_by(stages, told)
    assert verdict.kind == "transport"
    assert "bundle=True" in verdict.advice


@pytest.mark.parametrize(("tasks", "seconds"), [(5, 0.1), (200, 0.001)])
def test_a_short_run_has_no_bottleneck(tasks: int, seconds: float) -> None:
    verdict = judged(chain(B=seconds), tasks=tasks)
    assert verdict == Verdict("too_short", reason="run too short to find a bottleneck")
    assert str(verdict) == verdict.reason


def test_a_few_long_batches_are_enough_for_a_verdict() -> None:
    verdict = judged(chain(B=20.0), tasks=8)
    assert (verdict.kind, verdict.stage) == ("busy", "B")


def test_the_slowest_stage_of_shared_workers_is_named() -> None:
    stages = [OnPaper("A", FAST), OnPaper("B", FAST, fused=(OnPaper("C", SLOW),))]
    verdict = judged(stages)
    assert (verdict.kind, verdict.stage) == ("busy", "C")
    assert "it shares its workers with 'B'" in verdict.advice
    assert re.search(r"9\d% of that in this stage", verdict.reason)


def test_a_balanced_run_has_no_bottleneck() -> None:
    evidence = Evidence((StageEvidence("A", 100, 10**9, 10**9),), (Team((0,), 1, 0.3),), 10**10, 10**10)
    verdict = judge(evidence)
    assert verdict.kind == "unclear"
    assert str(verdict) == "no bottleneck found: the busiest stage, 'A', was busy 30% of the time"


def test_the_stage_that_feeds_a_starving_one_is_named() -> None:
    stages = tuple(StageEvidence(name, 100, 10**9, 10**9) for name in "ABC")
    teams = (Team((0,), 8, 0.3, starved=0.05, gap=0.4), Team((1,), 1, 0.45, starved=0.5), Team((2,), 1, 0.0))
    verdict = judge(Evidence(stages, teams, 10**10, 10**10))
    assert (verdict.kind, verdict.stage) == ("transport", "A")


def test_a_source_that_ended_long_ago_is_not_a_bottleneck() -> None:
    source, later = OnPaper("A", 0.001), OnPaper("B", 0.1)
    told: list[BatchReport | WorkerReport] = [_life(0, "A", "a", "ready", 0.0, 0.0)]
    # Its inputs were in transit for most of its own time.
    told += [_batch(0, source, "a", n, 0.03 * n, 0.001, 0.029, 1e-6, failed=False) for n in (1, 2, 3)]
    told.append(_life(0, "A", "a", "ended", 0.1, 0.0))
    for worker in ("b0", "b1"):
        told.append(_life(1, "B", worker, "ready", 0.1, 0.0))
        for number in range(44):
            at = 0.225 * (number + 1)
            told.append(_batch(1, later, worker, number, at, 0.1, 0.125, at, failed=False))
    verdict = judged_by([source, later], told)
    assert str(verdict) == "no bottleneck found: the busiest stage, 'B', was busy 44% of the time"


def test_stages_of_a_worker_are_loaded_before_the_first_one_is_set_up() -> None:
    stages = [OnPaper(name, 1.5) for name in "ABC"]
    # Six seconds to load the three, and then no time to set them up.
    told: list[BatchReport | WorkerReport] = [_life(n, name, "w", "ready", 4.0, 2.0) for n, name in enumerate("ABC")]
    for number in range(20):
        for index, stage in enumerate(stages):
            start = 6.0 + 0.225 * number + 0.075 * index
            told.append(_batch(index, stage, "w", number, start, 0.075, 0.0, 0.0, failed=False))
    assert judged_by(stages, told).kind == "busy"  # two of ten and a half seconds are not much


@pytest.mark.parametrize(("workers", "times"), [(2, 3), (1, 20)])
def test_a_usual_batch_or_one_of_a_single_worker_is_not_a_giant(workers: int, times: int) -> None:
    stages = (StageEvidence("A", 100, 10**10, 10**10, median_ns=10**9),)
    loner = Loner(0, times * 10**9, 5 * 10**9, 1, "7")
    team = Team((0,), workers, 1.0)
    assert judge(Evidence(stages, (team,), 10**10, 10**10, loners=(loner,))).kind == "busy"


def test_a_gpu_stage_with_little_cpu_time_is_not_waiting() -> None:
    stages = (StageEvidence("A", 100, 10**10, 10**8, on_gpu=True),)
    assert judge(Evidence(stages, (Team((0,), 1, 1.0),), 10**10, 10**10)).kind == "busy"


def test_more_workers_are_not_recommended_for_a_source() -> None:
    stages = (StageEvidence("List", 100, 10**10, 10**10, is_source=True), StageEvidence("B", 100, 10**8, 10**8))
    verdict = judge(Evidence(stages, (Team((0,), 1, 0.9), Team((1,), 1, 0.1)), 10**10, 10**10))
    assert (verdict.kind, verdict.stage) == ("busy", "List")
    assert "workers" not in verdict.advice


def test_a_few_failures_per_batch_are_not_the_bottleneck() -> None:
    told: list[BatchReport | WorkerReport] = []
    kinds = [InputOutcome(str(n), "failed" if n == 0 else "out", int(n > 0)) for n in range(100)]
    for task in range(100):
        report = _batch(0, OnPaper("A", 0.05), "w", task, 0.05 * task, 0.05, 0.0, 0.0, failed=False)
        told.append(report._replace(**input_fields(kinds), error=_ERROR))
    assert judged_by([OnPaper("A", 0.05)], told).kind == "busy"


def test_the_slowest_of_sequential_stages_is_named() -> None:
    told: list[BatchReport | WorkerReport] = []
    stages = [OnPaper("A", 0.02), OnPaper("B", 0.03), OnPaper("C", 0.02)]
    at = 0.0
    for index, stage in enumerate(stages):
        told.append(_life(index, stage.name, stage.name, "ready", at, 0.0))
        for task in range(100):
            told.append(_batch(index, stage, stage.name, task, at, stage.seconds, 0.0, 0.0, failed=False))
            at += stage.seconds
        told.append(_life(index, stage.name, stage.name, "ended", at, 0.0))
    verdict = judged_by(stages, told)
    assert (verdict.kind, verdict.stage) == ("busy", "B")
    assert "one after the other" in verdict.reason


def test_a_failed_or_dead_worker_does_not_count_as_idle() -> None:
    stages = chain(B=SLOW)
    told = reports(stages, 200, 0.001)
    failed = _life(1, "B", "B-failed", "setup_failed", 0.0, 0.1)
    last = next(number for number, report in enumerate(told) if getattr(report, "batch_id", "") == "1/100")
    told = [
        failed,
        *told[: last + 1],
        _life(1, "B", "B-again", "ready", 5.0, 0.01),
        *(report._replace(worker_id="B-again") if report.worker_id == "B-0" else report for report in told[last + 1 :]),
    ]
    verdict = judged_by(stages, told)
    assert (verdict.kind, verdict.stage) == ("busy", "B")
    assert verdict.busy_ratio > 0.9


def test_processes_that_run_all_stages_are_judged_together() -> None:
    told: list[BatchReport | WorkerReport] = []
    stages = [OnPaper("A", 0.01), OnPaper("B", 0.04)]
    for worker in "vw":
        at = 0.0
        for task in range(100):
            for index, stage in enumerate(stages):
                if not task:
                    told.append(_life(index, stage.name, worker, "ready", at, 0.0))
                told.append(_batch(index, stage, worker, task, at, stage.seconds, 0.0, 0.0, failed=False))
                at += stage.seconds
    verdict = judged_by(stages, told)
    assert (verdict.kind, verdict.stage) == ("busy", "B")
    assert verdict.reason == "'B' takes 80% of the time in all stages"


def test_a_giant_task_is_found_if_reports_are_bundled() -> None:
    stages = chain(B=0.02)
    stages[1].workers = 2
    stages[1].slow = {399: 8.0}
    told = reports(stages, 400, 0.001)
    head, tail = told[:-20], told[-20:]
    bundled = sorted(enumerate(head), key=lambda pair: (pair[0] // 10, pair[1].worker_id))
    verdict = judged_by(stages, [*(report for _, report in bundled), *tail])
    assert (verdict.kind, verdict.stage) == ("skew", "B")


@given(
    st.lists(
        st.builds(
            OnPaper,
            st.just(""),
            st.sampled_from([0.001, 0.01, 0.1]),
            st.integers(1, 3),
            st.sampled_from([0.0, 1.0]),
            st.sampled_from([0.0, 1.0]),
            st.integers(0, 2),
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 60),
)
def test_every_random_run_has_a_verdict(stages: list[OnPaper], tasks: int) -> None:
    for number, stage in enumerate(stages):
        stage.name = f"S{number}"
    verdict = judged(stages, tasks) if tasks else judge(Evidence((), (), 0, 0))
    assert verdict.reason
    assert 0 <= verdict.busy_ratio <= 1
    assert verdict.stage in {"", *(stage.name for stage in stages)}


def test_each_run_ends_with_a_verdict() -> None:
    result = Pipeline("p", [Noop()]).run(LocalExecutor(), [Task(data=1)])
    assert result.verdict is TOO_SHORT
    assert result.summary().splitlines()[-1] == str(result.verdict)


@pytest.mark.parametrize(
    ("stages", "kind", "stage"),
    [
        ([OnPaper("A", 0.01), OnPaper("B", 0.03)], "busy", "B"),
        ([OnPaper("A", 0.01), OnPaper("B", 0.03, cpu=0.1)], "waits", "B"),
        ([OnPaper("A", 0.01, setup=4.0), OnPaper("B", 0.03)], "setup", "A"),
        ([OnPaper("A", 0.001), OnPaper("B", 0.001)], "too_short", ""),
    ],
)
def test_in_process_the_verdict_needs_only_totals(stages: list[OnPaper], kind: str, stage: str) -> None:
    plan = Plan.from_stages([Noop().with_(name=one.name) for one in stages], fed=True)
    run = Run(plan, "LocalExecutor", (), RunSettings(), in_process=LocalExecutor().in_process)
    at = 0.0
    for index, one in enumerate(stages):
        run.report(_life(index, one.name, "local", "ready", at, one.setup))
    for task in range(200):
        for index, one in enumerate(stages):
            run.report(_batch(index, one, "local", task, at, one.seconds, 0.0, 0.0, failed=False))
            at += one.seconds
    verdict = run.finish(None).verdict
    assert (verdict.kind, verdict.stage) == (kind, stage)


def test_a_failing_verdict_does_not_affect_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curator_core._run.run.judge", lambda evidence: 1 / 0)
    result = Pipeline("p", [Noop()]).run(LocalExecutor(), [Task(data=1)])
    assert len(result) == 1
    assert result.verdict.kind == "unclear"
