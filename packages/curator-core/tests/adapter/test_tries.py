# SPDX-License-Identifier: Apache-2.0
"""What happens to a batch that fails: splitting it, retrying it, keeping failed tasks."""

from __future__ import annotations

import random
from typing import Any

import pytest

from curator_core import ProcessingStage, StageError, Task
from curator_core.deadletter.payload import unpack
from curator_core.testing.probe import Calling, CallingBatches, Probe, fail_at, seen


class Wicked(str):
    """Can be pickled, but not unpickled."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


def poisonous(*bad: str):
    """Return a stage that spoils its inputs, and fails on a whole batch if it contains poison."""

    def work(tasks: list[Task]) -> list[Task]:
        names = [task.data for task in tasks]
        for task in tasks:
            task.data = "spoiled"
        if set(names) & set(bad):
            raise ValueError(f"poison: {sorted(set(names) & set(bad))}")
        return [Task(data=name.upper()) for name in names]

    return CallingBatches(work)


class TestSplitting:
    def test_a_failed_batch_is_split_in_halves(self):
        run = Probe(poisonous("c"), on_error="skip")
        outputs = run(*(seen(str(number), data) for number, data in enumerate("abcd")))
        assert [(task.task_id, task.data) for task in outputs] == [("0", "A"), ("1", "B"), ("3", "D")]
        assert [[outcome.task_id for outcome in report.inputs] for report in run.reports] == [
            ["0", "1", "2", "3"],
            ["0", "1"],
            ["2", "3"],
            ["2"],
            ["3"],
        ]
        assert [report.inputs[0].kind for report in run.reports] == ["retried", "out", "retried", "failed", "out"]
        assert [report.attempt for report in run.reports] == [1, 2, 2, 3, 3]
        assert run.reports[3].error.message == "poison: ['c']"

    def test_a_batch_uses_all_attempts_before_it_is_split(self):
        run = Probe(poisonous("b").with_(max_attempts=2, retry_delay_s=0), on_error="skip")
        assert [task.data for task in run(seen("0", "a"), seen("1", "b"))] == ["A"]
        assert [(len(report.inputs), report.attempt) for report in run.reports] == [
            (2, 1),
            (2, 2),
            (1, 3),
            (1, 3),
            (1, 4),  # a single task gets as many attempts as a batch
        ]

    def test_neighbors_of_the_failed_task_are_retried(self):
        left = [1]

        def work(tasks: list[Task]) -> list[Task]:
            if any(task.data == "bad" for task in tasks):
                raise ValueError("poison")
            if left[0]:
                left[0] -= 1
                raise ConnectionError("not yet")
            return tasks

        run = Probe(
            CallingBatches(work).with_(max_attempts=3, retry_on=ConnectionError, retry_delay_s=0), on_error="skip"
        )
        assert [task.task_id for task in run(seen("0", "bad"), seen("1", "good"))] == ["1"]

    def test_batches_of_an_spmd_group_are_not_split(self):
        stage = poisonous("b").with_(xenna_stage_spec={"is_spmd": True})
        run = Probe(stage, on_error="skip")
        assert run(seen("0", "a"), seen("1", "b")) == []
        assert len(run.reports) == 1

    def test_batches_are_not_split_if_a_failure_ends_the_run(self):
        run = Probe(poisonous("b"))
        with pytest.raises(StageError):
            run(seen("0", "a"), seen("1", "b"))
        assert run.kinds() == [("failed", 0)] * 2

    def test_inputs_that_do_not_unpickle_fail_together(self, caplog):
        run = Probe(poisonous("a"), on_error="skip")
        assert run(seen("0", "a"), seen("1", Wicked())) == []
        assert run.kinds() == [("failed", 0)] * 2
        assert "do not pickle" in caplog.text

    def test_inputs_that_do_not_pickle_fail_together(self, caplog):
        run = Probe(poisonous("b"), on_error="skip")
        tasks = [seen("0", "a"), seen("1", "b")]
        tasks[0].payload = (n for n in range(3))
        assert run(*tasks) == []
        assert run.kinds() == [("failed", 0)] * 2
        assert "do not pickle" in caplog.text


class TestRetryOn:
    def stage(self, error: type[BaseException], **settings: Any) -> ProcessingStage:
        def work(task: Task) -> Task:
            if task.data == "bad":
                raise error("no")
            return task

        return Calling(work, max_attempts=3, retry_delay_s=0, **settings)

    @pytest.mark.parametrize(
        ("retry_on", "attempts"), [(Exception, 3), (OSError, 3), ((KeyError, OSError), 3), (KeyError, 1), ((), 1)]
    )
    def test_exceptions_outside_retry_on_fail_at_once(self, retry_on, attempts):
        run = Probe(self.stage(ConnectionError, retry_on=retry_on))
        with pytest.raises(StageError):
            run(seen("0", "bad"))
        assert len(run.reports) == attempts
        assert run.kinds() == [("failed", 0)]

    def test_neighbors_of_a_task_that_is_not_retried_go_on(self):
        run = Probe(self.stage(ValueError, retry_on=OSError, batch_size=2), on_error="skip")
        assert [task.task_id for task in run(seen("0", "good"), seen("1", "bad"))] == ["0"]
        assert [report.attempt for report in run.reports] == [1, 2, 2]

    def test_retry_delays_double_up_to_30_s(self, monkeypatch):
        waited: list[float] = []
        monkeypatch.setattr("curator_core._adapter.retry.time.sleep", waited.append)
        run = Probe(self.stage(ValueError).with_(max_attempts=4, retry_delay_s=8.0))
        with pytest.raises(StageError):
            run(seen("0", "bad"))
        limits = [8.0, 16.0, 30.0]
        assert all(limit / 2 <= seconds <= limit for seconds, limit in zip(waited, limits, strict=True))
        assert all(report.idle_ns < 10**9 for report in run.reports)

    def test_retry_delays_do_not_use_the_global_random_state(self):
        random.seed(1)
        expected = random.random()
        random.seed(1)
        with pytest.raises(StageError):
            Probe(self.stage(ValueError).with_(retry_delay_s=0.001))(seen("0", "bad"))
        assert random.random() == expected


class TestLetters:
    def probe(self, stage: ProcessingStage) -> Probe:
        run = Probe(stage)
        state = run.adapter.state
        state.enter(state.context._replace(on_error="skip", letter_bytes=10**6), state.sink)
        return run

    def test_the_letter_has_the_original_task_and_its_own_error(self):
        run = self.probe(poisonous("b", "d"))
        run(*(seen(str(number), data, note=data) for number, data in enumerate("abcd")))
        kept = [(report.inputs[each.number].task_id, each) for report in run.reports for each in report.failed_input]
        assert [(task_id, each.error.message) for task_id, each in kept] == [
            ("1", "poison: ['b']"),
            ("3", "poison: ['d']"),
        ]
        tasks = [unpack(each.payload) for _, each in kept]
        assert [(task.task_id, task.data, task.metadata) for task in tasks] == [
            ("1", "b", {"note": "b"}),
            ("3", "d", {"note": "d"}),
        ]

    def test_tasks_that_fail_individually_have_separate_errors(self):
        run = self.probe(Calling(fail_at("b", "d"), batch_size=4))
        run(*(seen(str(number), data) for number, data in enumerate("abcd")))
        assert [(each.number, each.error.message, each.error.doing) for each in run.report.failed_input] == [
            (1, "cannot work on b", "on task '1'"),
            (3, "cannot work on d", "on task '3'"),
        ]

    def test_changes_by_the_stage_are_not_in_the_letter(self):
        def spoil(task: Task) -> Task:
            task.data.append("spoiled")
            raise ValueError("no")

        run = self.probe(Calling(spoil))
        run(seen("0", ["fresh"]))
        assert unpack(run.report.failed_input[0].payload).data == ["fresh"]

    def test_an_unpicklable_task_has_a_letter_without_payload(self):
        run = self.probe(Calling(fail_at("b")))
        task = seen("0", "b")
        task.payload = (n for n in range(3))
        run(task)
        assert [each.payload for each in run.report.failed_input] == [None]

    def test_without_dead_letters_nothing_is_stored(self):
        run = Probe(Calling(fail_at("b")), on_error="skip")
        run(seen("0", "b"))
        assert run.report.failed_input == ()
