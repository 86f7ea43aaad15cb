# SPDX-License-Identifier: Apache-2.0
"""Generators in stages of a pipeline: their outputs move on as they are produced."""

from __future__ import annotations

from itertools import chain

import pytest

from curator_core import (
    Checkpoint,
    DeadLetter,
    FailureLimitError,
    LocalExecutor,
    Pipeline,
    ProcessingStage,
    RunObserver,
    StageError,
    Task,
    deadletter,
)
from curator_core.testing import Recorder

from ..helpers import tasks  # noqa: TID252 - no import can write this directory's name


class Count(ProcessingStage):
    """Yields numbers and records it."""

    def __init__(self, seen, fails_at=None):
        self.seen = seen
        self.fails_at = fails_at

    def __deepcopy__(self, memo):
        return self  # so that copies share the list of the test

    def process(self, task):
        try:
            for number in range(task.data):
                if number == self.fails_at:
                    raise ValueError("no more")
                self.seen.append(f"make {number}")
                self.metrics.add("made", 1)
                yield Task(data=number)
        finally:
            self.seen.append("closed")


class Take(ProcessingStage):
    def __init__(self, seen, fails_at=None):
        self.seen = seen
        self.fails_at = fails_at

    def __deepcopy__(self, memo):
        return self

    def process(self, task):
        self.seen.append(f"take {task.data}")
        if task.data == self.fails_at:
            raise ValueError("too much")
        return task


class Several(ProcessingStage):
    def process(self, task):
        yield from (Task(data=number) for number in range(task.data))


class Refuse(ProcessingStage):
    def __init__(self, bad):
        self.bad = bad

    def process(self, task):
        if task.data == self.bad:
            raise ValueError("not this one")
        return task


class Sent:
    """Can be pickled, but not unpickled."""

    def __reduce__(self):
        return int, ("no number",)


class Unreadable(ProcessingStage):
    def process(self, task):
        yield Task(data=0)
        if task.data:
            yield from (Task(data=Sent()) for _ in range(100))
            raise ValueError("half-way")


class Broken(ProcessingStage):
    def process(self, task):
        raise ValueError("always")


def run(*stages, data=(3,), **settings):
    recorder = Recorder()
    return Pipeline("p", stages).run(initial_tasks=tasks(*data), observers=[recorder], **settings), recorder


def test_outputs_of_a_generator_move_on_as_they_are_produced():
    seen = []
    result, recorder = run(Count(seen), Take(seen), data=(2, 0))
    assert seen == ["make 0", "take 0", "make 1", "take 1", "closed", "closed"]
    assert [task.task_id for task in result] == ["0.0", "0.1"]
    first, second = recorder.of("Count")
    assert [tuple(outcome) for outcome in (*first.inputs, *second.inputs)] == [("0", "out", 2), ("1", "filtered", 0)]
    assert first.metrics == {"made": 2}
    assert result[1].stage_perf[0].custom_metrics == {"made": 2}
    assert result.lost == ()


def test_a_last_stage_with_a_checkpoint_is_read_to_its_end(tmp_path):
    seen = []
    run(Take(seen), Count(seen), checkpoint=tmp_path)
    assert seen == ["take 3", "make 0", "make 1", "make 2", "closed"]


def test_a_generator_that_fails_halfway_ends_the_run_and_its_outputs_count():
    seen = []
    with pytest.raises(StageError, match="raised ValueError on task '0': no more") as raised:
        run(Count(seen, fails_at=2), Take(seen))
    assert seen == ["make 0", "take 0", "make 1", "take 1", "closed"]
    first, second = raised.value.result.stages
    assert (first.tasks_failed, first.tasks_out, second.tasks_in) == (1, 2, 2)
    assert [task.data for task in raised.value.result] == [0, 1]


@pytest.mark.parametrize("policy", ["skip", "letters"])
def test_outputs_are_withdrawn_if_failures_are_skipped(policy, tmp_path):
    seen = []
    result, _ = run(
        Count(seen, fails_at=3), Take(seen), data=(1, 9), on_error="skip" if policy == "skip" else DeadLetter(tmp_path)
    )
    assert seen == [
        *("make 0", "take 0", "closed"),
        *("make 0", "take 0", "make 1", "take 1", "make 2", "take 2", "closed"),
    ]
    assert [task.task_id for task in result] == ["0.0"]
    first, second = result.stages
    assert (first.tasks_in, first.tasks_failed, first.tasks_out, second.tasks_in) == (2, 1, 1, 1)
    assert result.lost == ()
    if policy == "letters":
        assert [(letter.stage, letter.task_id) for letter in deadletter.read(tmp_path)] == [("Count", "1")]


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_another_attempt_begins_with_the_first_output(on_error):
    class Twice(Count):
        def process(self, task):
            fails_at = 2 if self.seen.count("make 0") == 0 else None
            yield from Count(self.seen, fails_at).process(task)

    seen = []
    result, recorder = run(Twice(seen).with_(max_attempts=2, retry_delay_s=0), Take(seen), on_error=on_error)
    assert [(task.task_id, task.data) for task in result] == [("0.0", 0), ("0.1", 1), ("0.2", 2)]
    assert [report.is_retried for report in recorder.of("Twice")] == [True, False]
    assert seen.count("take 0") == 2  # a later stage may see outputs that are withdrawn
    assert result.stages[1].tasks_in == 3
    assert result.lost == ()


def test_outputs_of_a_generator_share_batches_with_others_unless_they_are_many():
    seen = []
    data = (2, 3, 30, 1, 2)
    _, recorder = run(Count(seen), Take(seen).with_(batch_size=4), data=data, on_error="skip")
    batches = [[outcome.task_id for outcome in report.inputs] for report in recorder.of("Take")]
    assert [len(batch) for batch in batches] == [4, 1, *[4] * 8, 1]  # the rest before the 30 forms its own batch
    assert [*chain(*batches)] == [f"{number}.{index}" for number, count in enumerate(data) for index in range(count)]


def test_only_the_inner_generator_is_withdrawn():
    class Halves(ProcessingStage):
        def process(self, task):
            yield Task(data=task.data)
            if task.data == 1:
                raise ValueError("one has no halves")
            yield Task(data=task.data)

    result, _ = run(Count([], fails_at=4), Halves(), Take([]), data=(3, 5), on_error="skip")
    assert [task.task_id for task in result] == ["0.0.0", "0.0.1", "0.2.0", "0.2.1"]
    assert [stage.tasks_failed for stage in result.stages] == [1, 1, 0]
    assert result.lost == ()


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("where", ["generator", "later stage"])
def test_a_run_that_ends_inside_a_generator_is_resumed_with_all_its_outputs(on_error, where, tmp_path):
    class Interrupted(Count):
        def process(self, task):
            for output in super().process(task):
                if where == "generator" and output.data == 2:
                    raise KeyboardInterrupt
                yield output

    class Interrupting(Take):
        def process(self, task):
            if where == "later stage" and task.data == 2:
                raise KeyboardInterrupt
            return task

    settings = {"on_error": on_error, "checkpoint": tmp_path, "data": (4,)}
    with pytest.raises(KeyboardInterrupt):
        run(Interrupted([]).with_(name="count"), Interrupting([]).with_(name="take"), **settings)
    settings["checkpoint"] = Checkpoint(tmp_path, accept_changes=True)
    result, _ = run(Count([]).with_(name="count"), Take([]).with_(name="take"), **settings)
    assert [task.data for task in result] == [0, 1, 2, 3]


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_an_interruption_between_two_outputs_loses_nothing(on_error, tmp_path):
    class Interrupt(RunObserver):
        def on_batch(self, report):
            if report.stage_name == "Take" and report.sequence == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Pipeline("p", [Several(), Take([])]).run(
            initial_tasks=tasks(4), observers=[Interrupt()], on_error=on_error, checkpoint=tmp_path
        )
    result, _ = run(Several(), Take([]), data=(4,), on_error=on_error, checkpoint=tmp_path)
    assert [task.data for task in result] == [0, 1, 2, 3]


def test_too_many_failures_end_a_run_inside_a_generator(tmp_path):
    seen = []
    with pytest.raises(FailureLimitError) as raised:
        Pipeline("p", [Count(seen), Broken()]).run(
            initial_tasks=tasks(1000), on_error=DeadLetter(tmp_path), max_failures=3
        )
    assert seen == [*(f"make {number}" for number in range(4)), "closed"]
    assert raised.value.result.stages[1].tasks_failed == len(deadletter.read(tmp_path)) == 4


def test_withdrawn_outputs_leave_no_dead_letter(tmp_path):
    result, _ = run(Count([], fails_at=4), Refuse(2), data=(9, 1), on_error=DeadLetter(tmp_path))
    assert [stage.tasks_failed for stage in result.stages] == [1, 0]
    assert [(letter.stage, letter.task_id) for letter in deadletter.read(tmp_path)] == [("Count", "0")]
    assert result.accounting.failed == {"Count": ("0",)}


class Sift(ProcessingStage):
    """Passes, drops, and multiplies numbers, and fails on others."""

    def process(self, task):
        kind = task.data % 4
        if kind == 0:
            raise ValueError("bad")
        return (None, task, [Task(data=1), Task(data=1)])[kind - 1]


@pytest.mark.parametrize("workers", [1, 2])
def test_no_outcome_of_a_withdrawn_output_counts(workers):
    class Retried(ProcessingStage):
        max_attempts, retry_delay_s = 2, 0.0

        def process(self, task):
            self.calls = getattr(self, "calls", 0) + 1
            fails = self.calls == 1
            for number in range(40):  # more than are buffered for later stages
                yield Task(data=number)
            if fails:
                raise ValueError("once")

    result = Pipeline("p", [Retried(), Sift()]).run(LocalExecutor(workers), tasks(0), on_error="skip")
    first, second = result.stages
    assert (first.attempts_retried, first.tasks_in, first.tasks_out) == (1, 1, 40)
    counts = (second.tasks_in, second.tasks_passed, second.tasks_filtered, second.tasks_failed, second.tasks_out)
    assert counts == (40, 20, 10, 10, 30)
    assert len(result) == 30
    assert len(result.accounting.failed["Sift"]) == 10


def test_withdrawn_outputs_are_not_read_again():
    result = Pipeline("p", [Unreadable().with_(fusible=False), Take([])]).run(
        LocalExecutor(2), tasks(0, 1, 0), on_error="skip"
    )
    assert [task.task_id for task in result] == ["0.0", "2.0"]
    assert result.accounting.failed == {"Unreadable": ("1",)}


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("workers", [1, 2])
def test_later_stages_see_an_output_before_the_next_one_is_made(workers, on_error):
    class Window(ProcessingStage):
        def process(self, task):
            window = []
            for number in range(task.data):
                window.append(number)
                yield Task(data=window)

    class Read(ProcessingStage):
        def process(self, task):
            return Task(data=[*task.data])

    result = Pipeline("p", [Window(), Read()]).run(LocalExecutor(workers), tasks(3), on_error=on_error)
    assert [task.data for task in result] == [[0], [0, 1], [0, 1, 2]]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("attempts", "batch_size"), [(1, 1), (2, 1), (2, 2)])
def test_a_run_ended_by_a_later_stage_is_resumed_with_all_outputs_of_the_generator(
    workers, attempts, batch_size, tmp_path
):
    def pipeline(bad):
        return Pipeline(
            "p", [Several().with_(max_attempts=attempts, retry_delay_s=0), Refuse(bad).with_(batch_size=batch_size)]
        )

    with pytest.raises(StageError, match="'Refuse': raised ValueError"):
        pipeline(2).run(LocalExecutor(workers), tasks(9), checkpoint=tmp_path)
    result = pipeline(None).run(LocalExecutor(workers), tasks(9), checkpoint=Checkpoint(tmp_path, accept_changes=True))
    assert [task.data for task in result] == [*range(9)]


def test_a_generator_is_closed_when_a_later_stage_fails():
    seen = []
    with pytest.raises(StageError, match="too much"):
        run(Count(seen), Take(seen, fails_at=1))
    assert seen == ["make 0", "take 0", "make 1", "take 1", "closed"]


def test_time_spent_on_outputs_is_not_counted_for_the_generator():
    class Slow(ProcessingStage):
        def process(self, task):
            until = task.data + sum(range(200_000))
            return Task(data=until)

    _, recorder = run(Count([]), Slow(), data=(20,))
    (counted,) = recorder.of("Count")
    slow = sum(report.duration_ns for report in recorder.of("Slow"))
    assert counted.duration_ns < slow
    assert sum(report.idle_ns for report in recorder.of("Slow")[1:]) < slow
