# SPDX-License-Identifier: Apache-2.0
"""Sources, which run one task at a time."""

from __future__ import annotations

import time
from typing import Any

import pytest

from curator_core import (
    ContractError,
    EmptyTask,
    Pipeline,
    ProcessingStage,
    StageError,
    Task,
)
from curator_core._reports.batch import InputOutcome
from curator_core.testing.probe import Calling, Probe


def same(task: Task) -> Task:
    return task


# --- sources, one task at a time ------------------------------------------------------------------------


class TestStreaming:
    def source(self, function: Any, on_error: Any = "raise", **settings: Any) -> tuple[Probe, Any]:
        run = Probe(Calling(lambda task: function(), **settings), on_error)
        return run, run.adapter.process_source(EmptyTask())

    def test_outputs_of_a_source_are_used_as_they_are_produced(self):
        made: list[int] = []

        def emit():
            for number in range(3):
                made.append(number)
                yield Task(data=number)

        run, outputs = self.source(emit)
        assert next(outputs).task_id == "0"
        assert made == [0]
        assert run.reports == []
        assert [task.task_id for task in outputs] == ["1", "2"]
        assert run.report.inputs == (InputOutcome("", "out", 3),)

    @pytest.mark.parametrize("entry", [None, [], iter(())], ids=["None", "list", "iterator"])
    def test_a_source_of_no_tasks(self, entry):
        run, outputs = self.source(lambda: entry)
        assert list(outputs) == []
        assert run.report.inputs == (InputOutcome("", "filtered", 0),)

    def test_a_source_of_one_task(self):
        _, outputs = self.source(lambda: Task(data=1))
        assert [task.task_id for task in outputs] == ["0"]

    def test_only_time_of_the_source_itself_counts(self):
        def emit():
            yield Task(data=1)
            yield Task(data=2)

        run, outputs = self.source(emit)
        next(outputs)
        begin = time.thread_time_ns()
        while time.thread_time_ns() - begin < 20_000_000:
            """Other work between the two outputs."""
        assert [task.task_id for task in outputs] == ["1"]
        assert 0 < run.report.cpu_ns < 20_000_000

    def test_metrics_of_a_source_are_in_report_and_history(self):
        class Measuring(ProcessingStage):
            def process(self, task):
                for number in range(2):
                    self.metrics.add("n")
                    yield Task(data=number)

        run = Probe(Measuring())
        outputs = list(run.adapter.process_source(EmptyTask()))
        assert run.report.metrics == {"n": 2}
        assert dict(outputs[0].stage_perf[0].custom_metrics) == {"n": 2}

    def test_a_task_that_is_emitted_twice_is_rejected(self):
        task = Task(data=1)
        run, outputs = self.source(lambda: iter([task, task]))
        assert next(outputs) is task
        with pytest.raises(ContractError, match="the same task object twice"):
            next(outputs)
        assert run.kinds() == [("failed", 1)]

    def test_a_task_that_is_emitted_again_after_later_stages_is_rejected(self):
        task = Task(data=1)
        _, outputs = self.source(lambda: iter([task, task]))
        Probe(Calling(same))(next(outputs))
        with pytest.raises(ContractError, match="the same task object twice"):
            next(outputs)

    @pytest.mark.parametrize("on_error", ["raise", "skip"])
    def test_the_outputs_of_a_source_that_fails_halfway_count(self, on_error):
        def emit():
            yield Task(data=1)
            raise ValueError("the disk is gone")

        run, outputs = self.source(emit, on_error)
        next(outputs)
        if on_error == "raise":
            with pytest.raises(StageError, match="the disk is gone"):
                next(outputs)
        else:
            assert list(outputs) == []
        assert run.report.inputs == (InputOutcome("", "failed", 1),)
        assert run.report.error.message == "the disk is gone"

    def test_a_source_that_is_closed_early_cleans_up_and_reports(self):
        events = []

        def emit():
            try:
                yield Task(data=1)
                yield Task(data=2)
            finally:
                events.append("closed")

        run, outputs = self.source(emit)
        next(outputs)
        outputs.close()
        assert events == ["closed"]
        assert run.kinds() == [("out", 1)]

    def test_a_source_that_emits_other_objects_is_rejected(self):
        _, outputs = self.source(lambda: iter([5]))
        with pytest.raises(ContractError, match="type 'int'"):
            next(outputs)

    def test_a_source_with_retries_is_not_streamed(self):
        tries = []

        def emit():
            yield Task(data=1)
            tries.append(1)
            if len(tries) < 3:
                raise ValueError("not yet")

        run, outputs = self.source(emit, max_attempts=3)
        assert [task.task_id for task in outputs] == ["0"]
        assert [report.attempt for report in run.reports] == [1, 2, 3]


def test_ids_are_reassigned_if_outputs_cannot_be_measured():
    class Odd(Task):
        @property
        def num_bytes(self):
            if self.data == "broken":
                raise ValueError(self.data)
            return 1

    class Source(ProcessingStage):
        max_attempts = 2
        calls = 0

        def process(self, task):
            self.calls += 1
            return [Odd(data="fine"), Odd(data="broken" if self.calls == 1 else "repaired")]

    result = Pipeline("p", [Source()]).run()
    assert [(task.task_id, task.data) for task in result] == [("0", "fine"), ("1", "repaired")]
