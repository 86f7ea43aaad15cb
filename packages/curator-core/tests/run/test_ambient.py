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


def test_an_ambient_observer_watches_all_runs(ambient):
    first, second = run(), run()
    assert [result for result, _ in ambient.ends] == [first, second]
    assert [report.run_id for report in ambient.batches] == [first.run_id, second.run_id]


def test_an_ambient_observer_watches_every_executor(ambient):
    LocalExecutor().execute([Pass()], [Task(data=1)])
    LocalExecutor(workers=2).execute(Plan.from_stages([Pass()], fed=True), [Task(data=1)])
    assert len(ambient.ends) == 2
    assert len(ambient.batches) == 2


def test_an_ambient_observer_watches_beside_observers_of_other_classes(ambient):
    other = Special()
    run(Other())
    assert len(ambient.ends) == 1
    run(other)
    assert len(other.ends) == 1


@pytest.mark.parametrize("given", [Recorder, Special])
def test_an_ambient_observer_yields_to_a_given_one_of_its_class(ambient, given):
    own = given()
    run(own)
    assert len(own.ends) == 1
    assert ambient.ends == []


def test_an_ambient_observer_that_is_also_given_is_notified_once(ambient):
    run(ambient)
    assert len(ambient.ends) == 1


def test_undoing_twice_changes_nothing(ambient):
    undo = watch_all_runs(ambient)
    run()
    assert len(ambient.ends) == 1
    undo()
    undo()
    run()
    assert len(ambient.ends) == 2  # the fixture has registered it as well


def test_watching_twice_lasts_until_both_have_ended():
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


def test_a_run_in_progress_is_watched_to_its_end():
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


def test_a_failing_ambient_observer_does_not_affect_the_run(caplog):
    class Broken(RunObserver):
        def on_run_start(self, run):
            raise ValueError("broken")

    undo = watch_all_runs(Broken())
    try:
        assert len(run()) == 1
    finally:
        undo()
    assert "failed in on_run_start" in caplog.text


def test_threads_can_start_and_stop_watching(ambient):
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
def test_an_object_that_is_not_an_observer_is_rejected(given):
    with pytest.raises(ExecutorError, match="not a RunObserver") as raised:
        watch_all_runs(given)
    assert raised.value.field == "observer"
    assert ambient_observers(()) == ()


def test_a_class_instead_of_an_observer_is_rejected_with_a_hint():
    with pytest.raises(ExecutorError) as raised:
        watch_all_runs(Recorder)
    assert raised.value.hint == "call the class: Recorder()"
