# SPDX-License-Identifier: Apache-2.0
"""Stages in one worker, and groups of stages one after the other, compared with a run without groups."""

from __future__ import annotations

import math
from itertools import cycle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.pipelines import kept, pipelines

from curator_core import EmptyTask, LocalExecutor, Plan, ProcessingStage, StageError, Task
from curator_core._adapter.adapter import BaseStageAdapter
from curator_core._adapter.chain import Chain
from curator_core._adapter.worker_state import RunContext
from curator_core._plan.bundles import Bundle, unbundled
from curator_core._plan.groups import FusionLevel, group_stages
from curator_core._run.executor import BaseExecutor
from curator_core._run.run import Run
from curator_core._transport.pickling import dumps, loads
from curator_core.stages import NodeInfo, WorkerMetadata
from curator_core.tasks import new_state, stamp
from curator_core.testing import Recorder

GO_ON = {"on_error": "skip", "max_failures": math.inf}  # even if all of the first tasks fail


class Noting(ProcessingStage):
    """Records its calls in a list that all stages of a test share."""

    def __init__(self, name: str, journal: list[Any], fails_in: str = "") -> None:
        self.name, self.journal, self.fails_in = name, journal, fails_in

    def note(self, event: str) -> None:
        self.journal.append((self.name, event))
        if event == self.fails_in:
            raise ValueError(f"failed on purpose in {event}")

    def setup_on_node(self, node_info, worker_metadata):
        self.note("setup_on_node")

    def setup(self, worker_metadata):
        self.note("setup")

    def process_batch(self, tasks):
        self.note(" ".join(str(task.data) for task in tasks))
        return tasks

    def teardown(self):
        self.note("teardown")


def chain_of(*stages: ProcessingStage, sink: Any = lambda report: None, on_error: Any = "raise") -> Chain:
    adapters = [BaseStageAdapter(compiled.stage, compiled) for compiled in Plan.from_stages(stages, fed=True).stages]
    for adapter in adapters:
        adapter.bind(RunContext(run_id="r", on_error=on_error), sink)
    return Chain(adapters)


def numbered(count: int) -> list[Task]:
    tasks = [Task(data=number) for number in range(count)]
    for number, task in enumerate(tasks):
        stamp(task, new_state(str(number)))
    return tasks


def batches_of(journal: list[Any], name: str) -> list[str]:
    return [event for stage, event in journal if stage == name]


def test_outputs_before_a_failure_are_kept_and_waiting_tasks_dropped():
    journal: list[Any] = []
    outputs: list[Any] = []
    chain = chain_of(Noting("a", journal, fails_in="2"), Noting("b", journal).with_(batch_size=2))
    with pytest.raises(StageError, match="failed on purpose in 2"):
        chain.run(numbered(4), outputs)
    assert [task.data for task in outputs] == [0, 1]
    journal.clear()
    with pytest.raises(StageError):
        chain.run(numbered(3)[1:], outputs)  # 1 waits for b
    chain.run(numbered(1), outputs)
    assert batches_of(journal, "b") == ["0"]


def test_stages_of_a_worker_share_one_clock():
    # Otherwise each stage would count as idle while the others work.
    chain = chain_of(*(Noting(name, []) for name in "abc"))
    assert len({id(adapter.state.clock) for adapter in chain.adapters}) == 1


# --- groups one after the other -------------------------------------------------------------------------

in_groups = pipelines(
    most=6, fusible=st.sampled_from([True, True, False]), fans_out=st.booleans(), full_batches=st.booleans()
)


class Numbers(ProcessingStage[EmptyTask, Task]):
    def __init__(self, count: int) -> None:
        self.count = count

    def process(self, task):
        return (Task(data=number) for number in range(self.count))


class InGroups(BaseExecutor):
    """Runs the groups one after the other, each on two workers in turns, on pickled bundles."""

    def __init__(self, fusion: FusionLevel, sizes: list[int]) -> None:
        self.fusion, self.sizes = fusion, sizes

    def run_plan(self, run: Run) -> None:
        groups = group_stages(run.plan.stages, self.fusion, has_source=run.plan.has_source)
        with run.source() as source:
            tasks = [*source]
        for group in groups[run.runs_source :]:
            workers = [self.worker(run, group) for _ in range(2)]
            made: list[Any] = []
            for worker, bundle in zip(cycle(workers), self.bundles(tasks), strict=False):
                worker.run(unbundled([bundle]), made)
            tasks = made
            for worker in workers:
                worker.tear_down()
        run.collect(tasks)

    def worker(self, run: Run, group: Any) -> Chain:
        adapters = [BaseStageAdapter(compiled.fresh_stage(), compiled) for compiled in group.stages]
        for adapter in adapters:
            adapter.bind(run.context, run.report)
        chain = Chain(adapters)
        chain.set_up(NodeInfo(), WorkerMetadata())
        return chain

    def bundles(self, tasks: list[Any]) -> list[Bundle]:
        bundles, left, sizes = [], [*tasks], cycle(self.sizes)
        while left:
            size = next(sizes)
            bundles.append(loads(dumps(Bundle(left[:size]))))
            left = left[size:]
        return bundles


def seen(result: Any) -> list[Any]:
    """Return what to compare of the outputs of two runs."""
    return [
        (task.task_id, task.data, task.metadata, [stats.stage_name for stats in task.stage_perf]) for task in result
    ]


def accounts(result: Any) -> list[Any]:
    return [(s.name, s.tasks_in, s.tasks_passed, s.tasks_filtered, s.tasks_failed, s.tasks_out) for s in result.stages]


def outcomes(recorder: Recorder) -> dict[tuple[str, str], tuple[str, int]]:
    """Return the outcome of each input of each stage."""
    final = [report for report in kept(recorder.batches) if not report.is_retried]
    return {(report.stage_name, o.task_id): (o.kind, o.count) for report in final for o in report.inputs}


@given(
    in_groups,
    st.integers(0, 10),
    st.booleans(),
    st.sampled_from(FusionLevel),
    st.lists(st.integers(1, 7), min_size=1, max_size=4),
)
def test_groups_connected_by_bundles_give_the_results_of_one_worker(stages, count, from_source, fusion, sizes):
    initial = None if from_source else [Task(data=number) for number in range(count)]
    plan = Plan.from_stages([Numbers(count), *stages] if from_source else stages, fed=not from_source)
    here, there = Recorder(), Recorder()
    expected = LocalExecutor().execute(plan, initial, observers=[here], **GO_ON)
    result = InGroups(fusion, sizes).execute(plan, initial, observers=[there], **GO_ON)

    assert seen(result) == seen(expected)
    assert accounts(result) == accounts(expected)
    assert result.lost == expected.lost == ()
    assert outcomes(there) == outcomes(here)
    assert all(len(report.inputs) <= plan.stages[report.stage_index].batch_size for report in there.batches)
    assert len({task.task_id for task in result}) == len(result)


@given(in_groups, st.integers(0, 12))
def test_one_bundle_for_each_group_makes_the_same_batches(stages, count):
    plan = Plan.from_stages([Numbers(count), *stages], fed=False)
    batches = []
    for executor in (LocalExecutor(), InGroups(FusionLevel.OFF, [10_000]), InGroups(FusionLevel.FAN_OUTS, [10_000])):
        recorder = Recorder()
        executor.execute(plan, observers=[recorder], **GO_ON)
        by_stage = [[r for r in kept(recorder.batches) if r.stage_name == compiled.name] for compiled in plan.stages]
        batches.append([[(r.batch_id, r.inputs, sorted(r.parents)) for r in reports] for reports in by_stage])
    assert batches[0] == batches[1] == batches[2]
