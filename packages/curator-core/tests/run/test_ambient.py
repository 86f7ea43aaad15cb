# SPDX-License-Identifier: Apache-2.0
"""Observers of every run, which runs do not name."""

from __future__ import annotations

import threading

import pytest
from tests.waiting import DEADLINE_S

from curator_core import ExecutorError, LocalExecutor, Pipeline, ProcessingStage, RunObserver, Task, watch_all_runs
from curator_core._plan.plan import Plan
from curator_core._reports.observers import ambient_observers
from curator_core.testing import Recorder


class Pass(ProcessingStage):
    def process(self, task):
        return task


class Special(Recorder):
    pass


class Other(RunObserver):
    pass


@pytest.fixture
def ambient():
    recorder = Recorder()
    undo = watch_all_runs(recorder)
    yield recorder
    undo()
    assert ambient_observers(()) == ()


def run(*observers):
    return Pipeline("p", [Pass()]).run(initial_tasks=[Task(data=1)], observers=observers)


def test_it_watches_runs_that_do_not_name_it(ambient):
    first, second = run(), run()
    assert [result for result, _ in ambient.ends] == [first, second]
    assert [report.run_id for report in ambient.batches] == [first.run_id, second.run_id]


def test_it_watches_on_every_executor(ambient):
    LocalExecutor().execute([Pass()], [Task(data=1)])
    LocalExecutor(workers=2).execute(Plan.from_stages([Pass()], fed=True), [Task(data=1)])
    assert len(ambient.ends) == 2
    assert len(ambient.batches) == 2


def test_it_watches_beside_observers_of_other_classes(ambient):
    other = Special()
    run(Other())
    assert len(ambient.ends) == 1
    run(other)
    assert len(other.ends) == 1


@pytest.mark.parametrize("given", [Recorder, Special])
def test_it_stays_out_where_one_of_its_class_was_given(ambient, given):
    own = given()
    run(own)
    assert len(own.ends) == 1
    assert ambient.ends == []


def test_it_is_told_once_where_it_was_given_too(ambient):
    run(ambient)
    assert len(ambient.ends) == 1


def test_asking_twice_changes_nothing(ambient):
    undo = watch_all_runs(ambient)
    run()
    assert len(ambient.ends) == 1
    undo()
    undo()
    run()
    assert len(ambient.ends) == 2  # the fixture has registered it as well


def test_what_was_asked_for_twice_is_watched_until_both_have_ended_it():
    recorder = Recorder()
    first, second = watch_all_runs(recorder), watch_all_runs(recorder)
    first()
    first()
    assert ambient_observers(()) == (recorder,)
    second()
    assert ambient_observers(()) == ()


def test_two_observers_of_one_class_both_watch(ambient):
    second = Recorder()
    undo = watch_all_runs(second)
    run()
    undo()
    run()
    assert (len(ambient.ends), len(second.ends)) == (2, 1)


def test_a_run_under_way_is_watched_to_its_end():
    recorder = Recorder()
    undo = watch_all_runs(recorder)

    class Undo(ProcessingStage):
        def process(self, task):
            undo()
            return task

    Pipeline("p", [Undo(), Pass()]).run(initial_tasks=[Task(data=1)])
    assert len(recorder.batches) == 2
    assert len(recorder.ends) == 1
    assert ambient_observers(()) == ()


def test_one_that_fails_costs_the_run_nothing(caplog):
    class Broken(RunObserver):
        def on_run_start(self, run):
            raise ValueError("broken")

    undo = watch_all_runs(Broken())
    try:
        assert len(run()) == 1
    finally:
        undo()
    assert "failed in on_run_start" in caplog.text


def test_threads_may_come_and_go(ambient):
    """Every undo function removes its own observer and no other."""
    barrier = threading.Barrier(8, timeout=DEADLINE_S)

    def come_and_go():
        barrier.wait()
        for _ in range(200):
            watch_all_runs(Other())()

    threads = [threading.Thread(target=come_and_go) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ambient_observers(()) == (ambient,)


@pytest.mark.parametrize("given", [None, "otel", object()])
def test_what_is_no_observer_is_refused(given):
    with pytest.raises(ExecutorError, match="not a RunObserver") as raised:
        watch_all_runs(given)
    assert raised.value.field == "observer"
    assert ambient_observers(()) == ()


def test_a_class_instead_of_an_observer_is_told_apart():
    with pytest.raises(ExecutorError) as raised:
        watch_all_runs(Recorder)
    assert raised.value.hint == "call the class: Recorder()"
