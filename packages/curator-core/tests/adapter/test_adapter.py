# SPDX-License-Identifier: Apache-2.0
"""The one path that every batch takes, without an executor around it."""

from __future__ import annotations

import copy
import dataclasses
import os
from typing import Any

import pytest

from curator_core import (
    BaseStageAdapter,
    EmptyTask,
    NodeInfo,
    ProcessingStage,
    StageError,
    Task,
    WorkerMetadata,
)
from curator_core._reports.batch import InputOutcome
from curator_core.testing.probe import Calling, CallingBatches, Probe, seen


def same(task: Task) -> Task:
    return task


# --- lineage --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("kind", [list, tuple, iter])
def test_a_list_adds_a_segment_even_if_it_has_one_task(count, kind):
    run = Probe(Calling(lambda task: kind([Task(data=n) for n in range(count)])))
    assert [task.task_id for task in run(seen("3"))] == [f"3.{n}" for n in range(count)]
    assert run.kinds() == [("out", count)]


@pytest.mark.parametrize("make", [lambda: None, list, lambda: iter(())], ids=["None", "a list", "an iterator"])
def test_none_and_an_empty_list_count_as_filtered(make):
    run = Probe(Calling(lambda task: make()))
    assert run(seen("3")) == []
    assert run.report.inputs == (InputOutcome("3", "filtered", 0),)


def test_an_input_can_be_one_of_its_outputs():
    run = Probe(Calling(lambda task: [task, Task(data=2)]))
    assert [task.task_id for task in run(seen("3", 1))] == ["3.0", "3.1"]


def test_copies_of_the_input_are_ordinary_outputs():
    run = Probe(Calling(lambda task: [copy.copy(task), copy.copy(task), task]))
    assert [task.task_id for task in run(seen("3"))] == ["3.0", "3.1", "3.2"]


def test_tasks_that_no_pipeline_has_seen_start_lineages():
    run = Probe(Calling(lambda task: [Task(data=1), Task(data=2)]))
    assert [task.task_id for task in run(Task(data=0), Task(data=0))] == ["0", "1", "2", "3"]
    assert [task.task_id for task in run(Task(data=0))] == ["4", "5"]


def test_a_source_can_emit_tasks_kept_from_an_earlier_run():
    run = Probe(Calling(lambda task: [seen("7.1"), seen("9")]))
    assert [task.task_id for task in run(EmptyTask())] == ["0", "1"]


def test_a_retried_source_restarts_its_ids():
    class Late(ProcessingStage):
        max_attempts = 3
        tries = 0

        def process(self, task):
            self.tries += 1
            return [Task(data=1), Task(data=2), *([] if self.tries == 3 else [object()])]

    run = Probe(Late())
    assert [task.task_id for task in run(EmptyTask())] == ["0", "1"]


def test_an_empty_list_makes_no_batch():
    run = Probe(Calling(same))
    assert run() == []
    assert run.reports == []


# --- metadata -------------------------------------------------------------------------------------------


def test_notes_written_on_an_input_are_passed_on():
    def note(task: Task) -> Task:
        task.metadata["new"] = 1
        return Task(data=1)

    run = Probe(Calling(note))
    assert [task.metadata for task in run(seen("3"), seen("4", a=1))] == [{"new": 1}, {"a": 1, "new": 1}]


def test_notes_of_the_output_take_precedence():
    def renew(task: Task) -> Task:
        new = Task(data=1)
        new.metadata["a"] = 2
        return new

    (output,) = Probe(Calling(renew))(seen("3", a=1, b=1))
    assert output.metadata == {"a": 2, "b": 1}


@pytest.mark.parametrize(
    "make", [lambda task: Task(data=1), copy.copy, dataclasses.replace], ids=["new", "copy", "replace"]
)
def test_siblings_have_separate_notes(make):
    first, second = Probe(Calling(lambda task: [make(task), make(task)]))(seen("3", a=1))
    first.metadata["b"] = 1
    assert second.metadata == {"a": 1}


def test_tasks_without_notes_have_no_dict():
    (output,) = Probe(Calling(lambda task: Task(data=1)))(seen("3"))
    assert output._state[2] is None


# --- history --------------------------------------------------------------------------------------------


def test_stage_perf_matches_the_report():
    run = Probe(CallingBatches(lambda tasks: tasks))
    run.adapter.setup_on_node(NodeInfo("node"), WorkerMetadata("worker"))
    run.adapter.setup(WorkerMetadata("worker"))
    run.reports.clear()
    outputs = run(seen("0", b"12345"), seen("1", b"678"))
    report = run.report
    for output in outputs:
        (stats,) = output.stage_perf
        assert stats.stage_name == report.stage_name == "CallingBatches"
        assert (stats.worker_id, stats.node_id) == (report.worker_id, report.node_id) == ("worker", "node")
        assert stats.batch_id == report.batch_id
        assert stats.process_time == report.duration_ns / 1e9
        assert stats.actor_idle_time == report.idle_ns / 1e9
        assert stats.startup_time == report.startup_ns / 1e9 > 0
        assert stats.start_time_unix_ns == report.start_unix_ns
        assert stats.num_items_processed == report.num_items == 2
        assert stats.input_data_size_mb == report.in_bytes / 1e6 == 8e-6
    assert outputs[0]._state[1] is outputs[1]._state[1]


def test_only_the_first_batch_has_a_startup_time():
    run = Probe(Calling(same))
    run.adapter.setup(WorkerMetadata())
    first, second = run(seen("0"))[0], run(seen("1"))[0]
    assert first.stage_perf[0].startup_time > 0
    assert second.stage_perf[0].startup_time == 0
    assert [report.startup_ns > 0 for report in run.reports[1:]] == [True, False]


# --- reports --------------------------------------------------------------------------------------------


def test_a_batch_report_has_all_fields():
    run = Probe(CallingBatches(lambda tasks: [tasks[0], None]))
    run(seen("0", b"123"), seen("1", b"4567"))
    report = run.report
    assert (report.run_id, report.stage_index, report.stage_name) == ("run", 0, "CallingBatches")
    assert (report.pid, report.sequence, report.attempt) == (os.getpid(), 0, 1)
    assert (report.in_bytes, report.out_bytes, report.num_items) == (7, 3, 2)
    assert (report.num_out, report.error, report.metrics) == (1, None, {})
    assert report.end_unix_ns == report.start_unix_ns + report.duration_ns
    assert (report.parents, report.ready_unix_ns, report.ready_node_id) == ((), 0, "")


def test_a_batch_id_is_derived_from_stage_and_inputs():
    def id_of(*ids: str, index: int = 0) -> str:
        run = Probe(CallingBatches(lambda tasks: tasks))
        run.adapter.state.compiled = dataclasses.replace(run.adapter.compiled, index=index)
        run(*map(seen, ids))
        return run.report.batch_id

    assert id_of("0", "1") == id_of("0", "1")
    ids = [
        id_of("0"),
        id_of("0", index=1),
        id_of("0", "1"),
        id_of("1", "0"),
        id_of("0.1"),
        id_of("01"),
        id_of("0", "1", "2"),
    ]
    assert len(set(ids)) == len(ids)


def test_parents_are_the_batches_that_produced_the_inputs():
    first = Probe(CallingBatches(lambda tasks: [[Task(data=1), Task(data=2)] for _ in tasks]))
    outputs = [*first(seen("0"), seen("1")), *first(seen("2"))]
    second = Probe(CallingBatches(lambda tasks: tasks))
    second(*outputs)
    assert second.report.parents == tuple(report.batch_id for report in first.reports)
    assert second.report.ready_unix_ns == max(report.end_unix_ns for report in first.reports)
    assert second.report.ready_node_id == "local"


def test_metrics_belong_to_one_batch():
    class Measuring(ProcessingStage):
        def process(self, task):
            if task.data:
                self.metrics.add("n", task.data)
            return task

    run = Probe(Measuring())
    outputs = [run(seen("0", n))[0] for n in (2, 0, 3)]
    assert [report.metrics for report in run.reports] == [{"n": 2}, {}, {"n": 3}]
    assert [dict(output.stage_perf[0].custom_metrics) for output in outputs] == [{"n": 2}, {}, {"n": 3}]


def test_metrics_of_a_batch_that_raises_are_reported():
    class Measuring(ProcessingStage):
        def process(self, task):
            self.metrics.add("n")
            raise ValueError

    run = Probe(Measuring())
    with pytest.raises(StageError):
        run(seen("0"))
    assert run.report.metrics == {"n": 1}


# --- the life of a worker -------------------------------------------------------------------------------


class Living(ProcessingStage):
    def __init__(self, fails_in: str = "") -> None:
        self.fails_in = fails_in
        self.events: list[Any] = []

    def note(self, event: str, *details: Any) -> None:
        self.events.append((event, *details))
        if event == self.fails_in:
            raise ValueError(f"failed in {event}")

    def setup_on_node(self, node_info, worker_metadata):
        self.note("setup_on_node", node_info, worker_metadata)

    def setup(self, worker_metadata):
        self.note("setup", worker_metadata)

    def process(self, task):
        return task

    def teardown(self):
        self.note("teardown")


def test_a_stage_goes_through_its_life_cycle():
    stage = Living()
    run = Probe(stage)
    node, worker = NodeInfo("n"), WorkerMetadata("w", allocation={"gpu": 1})
    run.adapter.setup_on_node(node, worker)
    run.adapter.setup(worker)
    run(seen("0"))
    run.adapter.teardown()
    assert stage.events == [("setup_on_node", node, worker), ("setup", worker), ("teardown",)]
    ready, batch, ended = run.reports
    assert (ready.event, ended.event) == ("ready", "ended")
    assert (ready.worker_id, ready.node_id, ready.pid) == ("w", "n", os.getpid())
    assert (batch.worker_id, batch.node_id) == ("w", "n")
    assert ready.duration_ns > 0
    assert ended.duration_ns > 0
    assert ready.error is ended.error is None
    assert batch.startup_ns == ready.duration_ns
    assert batch.idle_ns > 0


def test_a_failing_teardown_is_reported_and_not_raised():
    run = Probe(Living("teardown"))
    run.adapter.setup(WorkerMetadata())
    run.adapter.teardown()
    assert run.reports[-1].event == "ended"
    assert run.reports[-1].error.message == "failed in teardown"


def test_an_adapter_works_without_a_run():
    adapter = BaseStageAdapter(Calling(same))
    adapter.setup(WorkerMetadata())
    assert adapter.process_batch([seen("0")])[0].task_id == "0"
    adapter.teardown()
