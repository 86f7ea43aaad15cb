# SPDX-License-Identifier: Apache-2.0
"""Tests with pipelines that succeed; `failures` has those that fail."""

from __future__ import annotations

import importlib.util
import re
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from curator_core.tasks import Task
from curator_core.testing.base import ConformanceBase, Seen
from curator_core.testing.failures import FailureConformance
from curator_core.testing.recorder import Journal, Troublemaker
from curator_core.testing.reliability import ReliabilityConformance
from curator_core.testing.stages import Checksum, Flaky, Numbers, Renew, Sieve, Single, Split, grow

if TYPE_CHECKING:
    from pathlib import Path

    from curator_core._run.executor import BaseExecutor

__all__ = ["ExecutorConformance"]

_TREES: list[Any] = [5, [1, 2], [3], [], None, [[4, 6], [7], []], -2, -3, [None, 8], 9, [[-1, 10]], [[11]], 12]
_PAYLOAD_BYTES = 8_000_000
_CLOCK_SLACK_NS = 60 * 10**9  # between the clocks of machines: enough to recognize invalid times


class WorkingConformance(ConformanceBase):
    """Checks of one pipeline that does everything at once and runs twice."""

    stage_names = ("Renew", "Split", "Resplit", "Flaky", "Sieve")

    # --- the runs ---------------------------------------------------------------------------------------

    @pytest.fixture(scope="class")
    @classmethod
    def journal(cls, tmp_path_factory: pytest.TempPathFactory) -> Journal:
        """The journal in which the first stage of `busy` records its life cycle."""
        directory: Path = tmp_path_factory.mktemp("journal")
        return Journal(directory)

    @pytest.fixture(scope="class")
    @classmethod
    def caller(cls, journal: Journal) -> dict[str, list[Any]]:
        """The caller's tasks and stages of `busy`, which the run must not modify."""
        tasks = [Task(data=tree, dataset_name="trees") for tree in _TREES]
        for number, task in enumerate(tasks):
            if number != 1:  # one task without metadata: executors must handle both
                task.metadata["origin"] = number
        return {
            "tasks": tasks,
            "stages": [Renew(journal), Split(), Split().with_(name="Resplit"), Flaky(), Sieve()],
        }

    @pytest.fixture(scope="class")
    @classmethod
    def busy(cls, executor: BaseExecutor, caller: dict[str, list[Any]]) -> Seen:
        """The run, with an additional observer that fails in every method."""
        return cls.run(executor, caller["stages"], caller["tasks"], observers=[Troublemaker()])

    @pytest.fixture(scope="class")
    @classmethod
    def again(cls, executor: BaseExecutor, caller: dict[str, list[Any]]) -> Seen:
        """The same pipeline again, with other batch sizes and without a journal."""
        stages = [Renew(), *caller["stages"][1:]]
        sizes = (1, 4, 2, 3, 1)
        resized = [stage.with_(batch_size=size) for stage, size in zip(stages, sizes, strict=True)]
        return cls.run(executor, resized, caller["tasks"])

    # --- lineage ----------------------------------------------------------------------------------------

    def test_ids_gain_a_segment_at_each_fan_out(self, busy: Seen) -> None:
        grown = [leaf for number, tree in enumerate(_TREES) for leaf in grow(tree, str(number), 2)]
        expected = sorted((task_id, data) for task_id, data in grown if data >= 0)
        assert sorted((task.task_id, task.data) for task in busy.result) == expected

    def test_ids_are_the_same_in_every_run_and_for_every_batch_size(self, busy: Seen, again: Seen) -> None:
        assert again.ids() == busy.ids()
        assert again.result.run_id != busy.result.run_id

    def test_outputs_are_in_order_if_the_executor_promises_it(self, busy: Seen) -> None:
        if self.ordered:
            numbers = [[int(part) for part in task.task_id.split(".")] for task in busy.result]
            assert numbers == sorted(numbers)

    def test_metadata_is_passed_on_to_new_tasks(self, busy: Seen) -> None:
        for task in busy.result:
            source = int(task.task_id.split(".")[0])
            assert task.metadata == ({} if source == 1 else {"origin": source})

    def test_siblings_do_not_share_their_metadata(self, busy: Seen) -> None:
        assert len({id(task.metadata) for task in busy.result}) == len(busy.result)

    def test_dropped_and_fanned_out_inputs_are_distinguished(self, busy: Seen) -> None:
        outcomes = busy.recorder.outcomes("Split")
        assert [outcomes[str(number)] for number in range(6)] == [
            ("out", 1),
            ("out", 2),
            ("out", 1),
            ("filtered", 0),  # an empty list
            ("filtered", 0),  # None
            ("out", 3),
        ]
        assert busy.recorder.outcomes("Sieve")["6"] == busy.recorder.outcomes("Sieve")["7"] == ("filtered", 0)

    # --- batches ----------------------------------------------------------------------------------------

    def test_batches_have_at_most_batch_size_tasks(self, busy: Seen, again: Seen) -> None:
        for seen, sizes in ((busy, (3, 1, 1, 2, 4)), (again, (1, 4, 2, 3, 1))):
            for report in seen.recorder.batches:
                assert 1 <= report.num_in <= sizes[report.stage_index]

    def test_reported_batches_are_those_that_the_stage_received(self, busy: Seen) -> None:
        for report in busy.recorder.of("Renew"):
            assert report.metrics["seen"] == report.metrics["tasks"] == report.num_in

    def test_each_retry_gets_the_original_inputs(self, busy: Seen) -> None:
        assert not [task for task in busy.result if task.data == "spoiled" or "spoiled" in task.metadata]

    def test_each_attempt_leaves_a_report(self, busy: Seen) -> None:
        attempts: dict[str, list[tuple[int, set[str]]]] = {}
        for report in busy.recorder.of("Flaky"):
            kinds = {outcome.kind for outcome in report.inputs}
            attempts.setdefault(report.batch_id, []).append((report.attempt, set(kinds)))
            assert (report.error is None) == (report.attempt == 3)
            assert report.metrics["attempt"] == report.attempt
        assert attempts
        for seen in attempts.values():
            assert seen == [(1, {"retried"}), (2, {"retried"}), (3, {"out"})]
        assert busy.stage("Flaky").attempts_retried == 2 * busy.stage("Flaky").batches

    # --- reports ----------------------------------------------------------------------------------------

    def test_every_field_of_every_report_is_valid(self, busy: Seen) -> None:
        run, now = busy.recorder.run, time.time_ns()
        assert run is not None
        known = {report.batch_id for report in busy.recorder.batches}
        for report in busy.recorder.batches:
            assert report.run_id == run.run_id
            assert report.stage_name == self.stage_names[report.stage_index]
            assert report.batch_id
            assert report.worker_id
            assert report.node_id
            assert report.pid > 0
            assert report.epoch == 0
            assert report.group >= 0
            assert run.start_unix_ns - _CLOCK_SLACK_NS < report.start_unix_ns < now + _CLOCK_SLACK_NS
            assert report.duration_ns > 0
            assert report.cpu_ns >= 0
            assert report.idle_ns >= 0
            assert (report.startup_ns > 0) == (report.sequence == 0)
            assert report.num_items >= 0
            assert report.in_bytes == report.out_bytes == 0  # the data of these tasks has no known size
            assert (report.error is None) == all(outcome.kind != "retried" for outcome in report.inputs)
            if report.stage_index == 0:
                assert (report.parents, report.ready_unix_ns, report.ready_node_id) == ((), 0, "")
            else:
                assert report.parents
                assert set(report.parents) <= known
                assert report.ready_unix_ns > 0
                assert report.ready_node_id
        items = {report.stage_name: report.num_items for report in busy.recorder.of("Sieve")}
        assert items, "the stage sent no reports"

    def test_reported_items_are_those_of_the_inputs(self, busy: Seen) -> None:
        assert busy.stage("Renew").items == sum(len(tree) if isinstance(tree, list) else 1 for tree in _TREES)

    def test_batches_are_numbered_per_worker(self, busy: Seen) -> None:
        numbers: dict[tuple[str, str], list[int]] = {}
        for report in busy.recorder.batches:
            numbers.setdefault((report.stage_name, report.worker_id), []).append(report.sequence)
        for seen in numbers.values():
            assert seen == list(range(len(seen)))

    def test_each_input_has_one_outcome(self, busy: Seen) -> None:
        for name in self.stage_names:
            final = [report for report in busy.recorder.final() if report.stage_name == name]
            ids = [outcome.task_id for report in final for outcome in report.inputs]
            assert len(ids) == len(set(ids))

    def test_reports_add_up_to_the_result(self, busy: Seen) -> None:
        self.check_accounts(busy)
        for summary in busy.result.stages:
            reports = busy.recorder.of(summary.name)
            assert summary.process_s == sum(report.duration_ns for report in reports) / 1e9
            assert summary.cpu_s == sum(report.cpu_ns for report in reports) / 1e9
            assert summary.idle_s == sum(report.idle_ns for report in reports) / 1e9
            assert summary.first_start_unix_ns == min(report.start_unix_ns for report in reports)
            assert summary.last_end_unix_ns == max(report.end_unix_ns for report in reports)

    def test_custom_metrics_reach_reports_and_tasks(self, busy: Seen) -> None:
        for report in busy.recorder.of("Renew"):
            assert report.metrics["note"] == "a text"
            assert isinstance(report.metrics["seconds"], float)
        by_id = {report.batch_id: report for report in busy.recorder.of("Renew")}
        for task in busy.result:
            first = task.stage_perf[0]
            assert first.custom_metrics == by_id[first.batch_id].metrics
            assert ("custom.seen", first.custom_metrics["seen"]) in first.items()

    def test_stage_perf_is_the_history_of_the_task_oldest_first(self, busy: Seen) -> None:
        by_id = {report.batch_id: report for report in busy.recorder.final()}
        for task in busy.result:
            assert [stats.stage_name for stats in task.stage_perf] == list(self.stage_names)
            for stats in task.stage_perf:
                report = by_id[stats.batch_id]
                assert (stats.worker_id, stats.node_id) == (report.worker_id, report.node_id)
                assert stats.start_time_unix_ns == report.start_unix_ns
                assert stats.num_items_processed == report.num_items
                assert stats.process_time == pytest.approx(report.duration_ns / 1e9)
                assert stats.actor_idle_time == pytest.approx(report.idle_ns / 1e9)
                assert stats.startup_time == pytest.approx(report.startup_ns / 1e9)
            for earlier, later in pairwise(task.stage_perf):
                assert earlier.batch_id in by_id[later.batch_id].parents

    # --- workers ----------------------------------------------------------------------------------------

    def test_every_worker_is_set_up_before_it_works_and_torn_down_after(self, busy: Seen, journal: Journal) -> None:
        assert busy.result.complete
        lives = journal.lives()
        assert any("process" in life for life in lives.values())
        for life in lives.values():
            assert life[0] == "setup"
            assert life.count("setup") == 1
            if "process" in life:
                assert life[-1] == "teardown"
                assert life.count("teardown") == 1

    def test_every_node_is_set_up_once_and_first(self, busy: Seen, journal: Journal) -> None:
        assert busy.result.complete
        events = [event for event in journal.read() if event.stage == "Renew"]
        assert events[0].event == "setup_on_node"
        nodes = [event.who for event in events if event.event == "setup_on_node"]
        assert len(nodes) == len(set(nodes)) == len({r.node_id for r in busy.recorder.of("Renew")} | set(nodes))

    def test_workers_report_setup_and_end(self, busy: Seen) -> None:
        for name in self.stage_names:
            events: dict[str, list[str]] = {}
            for report in busy.recorder.workers:
                if report.stage_name == name:
                    assert report.run_id == busy.result.run_id
                    assert report.error is None
                    assert report.duration_ns >= 0
                    assert report.pid > 0
                    events.setdefault(report.worker_id, []).append(report.event)
            for worker in {report.worker_id for report in busy.recorder.of(name)}:
                assert events[worker] == ["ready", "ended"]
            assert busy.stage(name).workers == sum("ready" in seen for seen in events.values())

    # --- around the run ---------------------------------------------------------------------------------

    def test_a_failing_observer_does_not_affect_the_run(self, busy: Seen) -> None:
        assert busy.result.complete
        assert [error for _, error in busy.recorder.ends] == [None]

    def test_observers_are_notified_of_the_run(self, busy: Seen) -> None:
        run = busy.recorder.run
        assert run is not None
        assert (run.run_id, run.pipeline_name) == (busy.result.run_id, "conformance")
        assert re.fullmatch("[0-9a-f]{32}", run.run_id)
        assert run.num_source_tasks == len(_TREES)
        assert tuple(stage.name for stage in run.stages) == self.stage_names
        assert [stage.class_name for stage in run.stages] == ["Renew", "Split", "Split", "Flaky", "Sieve"]
        assert busy.recorder.ends[0][0].run_id == run.run_id

    def test_the_summary_names_every_stage(self, busy: Seen) -> None:
        text = busy.result.summary()
        assert busy.result.run_id in text
        assert all(name in text for name in self.stage_names)
        assert busy.result.wall_time_s > 0

    def test_objects_of_the_caller_are_not_modified(self, busy: Seen, caller: dict[str, list[Any]]) -> None:
        assert busy.result.complete
        assert [task.data for task in caller["tasks"]] == _TREES
        assert {task.task_id for task in caller["tasks"]} == {""}
        assert {task.stage_perf for task in caller["tasks"]} == {()}
        assert [task.metadata for task in caller["tasks"]] == [
            {} if number == 1 else {"origin": number} for number in range(len(_TREES))
        ]
        assert caller["stages"][0].worker_id == ""
        assert not caller["stages"][3].attempts


class EdgeConformance(ConformanceBase):
    """Tests with sources, empty inputs and outputs, and large payloads."""

    @pytest.fixture(scope="class")
    @classmethod
    def sourced(cls, executor: BaseExecutor) -> Seen:
        """A source whose tasks name themselves, and a stage of a local class that contains a lambda."""

        class Local(Single):
            def __init__(self, function: Any) -> None:
                self.function = function

            def process(self, task: Task[int]) -> Task[int]:
                return Task(data=self.function(task.data))

        names = ("b", "a", "a", None, "with.dots", "a-2", "12")
        return cls.run(executor, [Numbers(9, names), Local(lambda number: number * 10)])

    def test_a_source_is_run_once(self, sourced: Seen) -> None:
        assert sorted(task.data for task in sourced.result) == [number * 10 for number in range(9)]
        source = sourced.stage("Numbers")
        assert (source.batches, source.tasks_in, source.tasks_out) == (1, 1, 9)
        self.check_accounts(sourced)

    def test_source_tasks_that_name_themselves_keep_their_names(self, sourced: Seen) -> None:
        by_number = {task.data // 10: task.task_id for task in sourced.result}
        assert (by_number[0], by_number[1]) == ("b", "a")
        assert (by_number[3], by_number[7], by_number[8]) == ("3", "7", "8")

    def test_source_ids_are_unique_and_valid_file_names(self, sourced: Seen) -> None:
        ids = sourced.ids()
        assert len(set(ids)) == 9
        assert all(re.fullmatch("[A-Za-z0-9_-]+", task_id) for task_id in ids)

    def test_a_local_stage_with_a_lambda_runs(self, sourced: Seen) -> None:
        assert sourced.stage("Local").tasks_out == 9

    def test_the_source_is_first_in_the_history_of_its_tasks(self, sourced: Seen) -> None:
        for task in sourced.result:
            assert [stats.stage_name for stats in task.stage_perf] == ["Numbers", "Local"]

    def test_an_empty_input_gives_an_empty_result(self, executor: BaseExecutor) -> None:
        seen = self.run(executor, [Renew(), Sieve()], [])
        self.check_nothing_came_out(seen, [("Renew", 0, 0), ("Sieve", 0, 0)])
        assert seen.recorder.batches == []

    def test_a_source_without_tasks_gives_an_empty_result(self, executor: BaseExecutor) -> None:
        seen = self.run(executor, [Numbers(0), Renew()])
        self.check_nothing_came_out(seen, [("Numbers", 1, 1), ("Renew", 0, 0)])
        assert [outcome.kind for report in seen.recorder.batches for outcome in report.inputs] == ["filtered"]

    def test_dropping_all_tasks_in_a_middle_stage_gives_an_empty_result(self, executor: BaseExecutor) -> None:
        stages = [Renew(), Sieve(), Renew().with_(name="After")]
        alone = [stage.with_(num_workers=1) for stage in stages]  # as `Single` has
        seen = self.run(executor, alone, [Task(-n) for n in range(1, 6)])
        self.check_nothing_came_out(seen, [("Renew", 5, 0), ("Sieve", 5, 5), ("After", 0, 0)])
        assert seen.recorder.of("Sieve")
        assert {report.num_out for report in seen.recorder.of("Sieve")} == {0}

    def check_nothing_came_out(self, seen: Seen, stages: list[tuple[str, int, int]]) -> None:
        """Check that the run succeeded without outputs.

        Args:
            seen: The run.
            stages: For each stage its name, and how many tasks it was given and dropped.
        """
        assert seen.error is None
        assert seen.result.complete
        assert list(seen.result) == []
        assert [(s.name, s.tasks_in, s.tasks_filtered) for s in seen.result.stages] == stages
        assert len(seen.recorder.ends) == 1
        self.check_accounts(seen)

    @pytest.fixture(scope="class")
    @classmethod
    def heavy(cls, executor: BaseExecutor) -> Seen:
        """A run of payloads of 8 MB through two stages."""
        tasks = [Task(data=data) for data in _payloads()]
        return cls.run(executor, [Checksum(), Checksum().with_(name="Recheck")], tasks)

    def test_large_payloads_arrive_complete(self, heavy: Seen) -> None:
        by_id = {task.task_id: task for task in heavy.result}
        for number, data in enumerate(_payloads()):
            task = by_id[str(number)]
            assert type(task.data) is type(data)
            assert memoryview(task.data).cast("B") == memoryview(data).cast("B")
            first, second = task.metadata["checksums"]
            assert first == second
        self.check_accounts(heavy)

    def test_sizes_of_payloads_are_reported(self, heavy: Seen) -> None:
        for report in heavy.recorder.batches:
            assert report.in_bytes == report.out_bytes == report.metrics["bytes"] == _PAYLOAD_BYTES
        for task in heavy.result:
            assert [stats.input_data_size_mb for stats in task.stage_perf] == [8.0, 8.0]


def _payloads() -> list[Any]:
    payloads: list[Any] = [bytes([number]) * _PAYLOAD_BYTES for number in range(3)]
    if importlib.util.find_spec("numpy"):
        import numpy as np  # noqa: PLC0415 - optional: if it is installed, arrays are sent as well

        array = np.arange(_PAYLOAD_BYTES // 8, dtype=np.int64)
        array.flags.writeable = False  # like arrays that arrive from another process
        payloads.append(array)
    return payloads


class ExecutorConformance(WorkingConformance, EdgeConformance, FailureConformance, ReliabilityConformance):
    """All tests that an executor must pass. Subclass it and define the fixture ``executor``.

    The fixture has the scope ``class`` or a wider one, and returns a `BaseExecutor`. The tests use it for about two
    dozen runs, one after the other.

    Attributes:
        ordered: Whether the executor returns outputs in the order of the inputs.
    """
