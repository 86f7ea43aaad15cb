# SPDX-License-Identifier: Apache-2.0
"""Processes that die: the run continues without the task that killed them, or names it."""

from __future__ import annotations

import os
from collections import Counter

import pytest
from tests.waiting import wait_until

from curator_core import (
    DeadLetter,
    LocalExecutor,
    Pipeline,
    ProcessingStage,
    StageError,
    Task,
    WorkerDiedError,
    deadletter,
)
from curator_core._local.scheduler import Scheduler
from curator_core.testing import Journal

from ..helpers import tasks  # noqa: TID252 - no import can write this directory's name
from .stages import TWO, TWO_ONCE, deadly, dies_once, living, meeting, numbers, stage  # noqa: TID252 - no import can write this directory's name


@pytest.mark.parametrize(("how", "says"), [("exit", "exited with status 3"), ("kill", "was killed by SIGKILL")])
def test_a_worker_that_dies_is_reported_and_the_others_are_torn_down(tmp_path, how, says):
    journal = Journal(tmp_path)
    end = deadly(how)

    def work(task):
        if task.data[0] == 9:
            end()
        return task

    stages = [meeting(tmp_path), living(journal, "work", work)]
    with pytest.raises(WorkerDiedError, match="while it had work") as raised:
        Pipeline("p", stages).run(TWO_ONCE, tasks(*range(10)))
    assert raised.value.stage == "meet+work"
    assert f"{says} while it had work" in str(raised.value)
    assert raised.value.result is not None
    assert Counter(event.event for event in journal.read()) == {"setup": 2, "teardown": 1}


@pytest.mark.parametrize("where", ["setup", "teardown"])
def test_a_worker_that_dies_in_setup_or_teardown_is_reported(where):
    class Fatal(ProcessingStage):
        def setup(self, worker_metadata):
            if where == "setup":
                os._exit(1)

        def process(self, task):
            return task

        def teardown(self):
            os._exit(1)

    with pytest.raises(WorkerDiedError, match="while it had work" if where == "setup" else "in teardown"):
        Pipeline("p", [Fatal()]).run(TWO_ONCE, tasks(1))


def test_a_run_continues_after_a_process_died(tmp_path, caplog):
    """The process dies while its source still emits tasks."""
    count = 3000
    work = stage(dies_once(tmp_path / "mark"), name="work", batch_size=2)
    result = Pipeline("p", [numbers(count), work]).run(TWO)
    assert sorted(task.data[0] for task in result) == [*range(count)]
    assert (result.complete, result.lost, result.accounting.restarts) == (True, (), 1)
    assert result.accounting.unfinished == ()
    source, worked = result.stages
    assert (worked.tasks_in, worked.tasks_out) == (count, count)
    assert (source.tasks_out, source.attempts_retried) == (count, 0)
    assert "exited with status 1 while it had work: restarting with" in caplog.text
    assert "restarts left: 2" in caplog.text


def test_a_run_with_a_source_continues_after_a_second_death(tmp_path):
    """The second death happens before most of the repeated source tasks are read again."""
    first, second = tmp_path / "first", tmp_path / "second"

    class Dies(ProcessingStage):
        isolated = False

        def setup(self, worker_metadata):
            self.is_after_the_first = worker_metadata.worker_id in ("local-2", "local-3")  # not the first two

        def process(self, task):
            if task.data == 2000 and not first.exists():
                first.touch()
                os._exit(1)
            if self.is_after_the_first and not second.exists():
                second.touch()
                os._exit(1)
            return task

    result = Pipeline("p", [numbers(3000), Dies()]).run(TWO)
    assert sorted(task.data for task in result) == [*range(3000)]
    assert (result.lost, result.accounting.restarts) == ((), 2)


def test_a_worker_that_dies_while_it_answers_does_not_block_the_run(tmp_path):
    """A partial answer of the dead worker must not look like the beginning of a complete one."""
    first = tmp_path / "first"

    def work(task):
        import signal
        import socket

        def send_half(connection, data):
            connection.send(data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)

        if not first.exists():
            first.touch()
            socket.socket.sendall = send_half
        return task

    result = Pipeline("p", [stage(work, name="work")]).run(TWO, tasks(bytes(100_000)))
    assert [task.data for task in result] == [bytes(100_000)]
    assert result.accounting.restarts == 1


def test_a_failure_during_a_death_ends_the_run_with_on_error_raise(tmp_path, monkeypatch):
    """A task is in flight when another worker dies, and raises after that: it must not count as finished."""
    noticed, shut_down = tmp_path / "noticed", Scheduler._shut_down

    def shut_down_and_say_so(scheduler):
        noticed.touch()
        return shut_down(scheduler)

    def work(task):
        number, _ = task.data
        if number == 0:
            os._exit(1)
        if number == 1:
            wait_until(noticed.exists)
            raise ValueError("beside it")
        return task

    monkeypatch.setattr(Scheduler, "_shut_down", shut_down_and_say_so)
    with pytest.raises(StageError, match="beside it") as raised:
        Pipeline("p", [meeting(tmp_path), stage(work, name="work")]).run(TWO, tasks(0, 1))
    assert raised.value.result.accounting.restarts == 0


def test_initial_tasks_continue_in_isolated_stages_and_count_as_finished(tmp_path):
    work = stage(dies_once(tmp_path / "mark"))
    result = Pipeline("p", [work]).run(TWO, tasks(*range(20)), checkpoint=tmp_path / "progress")
    assert (len(result), result.accounting.restarts) == (20, 1)
    parents = dict(task.data for task in result)
    assert os.getpid() != parents[7]  # the parent is a worker, not the driver
    again = Pipeline("p", [work]).run(TWO, tasks(*range(20)), checkpoint=tmp_path / "progress")
    assert len(again.accounting.resumed) == 20


def test_only_tasks_that_kill_processes_are_set_aside(tmp_path):
    """The process dies after its source has emitted all of its tasks."""
    end = deadly("crash")

    def work(task):
        if task.data in (3, 11, 12):
            end()
        return task

    stages = [numbers(16), stage(work, name="work", batch_size=4)]
    result = Pipeline("p", stages).run(TWO, on_error=DeadLetter(tmp_path / "dead"))
    assert sorted(task.data for task in result) == [number for number in range(16) if number not in (3, 11, 12)]
    assert sorted(letter.task_id for letter in deadletter.read(tmp_path / "dead")) == ["11", "12", "3"]
    assert result.accounting.restarts == 1
    assert (result.stages[0].tasks_out, result.stages[1].tasks_failed) == (16, 3)


def test_letter_is_removed_if_the_task_succeeds_after_a_restart(tmp_path):
    letters, failed, died = tmp_path / "dead", tmp_path / "failed", tmp_path / "died"

    def work(task):
        if task.data == "fails once" and not failed.exists():
            failed.touch()
            raise ValueError("not yet")
        if task.data == "dies once" and not died.exists():
            wait_until(lambda: list(letters.rglob("*.letter")))
            died.touch()
            os._exit(1)
        return task

    source = stage(lambda task: [Task(data="fails once"), Task(data="dies once")], name="split")
    executor = LocalExecutor(workers=2, bundle=False)
    pipeline = Pipeline("p", [source, stage(work, name="work", num_workers=1)])
    result = pipeline.run(executor, tasks(0), on_error=DeadLetter(letters))
    assert sorted(task.data for task in result) == ["dies once", "fails once"]
    assert (result.accounting.restarts, result.stages[1].tasks_failed) == (1, 0)
    assert list(deadletter.read(letters)) == []


def test_a_task_that_kills_processes_ends_the_run_with_on_error_raise():
    end = deadly("kill")

    def work(task):
        if task.data == 5:
            end()
        return task

    with pytest.raises(StageError, match="its process was killed by SIGKILL") as raised:
        Pipeline("p", [stage(work)]).run(TWO, tasks(*range(8)))
    assert "'5'" in str(raised.value)
    assert raised.value.result.accounting.restarts == 1


def test_a_stage_that_must_not_be_isolated_uses_up_the_restarts(caplog):
    end = deadly("exit")
    work = stage(lambda task: end() if task.data == 2 else task, isolated=False)
    with pytest.raises(WorkerDiedError, match="while it had work") as raised:
        Pipeline("p", [work]).run(LocalExecutor(workers=2, max_restarts=2), tasks(*range(4)), on_error="skip")
    assert raised.value.result.accounting.restarts == 2
    assert caplog.text.count("restarting with") == 2
    assert "2" in raised.value.result.accounting.unfinished


def test_a_setup_that_kills_its_process_is_an_error_of_the_stage():
    class Fatal(ProcessingStage):
        def setup(self, worker_metadata):
            os._exit(1)

        def process(self, task):
            return task

    with pytest.raises(StageError, match="its process exited with status 1 in setup") as raised:
        Pipeline("p", [Fatal()]).run(TWO, tasks(1))
    assert raised.value.stage == "Fatal"
