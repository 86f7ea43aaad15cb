# SPDX-License-Identifier: Apache-2.0
"""LocalExecutor on several processes: what it promises beyond the conformance kit.

Stages are made inside the tests, so that they travel by value: a process that had to import this module would import
pytest and hypothesis first.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curator_core import (
    ConfigurationError,
    ContractError,
    DataError,
    DeadLetter,
    EmptyTask,
    ExecutorError,
    LocalExecutor,
    Pipeline,
    ProcessingStage,
    RunError,
    RunObserver,
    StageError,
    Task,
    WorkerDiedError,
    deadletter,
    processing_stage,
)
from curator_core.testing import Journal, Recorder

pytest.importorskip("loky")

TWO = LocalExecutor(workers=2)
TWO_ONCE = LocalExecutor(workers=2, max_restarts=0)
DEADLINE_S = 20
LOKY = b"popen_loky"  # in the command of a worker process


def tasks(*data: Any) -> list[Task]:
    return [Task(data=one) for one in data]


def stage(function: Any, **settings: Any) -> ProcessingStage:
    return processing_stage(**{"name": "stage", **settings})(function)


def numbers(count: int) -> ProcessingStage:
    def emit(task):
        return (Task(data=number) for number in range(count))

    return stage(emit, name="numbers")


def living(journal: Journal, name: str, work: Any = lambda task: task, fails_in: str = "") -> ProcessingStage:
    """A stage that writes down its life."""

    class Living(ProcessingStage):
        def note(self, event):
            journal.write(self.name, event, "")
            if event == fails_in:
                raise ValueError(f"failed in {event}")

        def setup(self, worker_metadata):
            self.note("setup")

        def process(self, task):
            return work(task)

        def teardown(self):
            self.note("teardown")

    return Living().with_(name=name)


def meeting(directory: Path) -> ProcessingStage:
    """A stage whose tasks 0 and 1 wait for each other: they get on only in two processes at once."""
    os.mkfifo(directory / "meeting")
    where = str(directory / "meeting")

    def meet(task):
        if task.data in (0, 1):
            signal.alarm(20)  # the process dies of it
            Path(where).open("rb" if task.data else "wb").close()
            signal.alarm(0)
        return Task(data=(task.data, os.getpid()))

    return stage(meet, name="meet")


def within_deadline(condition: Any) -> bool:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def processes() -> list[tuple[int, int, int, bytes]]:
    """All living ones: process, parent, group, and command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            status, command = (path / "stat").read_text(), (path / "cmdline").read_bytes()
        except OSError:  # it has just ended
            continue
        state, parent, group = status.rpartition(")")[2].split()[:3]
        if state not in "ZX":
            found.append((int(path.name), int(parent), int(group), command))
    return found


def our_workers() -> list[int]:
    """The worker processes of this one. (loky's two resource trackers stay as long as it does, for all its users.)"""
    return [pid for pid, parent, _, command in processes() if parent == os.getpid() and LOKY in command]


def files_of(driver: int) -> list[Path]:
    places = ("/dev/shm", "/tmp")  # noqa: S108 - where they may be
    return [path for place in places for path in Path(place).glob(f"curator-{driver}-*")]


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    assert our_workers() == []
    assert files_of(os.getpid()) == []
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("curator-")] == []


# --- the same as with one worker --------------------------------------------------------------------------


def test_outputs_ids_and_counts_are_those_of_one_worker():
    stages = [
        numbers(50),
        stage(lambda task: [Task(data=(task.data, n)) for n in range(task.data % 4)], name="fan", fans_out=True),
        stage(lambda task: task if sum(task.data) % 3 else None, name="sieve", batch_size=4),
        stage(lambda task: Task(data=[task.data]), name="box", num_workers=1),
    ]
    recorder = Recorder()
    here = Pipeline("p", stages).run(LocalExecutor())
    there = Pipeline("p", stages).run(TWO, observers=[recorder])
    assert [(task.task_id, task.data) for task in there] == [(task.task_id, task.data) for task in here]
    assert [(s.tasks_in, s.tasks_out, s.tasks_filtered) for s in there.stages] == [
        (s.tasks_in, s.tasks_out, s.tasks_filtered) for s in here.stages
    ]
    assert {len(task.stage_perf) for task in there} == {4}
    assert {report.group for report in recorder.of("box")} == {3}
    assert {report.worker_id for report in recorder.batches} <= {"local", "local-0", "local-1"}
    assert {report.bundle_id.split("-")[0] for report in recorder.of("sieve")} == {"2"}


DROP, KEEP, FAIL = "drop", "keep", "fail"
scripts = st.lists(st.one_of(st.sampled_from([DROP, KEEP, FAIL]), st.integers(0, 3)), min_size=1, max_size=4)
shapes = st.lists(
    st.tuples(scripts, st.integers(1, 5), st.sampled_from([None, 1]), st.booleans()), min_size=1, max_size=4
)


def scripted(number: int, script: list[Any], batch_size: int, num_workers: int | None, fusible: bool) -> Any:
    def work(task):
        what = script[(task.data * 7 + number) % len(script)]
        if what == "fail":
            raise ValueError(f"told to fail at {task.data}")
        if what == "drop":
            return None
        return task if what == "keep" else [Task(data=task.data + n) for n in range(what)]

    made = stage(work, name=f"s{number}", batch_size=batch_size, num_workers=num_workers)
    return made if fusible else made.with_(fusible=False)


@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shapes, st.lists(st.integers(0, 20), min_size=1, max_size=30))
def test_random_pipelines_give_what_one_worker_gives(shape, data):
    stages = [scripted(number, *each) for number, each in enumerate(shape)]
    here, there = (
        Pipeline("p", stages).run(executor, tasks(*data), on_error="skip") for executor in (LocalExecutor(), TWO)
    )
    assert [(task.task_id, task.data) for task in there] == [(task.task_id, task.data) for task in here]
    counts = [[(s.tasks_in, s.tasks_out, s.tasks_filtered, s.tasks_failed) for s in r.stages] for r in (here, there)]
    assert counts[0] == counts[1]
    assert there.lost == ()


# --- who works where --------------------------------------------------------------------------------------


def test_two_processes_work_at_once_and_the_order_stays(tmp_path):
    result = Pipeline("p", [meeting(tmp_path)]).run(TWO, tasks(*range(12)))
    assert [task.data[0] for task in result] == list(range(12))
    pids = {task.data[1] for task in result}
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert {task.stage_perf[0].worker_id for task in result} == {"local-0", "local-1"}


def test_a_stage_of_one_worker_sees_all_tasks_in_one_process_in_order(tmp_path):
    class Remember(ProcessingStage):
        def __init__(self):
            self.seen = []

        def num_workers(self):
            return 1

        def process(self, task):
            self.seen.append(task.data[0])
            return Task(data=(list(self.seen), os.getpid()))

    result = Pipeline("p", [meeting(tmp_path), Remember()]).run(TWO, tasks(*range(20)))
    assert result[-1].data[0] == list(range(20))
    assert len({task.data[1] for task in result}) == 1


def test_groups_of_few_workers_get_different_processes():
    def where(name):
        return stage(lambda task: Task(data=[*task.data, os.getpid()]), name=name, num_workers=1, fusible=False)

    (task,) = Pipeline("p", [where("a"), where("b")]).run(TWO, tasks([]))
    assert len(set(task.data)) == 2


def test_only_as_many_processes_are_started_as_there_is_work_for(tmp_path):
    journal = Journal(tmp_path)
    recorder = Recorder()
    Pipeline("p", [living(journal, "a"), living(journal, "b")]).run(TWO, tasks(1), observers=[recorder])
    assert [(event.stage, event.event) for event in journal.read()] == [
        ("a", "setup"),
        ("b", "setup"),
        ("b", "teardown"),
        ("a", "teardown"),
    ]
    assert {report.worker_id for report in recorder.workers} == {"local-0"}


def test_reports_come_in_the_calling_thread_and_outputs_before_the_end():
    threads = set()

    class Watch(RunObserver):
        def on_batch(self, report):
            threads.add(threading.get_ident())

        def on_worker(self, report):
            threads.add(threading.get_ident())

    Pipeline("p", [numbers(20), stage(lambda task: task)]).run(TWO, observers=[Watch()])
    assert threads == {threading.get_ident()}


def test_batches_are_full_across_bundles_but_for_the_last():
    fan = stage(lambda task: [Task(data=n) for n in range(task.data % 5)], name="fan", fans_out=True)
    full = stage(lambda task: task, name="full", batch_size=8, full_batches=True)
    recorder = Recorder()
    result = Pipeline("p", [fan, full]).run(TWO, tasks(*range(101)), observers=[recorder])
    assert len(result) == 200
    assert Counter(len(report.inputs) for report in recorder.of("full")) == {8: 25}


def test_a_source_alone_needs_no_process():
    result = Pipeline("p", [stage(lambda task: [Task(data=os.getpid())])]).run(TWO)
    assert [task.data for task in result] == [os.getpid()]


def test_a_pipeline_inside_a_stage_on_processes_of_its_own():
    def inner(task):
        add = processing_stage(name="add")(lambda t: Task(data=t.data + 1))
        (output,) = Pipeline("inner", [add]).run(LocalExecutor(workers=2), [Task(data=task.data)])
        return Task(data=output.data)

    assert [task.data for task in Pipeline("p", [stage(inner)]).run(TWO, tasks(1))] == [2]


# --- streams ----------------------------------------------------------------------------------------------


def test_a_source_runs_only_so_far_ahead(monkeypatch):
    monkeypatch.setattr("curator_core.processes.station._WINDOW", 2)
    monkeypatch.setattr("curator_core.processes.station._MOST", 8)
    made, ahead = 0, []

    class Watch(RunObserver):
        done = 0

        def on_batch(self, report):
            self.done += report.stage_name == "slow"

    watch = Watch()

    class Source(ProcessingStage[EmptyTask, Task[int]]):
        def __deepcopy__(self, memo):
            return self

        def __reduce__(self):
            return Source, ()

        def process(self, task):
            nonlocal made
            for made in range(2000):
                ahead.append(made - watch.done)
                yield Task(data=made)

    result = Pipeline("p", [Source(), stage(lambda task: task, name="slow")]).run(TWO, observers=[watch])
    assert len(result) == 2000
    # What waits (8 for each process), and the window: two bundles of 8 for each.
    assert max(ahead) <= 2 * 8 + 2 * 2 * 8


def test_a_source_that_fails_half_way_ends_the_run_in_good_order(tmp_path):
    journal = Journal(tmp_path)

    class Source(ProcessingStage):
        def process(self, task):
            try:
                yield Task(data=1)
                raise ValueError("the disk is gone")
            finally:
                journal.write("source", "closed", "")

        def teardown(self):
            journal.write("source", "teardown", "")

    stages = [Source(), living(journal, "after")]
    with pytest.raises(StageError, match="the disk is gone") as raised:
        Pipeline("p", stages).run(TWO)
    assert raised.value.stage == "Source"
    events = [(event.stage, event.event) for event in journal.read()]
    assert events[-1] == ("source", "teardown")
    assert ("source", "closed") in events
    result = Pipeline("p", stages).run(TWO, on_error="skip")
    assert [task.data for task in result] == [1]
    assert (result.stages[0].tasks_failed, result.stages[0].tasks_out) == (1, 1)


# --- failures ---------------------------------------------------------------------------------------------


def test_a_failure_keeps_what_is_complete_and_tears_down_every_process(tmp_path):
    journal = Journal(tmp_path)
    where = meeting(tmp_path)

    class PickyError(Exception):
        pass

    def users_function(task):
        if task.data[0] == 7:
            raise PickyError("seven")
        return task

    work = living(journal, "work", users_function)
    with pytest.raises(StageError, match="raised PickyError on task '7': seven") as raised:
        Pipeline("p", [where, work]).run(TWO, tasks(*range(8)))
    cause = raised.value.__cause__
    assert type(cause) is PickyError
    text = str(cause.__cause__)
    assert "in users_function" in text
    assert "curator_core/attempt.py" not in text
    lives = Counter(event.event for event in journal.read())
    assert lives == {"setup": 2, "teardown": 2}
    result = raised.value.result
    assert [task.data[0] for task in result] == list(range(7))
    assert not result.complete


def test_a_failure_is_skipped():
    work = stage(lambda task: Task(data=1 / task.data), batch_size=2)
    result = Pipeline("p", [work]).run(TWO, tasks(1, 0, 2, 0), on_error="skip")
    assert [(task.task_id, task.data) for task in result] == [("0", 1.0), ("2", 0.5)]
    assert result.stages[0].tasks_failed == 2
    assert result.lost == ()


@pytest.mark.parametrize("where", ["node", "setup"])
def test_a_failure_in_set_up_tears_down_what_was_set_up(tmp_path, where):
    journal = Journal(tmp_path)

    class Bad(ProcessingStage):
        def setup_on_node(self, node_info, worker_metadata):
            if where == "node":
                raise ValueError(f"no room on {node_info.node_id}")

        def setup(self, worker_metadata):
            raise ValueError("no room")

        def process(self, task):
            return task

    recorder = Recorder()
    with pytest.raises(StageError, match="raised ValueError in set-up: no room") as raised:
        Pipeline("p", [living(journal, "good"), Bad()]).run(TWO, tasks(1), observers=[recorder])
    assert raised.value.stage == "Bad"
    assert "setup_failed" in [report.event for report in recorder.workers]
    lives = Counter(event.event for event in journal.read())
    assert lives == ({} if where == "node" else {"setup": 1, "teardown": 1})


def test_a_failing_teardown_is_shown_and_breaks_nothing(tmp_path, caplog):
    journal = Journal(tmp_path)
    stages = [living(journal, "good"), living(journal, "bad", fails_in="teardown")]
    assert Pipeline("p", stages).run(TWO, tasks(1)).complete
    assert "stage 'bad' raised in teardown" in caplog.text
    assert [event.stage for event in journal.read() if event.event == "teardown"] == ["bad", "good"]


def test_a_stage_may_raise_keyboard_interrupt():
    def work(task):
        if task.data == 3:
            raise KeyboardInterrupt
        return task

    with pytest.raises(KeyboardInterrupt) as raised:
        Pipeline("p", [stage(work)]).run(TWO, tasks(*range(4)))
    assert "interrupted; what was done until then" in raised.value.__notes__[0]


def die(how: str) -> None:
    import ctypes
    import os
    import signal

    {
        "exit": lambda: os._exit(3),
        "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "crash": lambda: ctypes.string_at(0),
    }[how]()


@pytest.mark.parametrize(("how", "says"), [("exit", "EXIT(3)"), ("kill", "SIGKILL(-9)"), ("crash", "SIGSEGV(-11)")])
def test_a_worker_that_dies_is_reported_and_the_others_are_torn_down(tmp_path, how, says):
    journal = Journal(tmp_path)
    end = die  # by value, as the others

    def work(task):
        if task.data[0] == 9:
            end(how)
        return task

    stages = [meeting(tmp_path), living(journal, "work", work)]
    with pytest.raises(WorkerDiedError, match=r"died by .* while it had work") as raised:
        Pipeline("p", stages).run(TWO_ONCE, tasks(*range(10)))
    assert raised.value.stage == "meet+work"
    assert says in str(raised.value)
    assert raised.value.result is not None
    assert Counter(event.event for event in journal.read()) == {"setup": 2, "teardown": 1}


@pytest.mark.parametrize("where", ["setup", "teardown"])
def test_a_worker_that_dies_in_set_up_or_teardown_is_reported(where):
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


def dies_once(mark: Path) -> Any:
    """A function for a stage that takes its process along at the first task 7."""

    def work(task):
        if task.data == 7 and not mark.exists():
            mark.touch()
            os._exit(1)
        return Task(data=(task.data, os.getppid()))

    return work


@pytest.mark.parametrize(("count", "from_source"), [(40, False), (40, True), (3000, True)])
def test_a_run_goes_on_after_a_process_has_died(tmp_path, caplog, count, from_source):
    """Whether the source has come to its end by then, or not."""
    work = stage(dies_once(tmp_path / "mark"), name="work", batch_size=2)
    stages = [numbers(count), work] if from_source else [work]
    given = None if from_source else tasks(*range(count))
    result = Pipeline("p", stages).run(TWO, given)
    assert sorted(task.data[0] for task in result) == [*range(count)]
    assert (result.complete, result.lost, result.accounting.restarts) == (True, (), 1)
    assert result.accounting.unfinished == ()
    *source, worked = result.stages
    assert (worked.tasks_in, worked.tasks_out) == (count, count)
    assert [(each.tasks_out, each.attempts_retried) for each in source] == [(count, 0)] * from_source
    assert "died by EXIT(1) while it had work: starting its work again with the" in caplog.text
    assert "restarts left: 2" in caplog.text


def test_a_run_from_a_source_goes_on_after_a_second_death(tmp_path):
    """The second one comes while most of what is to be done again has not been read again."""
    first, second = tmp_path / "first", tmp_path / "second"

    class Dies(ProcessingStage):
        isolated = False

        def setup(self, worker_metadata):
            self.is_after_the_first = worker_metadata.worker_id in ("local-2", "local-3")  # of two there were before

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


def test_a_failure_beside_a_death_ends_a_run_that_is_to_end_at_one(tmp_path):
    """A task is at work when another worker dies, and raises after that: it must not be taken for done."""
    pid_file = tmp_path / "pid"

    def work(task):
        number, _ = task.data
        if number == 0:
            pid_file.write_text(str(os.getpid()))
            os._exit(1)
        if number == 1:
            deadline = time.monotonic() + 20
            while not (pid_file.exists() and pid_file.read_text() and not is_alive(int(pid_file.read_text()))):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            raise ValueError("beside it")
        return task

    def is_alive(pid):
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except OSError:
            return False

    with pytest.raises(StageError, match="beside it") as raised:
        Pipeline("p", [meeting(tmp_path), stage(work, name="work")]).run(TWO, tasks(0, 1))
    assert raised.value.result.accounting.restarts == 0


def test_after_a_death_stages_have_processes_of_their_own(tmp_path):
    result = Pipeline("p", [stage(dies_once(tmp_path / "mark"))]).run(TWO, tasks(*range(20)))
    parents = dict(task.data for task in result)
    assert os.getpid() != parents[7]  # it is that of a worker, and not of the driver


@pytest.mark.parametrize("from_source", [False, True])
def test_tasks_that_kill_processes_are_set_aside_and_only_they(tmp_path, from_source):
    end = die

    def work(task):
        if task.data in (3, 11, 12):
            end("crash")
        return task

    stages = [*([numbers(24)] if from_source else []), stage(work, name="work", batch_size=4)]
    given = None if from_source else tasks(*range(24))
    result = Pipeline("p", stages).run(TWO, given, on_error=DeadLetter(tmp_path / "dead"))
    assert sorted(task.data for task in result) == [number for number in range(24) if number not in (3, 11, 12)]
    assert sorted(letter.task_id for letter in deadletter.read(tmp_path / "dead")) == ["11", "12", "3"]
    assert result.accounting.restarts == 1
    assert result.stages[-1].tasks_failed == 3


def test_a_task_that_kills_processes_ends_a_run_that_is_to_end_at_a_failure():
    end = die

    def work(task):
        if task.data == 5:
            end("kill")
        return task

    with pytest.raises(StageError, match="its process was killed by SIGKILL") as raised:
        Pipeline("p", [stage(work)]).run(TWO, tasks(*range(8)))
    assert "'5'" in str(raised.value)
    assert raised.value.result.accounting.restarts == 1


def test_a_stage_that_refuses_a_process_of_its_own_uses_up_the_restarts(caplog):
    end = die
    work = stage(lambda task: end("exit") if task.data == 2 else task, isolated=False)
    with pytest.raises(WorkerDiedError, match="while it had work") as raised:
        Pipeline("p", [work]).run(LocalExecutor(workers=2, max_restarts=2), tasks(*range(4)), on_error="skip")
    assert raised.value.result.accounting.restarts == 2
    assert caplog.text.count("starting its work again") == 2
    assert "2" in raised.value.result.accounting.unfinished


def test_a_set_up_that_kills_its_process_fails_with_the_stage():
    class Fatal(ProcessingStage):
        def setup(self, worker_metadata):
            os._exit(1)

        def process(self, task):
            return task

    with pytest.raises(StageError, match="its process exited with status 1 in setup") as raised:
        Pipeline("p", [Fatal()]).run(TWO, tasks(1))
    assert raised.value.stage == "Fatal"


def test_a_run_with_a_checkpoint_goes_on_after_a_process_has_died(tmp_path):
    work = stage(dies_once(tmp_path / "mark"))
    result = Pipeline("p", [work]).run(TWO, tasks(*range(20)), checkpoint=tmp_path / "progress")
    assert (len(result), result.accounting.restarts) == (20, 1)
    again = Pipeline("p", [work]).run(TWO, tasks(*range(20)), checkpoint=tmp_path / "progress")
    assert len(again.accounting.resumed) == 20


def test_a_process_that_has_forgotten_its_stages_is_not_taken_for_a_new_one(tmp_path):
    from curator_core.adapter import RunContext
    from curator_core.pickling import dumps
    from curator_core.plan import read_stage
    from curator_core.processes.parcels import Shelf
    from curator_core.processes.worker import Assignment, Worker

    definition = dumps((RunContext(), [read_stage(0, stage(lambda task: task))]))
    shelf = Shelf(str(tmp_path), "test")
    worker = Worker("local-0", shelf)
    with pytest.raises(WorkerDiedError, match="has a new process"):
        worker.work(Assignment(0, None, "0-1", shelf.pack(tasks(1)), 1))
    assert worker.work(Assignment(0, definition, "0-1", shelf.pack(tasks(1)), 1)).ended_by == ""
    assert worker.work(Assignment(0, None, "0-1", shelf.pack(tasks(1)), 1)).ended_by == ""


def test_loky_replaces_no_process_that_has_grown():
    def limit(task):
        import loky.process_executor

        return Task(data=loky.process_executor._MAX_MEMORY_LEAK_SIZE)

    assert [task.data for task in Pipeline("p", [stage(limit)]).run(TWO, tasks(1))] == [10**18]


# --- what travels -----------------------------------------------------------------------------------------


def payloads() -> list[Any]:
    made: list[Any] = [b"small", bytes(range(256)) * 4096, bytearray(b"ab" * 300_000), bytearray(b"x")]
    try:
        import numpy as np
    except ImportError:
        return made
    frozen = np.arange(100_000)
    frozen.flags.writeable = False
    return [*made, np.arange(100_000), frozen, np.arange(12).reshape(3, 4).T, {"a": [np.ones(50_000)]}]


def plain(value: Any) -> Any:
    """As something that compares."""
    if isinstance(value, dict):
        return {key: [plain(one) for one in each] for key, each in value.items()}
    return (value.tolist(), value.flags.writeable) if hasattr(value, "tolist") else value


def test_large_dataarrive_whole():
    given = payloads()
    same, split = stage(lambda task: task, name="same"), stage(lambda task: task, name="again", fusible=False)
    result = Pipeline("p", [same, split]).run(TWO, tasks(*given))
    for task, data in zip(result, given, strict=True):
        assert type(task.data) is type(data)
        assert plain(task.data) == plain(data)


def test_parcels_are_whole_where_there_is_no_room_for_files(tmp_path):
    from curator_core.processes.parcels import Shelf

    for directory in (tmp_path, tmp_path / "missing"):
        given = tasks(*payloads())
        (parcel,) = Shelf(str(directory), "test").pack(given)
        assert list(tmp_path.iterdir()) == ([tmp_path / "test-1"] if directory == tmp_path else [])
        opened = parcel.open()
        assert [plain(task.data) for task in opened] == [plain(task.data) for task in given]
        assert list(tmp_path.iterdir()) == []


@given(
    st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=8),
    st.lists(st.integers(1, 12), min_size=1),
    st.integers(1, 4),
)
def test_a_backlog_gives_whole_batches_in_order(tmp_path_factory, adds, sizes, unit):
    from curator_core.bundling import BundlePlan
    from curator_core.processes.parcels import Backlog, Shelf

    shelf = Shelf("/nowhere", "test")
    backlog = Backlog(BundlePlan(batch_size=unit), shelf)
    added, taken = 0, []
    for count, packed in adds:
        new = tasks(*range(added, added + count))
        added += count
        if packed:
            backlog.add(*shelf.pack(new))
        else:
            for task in new:
                backlog.add_task(task)
    while backlog.count:
        size = sizes[len(taken) % len(sizes)]
        before = backlog.count
        bundle = [task.data for parcel in backlog.take(size) for task in parcel.open()]
        assert before - backlog.count == len(bundle) <= size
        assert len(bundle) % unit == 0 or len(bundle) < unit
        taken += bundle
    assert taken == list(range(added))
    assert backlog.nbytes == 0


@pytest.mark.parametrize(("fuse", "bundle"), [(True, True), (True, False), (False, True), (False, False)])
def test_neither_fusing_nor_bundling_changes_what_comes_out(fuse, bundle):
    seen = Recorder()
    stages = [stage(lambda task: Task(data=task.data + 1), name=name) for name in ("first", "second")]
    executor = LocalExecutor(workers=2, fuse=fuse, bundle=bundle)
    result = Pipeline("p", stages).run(executor, tasks(*range(40)), observers=[seen])
    assert [(task.task_id, task.data) for task in result] == [(str(number), number + 2) for number in range(40)]
    groups = {report.stage_name: report.group for report in seen.batches}
    assert (groups["first"] == groups["second"]) is fuse
    sent_with = Counter((report.stage_name, report.bundle_id) for report in seen.batches)
    assert (max(sent_with.values()) == 1) is not bundle


def test_bundles_are_no_larger_than_they_may_be():
    from curator_core.bundling import BundlePlan
    from curator_core.processes.parcels import Backlog, Shelf

    shelf = Shelf("/nowhere", "test", max_bytes=2500)
    for full, counts in ((False, [2, 2, 1]), (True, [4, 1])):
        backlog = Backlog(BundlePlan(batch_size=4, max_bytes=2500, full=full), shelf)
        for _ in range(5):
            backlog.add_task(Task(data=bytes(1000)))
        taken = []
        while backlog.count:
            taken.append(sum(parcel.count for parcel in backlog.take(4)))
        assert taken == counts


def test_parcels_of_tasks_that_do_not_know_their_size_are_split():
    from curator_core.processes.parcels import Shelf

    for data in ([{"text": letter * 1000} for letter in "abcdefg"], [bytes([n]) * 1000 for n in range(7)]):
        parcels = Shelf("/nowhere", "test", max_bytes=2500).pack(tasks(*data))
        opened = [task.data for parcel in parcels for task in parcel.open()]
        assert opened == data
        assert len(parcels) >= 4
        assert all(parcel.nbytes <= 2500 for parcel in parcels)


def test_a_stage_may_be_large():
    table = os.urandom(2_000_000)
    result = Pipeline("p", [stage(lambda task: Task(data=len(table)))]).run(TWO, tasks(1, 2))
    assert [task.data for task in result] == [2_000_000] * 2


def test_an_output_that_does_not_pickle_is_the_failure_of_its_batch():
    def lock(task):
        return Task(data=threading.Lock() if task.data == 1 else task.data)

    for following in ([], [stage(lambda task: task, name="after", fusible=False)]):
        pipeline = Pipeline("p", [stage(lock, name="lock"), *following])
        with pytest.raises(ContractError, match="an output cannot be sent to another process") as raised:
            pipeline.run(TWO, tasks(0, 1, 2))
        assert (raised.value.stage, raised.value.field) == ("lock", "task '1'.data")
        assert raised.value.result.stages[0].tasks_failed == 1
        result = pipeline.run(TWO, tasks(0, 1, 2), on_error="skip")
        assert [task.data for task in result] == [0, 2]
        assert (result.stages[0].tasks_failed, result.lost) == (1, ())


def test_a_retried_attempt_is_not_taken_for_the_failure():
    class Late(ProcessingStage):
        max_attempts = 2
        tried = False

        def process(self, task):
            if task.data == 0:
                return Task(data=threading.Lock())
            if not self.tried:
                self.tried = True
                raise ValueError("not yet")
            return task

    # One bundle, since the next group wants both tasks: the retry comes after what cannot be sent.
    with pytest.raises(ContractError, match="an output cannot be sent"):
        Pipeline("p", [Late().with_(batch_size=1), stage(lambda task: task, batch_size=2)]).run(TWO, tasks(0, 1))


def test_a_source_task_that_does_not_pickle_is_the_sources_fault():
    source = stage(lambda task: [Task(data=threading.Lock())], name="source")
    with pytest.raises(ContractError, match="cannot be sent to another process") as raised:
        Pipeline("p", [source, stage(lambda task: task)]).run(TWO)
    assert raised.value.stage == "source"
    assert isinstance(raised.value.__cause__, TypeError)


def test_an_initial_task_that_does_not_pickle_is_the_callers_fault():
    with pytest.raises(ConfigurationError, match="an initial task cannot be sent") as raised:
        Pipeline("p", [stage(lambda task: task)]).run(TWO, tasks(0, {"lock": threading.Lock()}))
    assert raised.value.field == "task '1'.data['lock']"


class OneWay:
    """Pickles, and does not unpickle."""

    def __reduce__(self):
        return int, ("no number",)


def test_a_task_that_does_not_unpickle_is_told_from_a_dead_worker():
    with pytest.raises(DataError, match="a task cannot be read by worker local-0: ValueError: invalid literal"):
        Pipeline("p", [stage(lambda task: task)]).run(TWO, tasks(OneWay()))

    def make(task):
        class Hidden:
            def __reduce__(self):
                return int, ("no number",)

        return Task(data=Hidden())

    with pytest.raises(DataError, match="an output cannot be read by the driver: ValueError"):
        Pipeline("p", [stage(make)]).run(TWO, tasks(1))


# --- settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, -1, 1.5, "2", True, None])
def test_a_number_of_workers_that_makes_no_sense(workers):
    with pytest.raises(ExecutorError, match="this number of workers makes no sense") as raised:
        LocalExecutor(workers=workers)
    assert raised.value.field == "workers"
    assert raised.value.expected == "a whole number, 1 or more"


@pytest.mark.parametrize("most", [-1, 1.5, "2", True, None])
def test_a_number_of_restarts_that_makes_no_sense(most):
    with pytest.raises(ExecutorError, match="this number of restarts makes no sense") as raised:
        LocalExecutor(workers=2, max_restarts=most)
    assert raised.value.field == "max_restarts"
    assert raised.value.expected == "a whole number, 0 or more"


def test_without_loky_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "loky", None)
    assert LocalExecutor().workers == 1
    with pytest.raises(ExecutorError, match="needs the package loky") as raised:
        LocalExecutor(workers=2)
    assert "curator-core[parallel]" in str(raised.value)


def test_a_process_that_cannot_be_started_is_an_error_of_the_setting(monkeypatch):
    import loky

    def fails(*arguments, **keywords):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(loky, "ProcessPoolExecutor", fails)
    with pytest.raises(ExecutorError, match=r"cannot be started: .*Too many open files"):
        Pipeline("p", [stage(lambda task: task)]).run(TWO, tasks(1))


def test_one_worker_needs_neither_loky_nor_a_process():
    code = """
        import sys
        from curator_core import LocalExecutor, Pipeline, Task, processing_stage
        LocalExecutor(workers=2)
        stage = processing_stage(name="same")(lambda task: task)
        Pipeline("p", [stage]).run(LocalExecutor(), [Task(data=1)])
        print(*{"loky", "multiprocessing", "concurrent"} & set(sys.modules))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# --- scripts ----------------------------------------------------------------------------------------------


class Script:
    """A script in a process group of its own, as a terminal would start it."""

    def __init__(self, directory: Path, code: str) -> None:
        path = directory / "script.py"
        path.write_text(textwrap.dedent(code))
        self.process = subprocess.Popen(
            [sys.executable, str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=_heed_ctrl_c,  # noqa: PLW1509 - it takes no lock
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def interrupt(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)

    def workers(self) -> list[int]:
        return [pid for pid, parent, _, command in processes() if parent == self.process.pid and LOKY in command]

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, out, err

    @property
    def is_gone(self) -> bool:
        """Whether nothing of it is left."""
        return self.process.pid not in {group for _, _, group, _ in processes()} and not files_of(self.process.pid)


@pytest.fixture
def script(tmp_path):
    started = []

    def start(code: str) -> Script:
        started.append(Script(tmp_path, code))
        return started[-1]

    yield start
    for each in started:
        with suppress(ProcessLookupError):
            os.killpg(each.process.pid, signal.SIGKILL)
        each.process.communicate()


def test_a_script_without_a_guard_and_with_everything_in_main(script):
    running = script(
        """
        import dataclasses
        from curator_core import LocalExecutor, Pipeline, ProcessingStage, Task, processing_stage

        @dataclasses.dataclass
        class Word(Task[str]):
            length: int = 0

        class Measure(ProcessingStage):
            def process(self, task):
                assert isinstance(task, Word)
                return Word(data=task.data, length=count(task.data))

        def count(text):
            return len(text)

        @processing_stage()
        def twice(task):
            return [task, Word(data=task.data.upper())]

        @processing_stage(fusible=False)
        def check(task):
            assert isinstance(task, Word)
            return task

        words = [Word(data=word) for word in ("a", "bcd")]
        result = Pipeline("p", [twice, Measure(), check]).run(LocalExecutor(workers=2), words)
        print([(word.data, word.length) for word in result], all(type(word) is Word for word in result))
        """
    )
    code, out, err = running.end()
    assert (code, err) == (0, "")
    assert out == "[('a', 1), ('A', 1), ('bcd', 3), ('BCD', 3)] True\n"
    assert within_deadline(lambda: running.is_gone)


def _heed_ctrl_c() -> None:
    """What a shell starts in the background ignores Ctrl-C, and so would all that the tests start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


INTERRUPTED = """
    import os
    import sys
    from curator_core import LocalExecutor, Pipeline, ProcessingStage, Task
    from curator_core.processes import flow

    flow._GRACE_S, flow._TELL_S = {grace}, {grace} / 3

    class Source(ProcessingStage):
        def process(self, task):
            while True:
                yield Task(data=1)

    class Work(ProcessingStage):
        def setup(self, worker_metadata):
            os.write(1, b"ready\\n")  # whole: two processes write here

        def process(self, task):
            {work}

        def teardown(self):
            os.write(1, b"torn down\\n")

    Pipeline("p", [Source(), Work()]).run(LocalExecutor(workers=2))
"""


def test_ctrl_c_leaves_the_summary_tears_down_and_leaves_no_process(script):
    running = script(INTERRUPTED.format(grace=20, work="return task"))
    assert [running.line(), running.line()] == ["ready", "ready"]
    running.interrupt()
    code, out, err = running.end()
    assert code == -signal.SIGINT
    assert out.split("\n") == ["torn down", "torn down", ""]
    assert err.rstrip().splitlines()[0] == "Traceback (most recent call last):"
    assert "interrupted; what was done until then" in err
    assert err.count("Traceback") == 1
    assert within_deadline(lambda: running.is_gone)


def test_ctrl_c_while_workers_start_shows_one_traceback(script):
    running = script(INTERRUPTED.format(grace=20, work="return task"))
    assert within_deadline(running.workers)
    running.interrupt()
    code, _, err = running.end()
    assert code == -signal.SIGINT
    assert err.count("Traceback") == 1
    assert within_deadline(lambda: running.is_gone)


def test_ctrl_c_ends_workers_that_do_not_answer(script):
    running = script(INTERRUPTED.format(grace=0.6, work="__import__('threading').Event().wait()"))
    assert [running.line(), running.line()] == ["ready", "ready"]
    running.interrupt()
    code, out, err = running.end()
    assert (code, out) == (-signal.SIGINT, "")
    assert "waiting up to 0 s for workers" in err
    assert within_deadline(lambda: running.is_gone)


def test_workers_end_with_a_driver_that_is_killed(script):
    running = script(INTERRUPTED.format(grace=20, work="__import__('threading').Event().wait()"))
    assert [running.line(), running.line()] == ["ready", "ready"]
    running.process.kill()
    running.process.wait()
    assert within_deadline(lambda: running.is_gone)


def test_a_thread_that_a_stage_leaves_behind_keeps_no_process(script):
    running = script(
        """
        import threading
        from curator_core import LocalExecutor, Pipeline, Task, processing_stage
        from curator_core.processes import crew

        crew._EXIT_S = 0.3

        @processing_stage()
        def leave(task):
            threading.Thread(target=threading.Event().wait).start()
            return task

        print(len(Pipeline("p", [leave]).run(LocalExecutor(workers=2), [Task(data=1)])))
        """
    )
    assert running.end()[:2] == (0, "1\n")
    assert within_deadline(lambda: running.is_gone)


def test_runs_can_be_repeated_with_one_executor():
    executor = LocalExecutor(workers=2)
    for count in (1, 3):
        assert len(Pipeline("p", [numbers(count), stage(lambda task: task)]).run(executor)) == count
    with pytest.raises(RunError):
        Pipeline("p", [stage(lambda task: 1 / 0)]).run(executor, tasks(1))
    assert len(Pipeline("p", [stage(lambda task: task)]).run(executor, tasks(1))) == 1
