# SPDX-License-Identifier: Apache-2.0
"""The accounts of a run without an engine: whatever is reported, lost, and restarted, they match a plain model.

CURATOR_ACCOUNTING_STEPS=100000 pytest …    sets the number of steps, as `nox -s chaos` does
"""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import cache
from itertools import count as counted_up
from itertools import cycle
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import settings, stateful
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from curator_core import (
    DeadLetter,
    EmptyTask,
    FailureLimitError,
    Plan,
    ProcessingStage,
    Task,
    TasksLostError,
    deadletter,
)
from curator_core._adapter.lineage import batch_id_of
from curator_core._reports.batch import BatchReport, ErrorInfo, InputOutcome, WorkerReport, input_fields
from curator_core._reports.columns import ReportColumns
from curator_core._reports.wire import pack_reports, unpack_reports
from curator_core._run.run import Run
from curator_core._run.settings import RunSettings
from curator_core.tasks import child_id, state_of
from curator_core.testing import Recorder
from curator_core.testing.probe import seen

from .accounting_model import DRIVER, Model, Node  # noqa: TID252 - no import can write this directory's name

STEPS = int(os.environ.get("CURATOR_ACCOUNTING_STEPS") or 20 * settings.default.max_examples)
STEPS_AT_ONCE = 40

ERROR = ErrorInfo("ValueError", "no", "")
NUMBERS = counted_up()

Fate = str | int
"""The fate of a task: it is passed on, dropped, fails with or without outputs, or fans out to a number of tasks."""


class Step(ProcessingStage[Task, Task]):
    def process(self, task: Task) -> Task:
        return task


@cache
def plan_of(stages: int, *, has_source: bool) -> Plan:
    return Plan.from_stages([Step().with_(name=f"stage {number}") for number in range(stages)], fed=not has_source)


PICKS = st.integers(0, 99)
MOSTLY_ON = st.lists(st.sampled_from(["on", "on", "on", "on", "filtered", "failed", 2]), min_size=1, max_size=6)
FATES = st.lists(st.sampled_from(["on", "filtered", "failed", "failed halfway", 0, 1, 2, 3, 4]), min_size=1, max_size=6)
SETTING = {
    "stages": st.integers(1, 5),
    "origin": st.sampled_from(["fed", "fed with ids", "driver", "stream", "worker"]),
    "count": st.integers(1, 12),
    "policy": st.sampled_from(["raise", "skip", "letters", "letters"]),
    "restarts": st.integers(0, 9),
    "is_stopped": st.booleans(),
}


class Accounting(stateful.RuleBasedStateMachine):
    """Reports to a run what executors report, and to a model as well."""

    steps = 0

    def __init__(self) -> None:
        super().__init__()
        self.held = ExitStack()
        self.agrees = False

    # --- start --------------------------------------------------------------------------------------------

    @initialize(**SETTING)
    def begin(self, stages: int, origin: str, count: int, policy: str, restarts: int, is_stopped: bool) -> None:
        in_driver = origin in ("driver", "stream")
        stages = max(2, stages) if in_driver else stages
        self.path = f"memory://accounting/{next(NUMBERS)}"
        self.policy = DeadLetter(self.path) if policy == "letters" else policy
        self.model = Model(stages, first=int(in_driver))
        self.observer = Recorder()
        plan = plan_of(stages, has_source=in_driver or origin == "worker")
        self.run = Run(plan, "NoEngine", [self.observer], RunSettings(on_error=self.policy))
        self.held.enter_context(self.run.open())

        self.tasks: dict[str, Any] = {}
        self.waiting: list[Node] = []
        self.lost: list[Node] = []
        self.stale: list[tuple[Node, int]] = []  # with the epoch
        self.parcels: list[Any] = []
        self.told: list[BatchReport] = []
        self.bundle: list[BatchReport] | None = None  # reports that a worker sends in one message
        self.counted: list[BatchReport] = []  # of this epoch
        self.is_held = restarts > 0 and origin != "stream"
        self.restarts_left = restarts if self.is_held else 0
        self.is_stopped = is_stopped
        self.stream: Any = None
        self.run.start(None)
        self._feed(origin, count)

    def _feed(self, origin: str, count: int) -> None:
        self.run.fed = 1
        if origin == "worker":
            self._admit(self.run.admit([EmptyTask()]))
        elif origin in ("driver", "stream"):
            self.source = self.model.begin(Node(DRIVER, 0, ""))
            self.stream = self.run.admit(self._named("", counted_up()))
            self.the_source_emits(count)
            if origin == "driver":
                self.the_source_ends(fails=False)
        else:
            self.run.fed = count
            # Dead letters of an earlier run keep their ids.
            self._admit(self.run.admit(self._named("7." if origin == "fed with ids" else "", range(count))))
        if self.is_held:
            self.run._keep_sources([*self.tasks.values()])

    def _named(self, prefix: str, numbers: Any) -> Any:
        names = self.run.new_source_ids()
        for number in numbers:
            yield seen(prefix + names.name(Task(number)), number)

    def _admit(self, tasks: Any) -> None:
        for task in tasks:
            source_id = state_of(task)[0]
            assert source_id not in self.tasks
            self.tasks[source_id] = task
            self.waiting.append(self.model.admit(source_id))

    # --- events -------------------------------------------------------------------------------------------

    @precondition(lambda self: self.stream)
    @rule(count=st.integers(1, 3))
    def the_source_emits(self, count: int) -> None:
        self._admit(next(self.stream) for _ in range(count))

    @precondition(lambda self: self.stream)
    @rule(fails=st.booleans())
    def the_source_ends(self, fails: bool) -> None:
        self.stream.close()
        self.stream = None
        kind = "failed" if fails and self.policy != "raise" else "out"
        self.model.end(self.source, kind, [*self.tasks])
        self._count(0, [InputOutcome("", kind, len(self.tasks))])

    @rule(pick=PICKS)
    def a_worker_starts(self, pick: int) -> None:
        stage = pick % self.model.stages
        self.model.workers[stage] += 1
        self.run.report(WorkerReport(self.run.context.run_id, stage, f"stage {stage}", "w", "n", 1, "ready", 0, 0))

    @precondition(lambda self: self.waiting)
    @rule(pick=PICKS, size=st.integers(1, 12))
    def a_batch_goes_on(self, pick: int, size: int) -> None:
        self.a_batch_ends(pick, ["on"] * size)

    @precondition(lambda self: self.waiting)
    @rule(pick=PICKS, pieces=st.lists(st.integers(1, 4), min_size=1, max_size=4))
    def a_batch_is_taken_apart(self, pick: int, pieces: list[Fate]) -> None:
        self.a_batch_ends(pick, pieces)

    @precondition(lambda self: self.waiting)
    @rule(pick=PICKS, kind=st.sampled_from(["failed", "filtered"]), others=st.integers(0, 3))
    def a_task_drops_out(self, pick: int, kind: str, others: int) -> None:
        self.a_batch_ends(pick, [kind, *["on"] * others])

    @precondition(lambda self: self.waiting)
    @rule(pick=PICKS, fates=FATES)
    def a_batch_ends(self, pick: int, fates: list[Fate]) -> None:
        batch = self._taken(pick, len(fates))
        outcomes, made = [], []
        for node, fate in zip(batch, fates, strict=False):
            kind, children = self._becomes(node, fate)
            outcomes.append(InputOutcome(node.task_id, kind, len(children)))
            self.waiting += self.model.end(node, kind, children)
            made += children
        self._ended(batch[0].stage, outcomes, made)

    @precondition(lambda self: self.waiting)
    @rule(pick=PICKS, size=st.integers(1, 12), stages=st.integers(1, 3), fates=MOSTLY_ON)
    def a_bundle_passes_stages(self, pick: int, size: int, stages: int, fates: list[Fate]) -> None:
        """A worker reports on all stages of its group, with batches of one, in one message."""
        nodes, self.bundle = self._taken(pick, size), []
        for _ in range(min(stages, self.model.stages - nodes[0].stage)):
            following: list[Node] = []
            for node, fate in zip(nodes, cycle(fates), strict=False):
                kind, children = self._becomes(node, fate)
                following += self.model.end(node, kind, children)
                self._ended(node.stage, [InputOutcome(node.task_id, kind, len(children))], children)
            nodes = following
            if not nodes:
                break
        self.waiting += nodes
        self._deliver()

    @precondition(lambda self: self.waiting)
    @rule(pick=PICKS, size=st.integers(1, 6), pieces=st.integers(1, 4))
    def a_batch_merges(self, pick: int, size: int, pieces: int) -> None:
        batch = self._taken(pick, size)
        made = [child_id(batch[0].task_id, index) for index in range(pieces)]
        self.waiting += self.model.merge(batch, made)
        merged = [InputOutcome(node.task_id, "merged", 0) for node in batch[1:]]
        self._ended(batch[0].stage, [InputOutcome(batch[0].task_id, "out", pieces), *merged], made)

    def _ended(self, stage: int, outcomes: list[InputOutcome], made: list[str]) -> None:
        self._count(stage, outcomes)
        if stage + 1 == self.model.stages:
            self.parcels += [seen(task_id) for task_id in made]
            if self.is_held:  # then outputs arrive with the report
                self.outputs_arrive()

    @precondition(lambda self: self.waiting)
    @rule(pick=PICKS, size=st.integers(1, 5))
    def an_attempt_fails(self, pick: int, size: int) -> None:
        batch = self._taken(pick, size)
        self.waiting += batch
        self._tell_retried(self._report(batch[0].stage, [InputOutcome(node.task_id, "retried", 0) for node in batch]))

    @precondition(lambda self: self.counted)
    @rule(pick=PICKS)
    def a_batch_is_handed_over_again(self, pick: int) -> None:
        """An engine repeats the work of a worker that died; it counts as one more attempt."""
        report = self.counted[pick % len(self.counted)]
        self._tell_retried(report.all_as("retried"))

    @precondition(lambda self: self.waiting)
    @rule(pick=PICKS, size=st.integers(1, 5), is_heard_of=st.booleans())
    def a_worker_is_killed(self, pick: int, size: int, is_heard_of: bool) -> None:
        """Its work is lost; its report may still arrive, if only its outputs were lost."""
        batch = self._taken(pick, size)
        self.lost += batch
        if is_heard_of:
            outcomes = [InputOutcome(node.task_id, "out", 1) for node in batch]
            report = self._report(batch[0].stage, outcomes)
            self._tell_retried(report.all_as("retried"))

    @precondition(lambda self: self.parcels)
    @rule()
    def outputs_arrive(self) -> None:
        self.run.outputs += self.parcels
        self.parcels = []

    @precondition(lambda self: self.restarts_left and (self.counted or self.lost) and self.run.has_unfinished)
    @rule()
    def it_begins_again(self) -> None:
        self.restarts_left -= 1
        self.agrees = False
        epoch, expected = self.run.context.epoch, self.model.unfinished
        self.stale += [(node, epoch) for node in self.waiting + self.lost]
        given = self.run._restart()
        assert [id(task) for task in given] == [id(self.tasks[source_id]) for source_id in expected]
        assert self.run.context.epoch == epoch + 1
        self.waiting, self.lost, self.counted = self.model.restart(), [], []

    @precondition(lambda self: not self.waiting)
    @rule(**SETTING)
    def another_run_begins(self, **setting: Any) -> None:
        self._end()
        self.begin(**setting)

    # --- invariants ---------------------------------------------------------------------------------------

    @invariant()
    def the_accounts_are_those_of_the_model(self) -> None:
        """Check the accounts as after a Ctrl-C at this moment."""
        Accounting.steps += 1
        self.agrees = False
        self._check(self.run.finish(KeyboardInterrupt()))
        self.agrees = True

    def _check(self, result: Any) -> None:
        model, accounting = self.model, result.accounting
        counted = [replace(stage, first_error="") for stage in result.stages]
        assert counted == [model.summary(stage) for stage in range(model.stages)]
        assert [*accounting.unfinished] == model.unfinished
        assert self.run.has_unfinished == bool(model.unfinished)
        assert (accounting.admitted, accounting.restarts) == (len(model.sources), model.restarts)
        assert accounting.finished == len(model.sources) - len(model.unfinished)
        assert sorted((stage, task_id) for stage, ids in accounting.failed.items() for task_id in ids) == model.failed
        assert sorted(state_of(task)[0] for task in [*result, *self.parcels]) == model.outputs
        assert self.observer.batches == self.told
        if not self.stream:  # a streaming source counts no outputs until its report
            assert self.run.lost() == model.missing

    def teardown(self) -> None:
        with self.held:
            if self.agrees:  # otherwise report the first disagreement, not its consequences
                self._end()

    def _end(self) -> None:
        self.agrees = False
        with self.held:
            if self.stream:
                self.the_source_ends(fails=False)
            if not self.is_stopped:
                self._work_off()
            self.outputs_arrive()
            is_error = bool(self.model.missing) and self.policy == "raise"
            with pytest.raises(TasksLostError) if is_error else nullcontext():
                self.run.settle()
            result = self.run.finish(None)
            self._check(result)
            assert [*result.lost] == self.model.missing
        if isinstance(self.policy, DeadLetter):
            letters = deadletter.read(self.path)
            assert sorted((letter.stage, letter.task_id) for letter in letters) == self.model.failed
            MemoryFileSystem().rm(self.path, recursive=True)

    def _work_off(self) -> None:
        while self.waiting or (self.lost and self.restarts_left):
            if self.waiting:
                self.a_batch_goes_on(0, 12)
            else:
                self.it_begins_again()
        assert self.lost or not self.run.has_unfinished

    # --- reports ------------------------------------------------------------------------------------------

    def _taken(self, pick: int, size: int) -> list[Node]:
        """Return some tasks that wait for the same stage."""
        stage = self.waiting[pick % len(self.waiting)].stage
        batch = [node for node in self.waiting if node.stage == stage][:size]
        self.waiting = [node for node in self.waiting if node not in batch]
        return batch

    def _becomes(self, node: Node, fate: Fate) -> tuple[str, list[str]]:
        is_halfway = fate == "failed halfway"
        if is_halfway:
            fate = "failed"
        if fate == "failed" and self.policy == "raise":
            fate = "filtered"  # the first failure would end the run
        if fate == "on" and node.task_id:
            return "out", [node.task_id]
        pieces = 1 if fate == "on" else fate if isinstance(fate, int) else 0
        if fate == "failed" and (is_halfway or not node.task_id):
            pieces = 2  # outputs of a source before its failure continue
        kind = fate if fate in ("filtered", "failed") else "out" if pieces else "filtered"
        return str(kind), [child_id(node.task_id, index) for index in range(pieces)]

    def _report(self, stage: int, outcomes: list[InputOutcome]) -> BatchReport:
        context, number = self.run.context, len(self.told)
        batch_id = batch_id_of(stage, [outcome.task_id for outcome in outcomes])
        who = (context.run_id, stage, f"stage {stage}", batch_id, "w", "n", 1, number, 0, 0)
        error = ERROR if any(kind in ("failed", "retried") for _, kind, _ in outcomes) else None
        return BatchReport(*who, **input_fields(outcomes), epoch=context.epoch, error=error)

    def _count(self, stage: int, outcomes: list[InputOutcome]) -> None:
        self.model.batches[stage] += 1
        report = self._report(stage, outcomes)
        self.counted.append(report)
        self._tell(report)

    def _tell_retried(self, report: BatchReport) -> None:
        self.model.retried[report.stage_index] += 1
        self._tell(report)

    def _tell(self, report: BatchReport) -> None:
        self.agrees = False  # until it is checked
        if self.bundle is not None:
            self.bundle.append(report)
            return
        self.told.append(report)
        self.run.report(report)

    def _deliver(self) -> None:
        """Report the bundle as it arrives from a worker: ordinary batches of a stage as columns."""
        sent, self.bundle = self.bundle or [], None
        entered: list[BatchReport] = []
        message = unpack_reports(pack_reports(self.mixed(sent)))
        self.run.report_all(message)
        for report in message:
            entered += report if isinstance(report, ReportColumns) else [report]
        assert sorted(entered, key=which) == sorted(sent, key=which)
        self.told += entered

    def mixed(self, reports: list[BatchReport]) -> list[BatchReport]:
        """Return reports as a worker makes them: it passes each task on to the next stage before it takes another."""
        return sorted(reports, key=lambda report: report.input_ids[0].split("."))

    @precondition(lambda self: self.stale)
    @rule(pick=PICKS, size=st.integers(1, 5))
    def reports_of_an_earlier_epoch_come(self, pick: int, size: int) -> None:
        chosen, epoch = self.stale[pick % len(self.stale)]
        nodes = [node for node, since in self.stale if (node.stage, since) == (chosen.stage, epoch)][:size]
        self.bundle = []
        for node in nodes:
            report = self._report(node.stage, [InputOutcome(node.task_id, "out", 1)])
            self._tell_retried(report._replace(epoch=epoch))
        self._deliver()
        self.told[-len(nodes) :] = [report.all_as("retried") for report in self.told[-len(nodes) :]]  # as observers see


def which(report: BatchReport) -> tuple[int, str, int]:
    return report.stage_index, report.batch_id, report.sequence


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Silence the log: most of these runs lose tasks, and report them."""
    caplog.set_level(logging.CRITICAL, logger="curator_core._run.run")


@pytest.mark.timeout(600 + STEPS // 50)  # shrinking a failure may take half of this time
def test_the_accounts_are_those_of_a_plain_model():
    before = Accounting.steps
    chosen = settings(max_examples=STEPS // 20, stateful_step_count=STEPS_AT_ONCE, report_multiple_bugs=False)
    stateful.run_state_machine_as_test(Accounting, settings=chosen)
    assert Accounting.steps - before >= STEPS


def test_a_run_with_failures_has_a_first_error():
    machine = Accounting()
    machine.begin(stages=2, origin="fed", count=1, policy="skip", restarts=1, is_stopped=False)
    machine.a_batch_ends(0, [2])
    machine.a_batch_ends(0, ["failed"])
    machine.it_begins_again()
    machine.the_accounts_are_those_of_the_model()
    machine.teardown()
    _, result = machine.observer.ends[-1][0].stages
    assert (result.tasks_failed, result.first_error) == (0, "")


def test_a_message_is_counted_to_its_end_if_a_failure_in_it_ends_the_run():
    """Tasks that went through all stages in the same message are finished, and a later run does not repeat them."""
    run = Run(plan_of(3, has_source=False), "NoEngine", [], RunSettings(on_error="skip", max_failures=0))
    with run.open():
        names = run.new_source_ids()
        run.fed = len([*run.admit(seen(names.name(Task(number)), number) for number in range(20))])
        passed = [report_of(stage, str(number), "out") for number in range(10) for stage in range(3)]
        message = unpack_reports(pack_reports([*passed, report_of(0, "10", "failed")]))
        with pytest.raises(FailureLimitError):
            run.report_all(message)
        result = run.finish(None)
    assert [stage.tasks_in for stage in result.stages] == [11, 10, 10]
    assert [*result.accounting.unfinished] == [str(number) for number in range(11, 20)]


def report_of(stage: int, task_id: str, kind: str) -> BatchReport:
    outcome = InputOutcome(task_id, kind, int(kind == "out"))
    who = ("r", stage, f"stage {stage}", batch_id_of(stage, [task_id]), "w", "n", 1, int(task_id), 0, 0)
    return BatchReport(*who, **input_fields([outcome]), error=None if kind == "out" else ERROR)
