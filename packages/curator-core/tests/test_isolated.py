# SPDX-License-Identifier: Apache-2.0
"""Stages in processes of their own: the same results and reports, and a crash or a hang costs one task."""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import importlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from curator_core import (
    DeadLetter,
    LocalExecutor,
    Pipeline,
    ProcessDiedError,
    ProcessingStage,
    StageDefinitionError,
    StageError,
    StageTimeoutError,
    Task,
    deadletter,
)
from curator_core.testing import Recorder

DEADLINE_S = 30.0


class Elsewhere(ProcessingStage[Task[Any], Task[Any]]):
    """Tells where it runs."""

    isolated = True

    def process(self, task: Task[Any]) -> Task[Any]:
        return Task(data=os.getpid())


class Deadly(ProcessingStage[Task[Any], Task[Any]]):
    """Does what a task says to the process that it is in."""

    isolated = True

    def process(self, task: Task[Any]) -> Task[Any]:
        deadly(task.data)
        return Task(data=task.data)


class DeadlyBatches(ProcessingStage[Task[Any], Task[Any]]):
    """The same, several at once."""

    isolated = True
    batch_size = 8

    def process_batch(self, tasks: list[Task[Any]]) -> list[Task[Any]]:
        for task in tasks:
            deadly(task.data)
        return [Task(data=task.data) for task in tasks]


def deadly(data: Any) -> None:
    if data == "exits":
        os._exit(3)
    if data == "segfaults":
        ctypes.string_at(0)
    if data == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if data == "hangs":
        threading.Event().wait()
    if data == "spins":
        while True:
            pass
    if data == "raises":
        raise ValueError("that is no good")


def run(*stages: Any, data: Any, **settings: Any) -> Any:
    return Pipeline("p", list(stages)).run(initial_tasks=[Task(data=each) for each in data], **settings)


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


def test_it_runs_in_a_process_that_ends_with_the_run():
    before = children()
    pids = {task.data for task in run(Elsewhere(), data=range(5))}
    assert len(pids) == 1
    assert os.getpid() not in pids
    assert children() <= before


@pytest.mark.parametrize(
    ("data", "how"),
    [
        ("exits", "exited with status 3"),
        ("segfaults", "was killed by SIGSEGV"),
        ("is killed", "was killed by SIGKILL"),
    ],
)
def test_what_kills_it_is_named(data, how):
    with pytest.raises(ProcessDiedError) as raised:
        run(Deadly(), data=["good", data])
    assert how in str(raised.value)
    assert "task '1'" in str(raised.value)
    assert raised.value.stage == "Deadly"
    assert [task.data for task in raised.value.result] == ["good"]


@pytest.mark.parametrize("stage", [Deadly(), DeadlyBatches()], ids=["process", "process_batch"])
def test_only_what_kills_it_is_lost(stage, tmp_path):
    data = [*"abcdefgh", "exits", *"ijkl", "segfaults", *"mn"]
    result = run(stage, data=data, on_error=DeadLetter(tmp_path))
    assert [task.data for task in result] == [*"abcdefghijklmn"]
    letters = {letter.task_id: letter.error_type for letter in deadletter.read(tmp_path)}
    assert sorted(letters) == ["13", "8"]
    assert set(letters.values()) == {"curator_core.errors.ProcessDiedError"}


def test_a_batch_that_has_cost_a_process_goes_alone_and_not_in_halves():
    recorder = Recorder()
    run(DeadlyBatches(), data=[*"abcdef", "exits", "g"], on_error="skip", observers=[recorder])
    assert [len(report.inputs) for report in recorder.batches] == [8] + 8 * [1]


@pytest.mark.parametrize("data", ["hangs", "spins"])
def test_what_takes_too_long_is_ended(data):
    result = run(Deadly().with_(isolated=None, timeout_s=3.0), data=["a", data, "b"], on_error="skip")
    assert [task.data for task in result] == ["a", "b"]
    assert result.accounting.failed == {"Deadly": ("1",)}


def test_a_timeout_says_what_to_change():
    with pytest.raises(StageTimeoutError) as raised:
        run(Deadly().with_(timeout_s=0.5), data=["hangs"])
    assert "field: timeout_s" in str(raised.value)
    assert "given: 0.5" in str(raised.value)
    assert "raise timeout_s" in str(raised.value)


def test_one_that_is_killed_by_chance_tries_once_more(tmp_path, caplog):
    class KilledOnce(ProcessingStage):
        isolated = True

        def process(self, task):
            mark = tmp_path / "mark"
            if not mark.exists():
                mark.touch()
                os._exit(1)
            return task

    assert len(run(KilledOnce(), data=["a"])) == 1
    assert (
        "stage 'KilledOnce': its process exited with status 1 on task '0'; another one tries once more" in caplog.text
    )


def test_kills_are_attempts_where_there_are_several(tmp_path):
    class Counting(ProcessingStage):
        isolated = True
        max_attempts = 3
        retry_delay_s = 0.0

        def process(self, task):
            with (tmp_path / "calls").open("a") as calls:
                calls.write("x")
            os._exit(1)

    recorder = Recorder()
    assert not list(run(Counting(), data=["a"], on_error="skip", observers=[recorder]))
    assert (tmp_path / "calls").read_text() == "xxx"
    assert [report.attempt for report in recorder.batches] == [1, 2, 3]


def test_a_new_process_is_set_up():
    class Loaded(Deadly):
        def setup(self, worker):
            self.model = worker.worker_id

        def process(self, task):
            deadly(task.data)
            return Task(data=self.model)

    assert [task.data for task in run(Loaded(), data=["a", "exits", "b"], on_error="skip")] == ["local", "local"]


def test_life_is_that_of_a_stage(tmp_path):
    class Living(ProcessingStage):
        isolated = True

        def tell(self, text):
            with (tmp_path / "log").open("a") as log:
                log.write(f"{text} {os.getpid()}\n")

        def setup_on_node(self, node, worker):
            self.tell("node")

        def setup(self, worker):
            self.tell("setup")

        def process(self, task):
            self.tell("process")
            return task

        def teardown(self):
            self.tell("teardown")

    run(Living(), data=["a"])
    words, pids = zip(*(line.split() for line in (tmp_path / "log").read_text().splitlines()), strict=True)
    assert words == ("node", "setup", "process", "teardown")
    assert len(set(pids)) == 1


def test_what_it_raises_is_raised_here():
    with pytest.raises(StageError, match="raised ValueError on task '0': that is no good") as raised:
        run(Deadly(), data=["raises"])
    assert isinstance(raised.value.__cause__, ValueError)
    assert 'raise ValueError("that is no good")' in str(raised.value.__cause__.__cause__)


@pytest.mark.parametrize("where", ["setup_on_node", "setup"])
def test_a_set_up_that_raises_ends_the_process(where):
    def fail(self, *_):
        raise OSError("no model")

    stage = type("Failing", (Elsewhere,), {where: fail})()
    before = children()
    with pytest.raises(StageError, match="no model"):
        run(stage, data=["a"])
    assert children() <= before


class Recording(ProcessingStage[Task[Any], Task[Any]]):
    """Records everything that a stage can."""

    batch_size = 2

    def process(self, task: Task[Any]) -> Task[Any]:
        self.metrics.add("calls")
        self.metrics.set("last", str(task.data))
        task.metadata["seen"] = task.data
        if task.data == "forgets":
            task.metadata.clear()
        if task.data == "raises":
            raise ValueError("no")
        if task.data == "itself":
            return task
        if task.data == "many":
            return (Task(data=number) for number in range(3))  # type: ignore[return-value]
        return None if task.data == "drop" else Task(data=task.data)  # type: ignore[return-value]


def test_everything_is_as_in_this_process():
    data = ["a", "itself", "many", "drop", "raises", "forgets", "b", "c"]
    seen = []
    for isolated in (False, True):
        recorder = Recorder()
        stages = [Recording().with_(isolated=isolated), Recording().with_(name="second", isolated=isolated)]
        result = run(*stages, data=data, on_error="skip", observers=[recorder])
        tasks = [(task.task_id, task.data, task.metadata, len(task.stage_perf)) for task in result]
        errors = [None if r.error is None else (r.error.type, r.error.message, r.error.doing) for r in recorder.batches]
        reports = [(r.stage_name, r.batch_id, [*r.inputs], r.metrics, r.num_items) for r in recorder.batches]
        seen.append((tasks, reports, errors))
    assert seen[0] == seen[1]


def test_its_cpu_time_is_counted():
    class Busy(ProcessingStage):
        isolated = True

        def process(self, task):
            start = time.thread_time()
            while time.thread_time() - start < 0.2:
                pass
            return task

    recorder = Recorder()
    run(Busy(), data=["a"], observers=[recorder])
    (report,) = recorder.batches
    assert 200_000_000 <= report.cpu_ns <= report.duration_ns


def test_log_records_say_what_they_are_about(tmp_path):
    class Logging(ProcessingStage):
        isolated = True

        def process(self, task):
            handler = logging.FileHandler(tmp_path / "log")
            handler.setFormatter(logging.Formatter("%(curator_stage)s %(curator_task_id)s %(message)s"))
            logger = logging.getLogger("of_the_stage")
            logger.addHandler(handler)
            logger.warning("hello")
            return task

    run(Logging(), data=["a"])
    assert (tmp_path / "log").read_text() == "Logging 0 hello\n"


def test_arrays_come_back_writable():
    numpy = pytest.importorskip("numpy")

    class Adding(ProcessingStage):
        isolated = True

        def process(self, task):
            task.data += 1
            return task

    (task,) = run(Adding(), data=[numpy.zeros(1_000_000)])
    task.data += 1
    assert task.data.sum() == 2_000_000


def test_what_cannot_be_sent_back_is_a_failure_of_the_stage():
    class Opening(ProcessingStage):
        isolated = True

        def process(self, task):
            return Task(data=threading.Lock())

    with pytest.raises(StageError, match="cannot pickle"):
        run(Opening(), data=["a"])


def test_what_cannot_be_sent_there_is_one_too():
    result = run(Deadly(), data=[threading.Lock(), "a"], on_error="skip")
    assert [task.data for task in result] == ["a"]


def test_ctrl_c_ends_it():
    before = children()
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    main, timer = threading.main_thread().ident, threading.Timer(0.0, str)

    class Interrupting(Recorder):
        def on_worker(self, report):
            nonlocal timer
            if report.event == "ready":
                timer = threading.Timer(0.5, signal.pthread_kill, [main, signal.SIGINT])
                timer.start()

    try:
        with pytest.raises(KeyboardInterrupt):
            run(Deadly(), data=["hangs"], observers=[Interrupting()])
    finally:
        timer.join()
        signal.signal(signal.SIGINT, handler)
    assert children() <= before


@pytest.mark.parametrize("hangs", ["threading.Event().wait()", "re.fullmatch(r'(a+)+', 'a' * 40 + 'b')"])
def test_it_ends_when_its_worker_is_killed(tmp_path, hangs):
    """Also where C code never lets Python run again, as a regular expression that backtracks."""
    program = f"""
import os, re, threading
from pathlib import Path
from curator_core import Pipeline, ProcessingStage, Task

class Hanging(ProcessingStage):
    isolated = True
    def process(self, task):
        Path({str(tmp_path / "pid")!r}).write_text(str(os.getpid()))
        {hangs}

Pipeline("p", [Hanging()]).run(initial_tasks=[Task(data=1)])
"""
    worker = subprocess.Popen([sys.executable, "-c", program])
    written = tmp_path / "pid"
    deadline = time.monotonic() + DEADLINE_S
    while not (written.exists() and written.read_text()):
        assert time.monotonic() < deadline
        assert worker.poll() is None
    process = psutil.Process(int(written.read_text()))
    worker.kill()
    worker.wait()
    psutil.wait_procs([process], timeout=DEADLINE_S)
    assert not process.is_running()


def test_the_same_on_several_processes():
    pytest.importorskip("loky")
    stages = [Deadly().with_(timeout_s=3.0), Elsewhere().with_(isolated=None)]
    tasks = [Task(data=each) for each in ["a", "hangs", "b", "exits", "c"]]
    result = Pipeline("p", stages).run(LocalExecutor(workers=2), tasks, on_error="skip")
    assert len(result) == 3
    assert sorted(result.accounting.failed["Deadly"]) == ["1", "3"]


@pytest.mark.parametrize("value", [0, -1, "soon", True, float("inf")])
def test_a_time_limit_that_makes_no_sense(value):
    with pytest.raises(StageDefinitionError, match="timeout_s"):
        Pipeline("p", [Deadly().with_(timeout_s=value)]).compile()


def test_a_time_limit_needs_a_process():
    with pytest.raises(StageDefinitionError, match="leave isolated unset"):
        Pipeline("p", [Deadly().with_(timeout_s=1.0, isolated=False)]).compile()


def test_the_path_of_a_module_goes_along(tmp_path, monkeypatch):
    (tmp_path / "far_away.py").write_text(
        "from curator_core import ProcessingStage\n"
        "class Far(ProcessingStage):\n"
        "    isolated = True\n"
        "    def process(self, task):\n"
        "        return task\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    far_away = importlib.import_module("far_away")
    monkeypatch.delitem(sys.modules, "far_away")
    assert len(run(far_away.Far(), data=["a"])) == 1


def test_its_death_is_seen_while_something_that_it_has_started_lives(tmp_path):
    class Forking(ProcessingStage):
        isolated = True

        def process(self, task):
            pid = os.fork()
            if pid == 0:  # it has a copy of everything that is open
                threading.Event().wait()
            (tmp_path / str(pid)).touch()
            os._exit(1)

    try:
        with pytest.raises(ProcessDiedError, match="exited with status 1"):
            run(Forking(), data=["a"])
    finally:
        for path in tmp_path.iterdir():
            os.kill(int(path.name), signal.SIGKILL)


# --- rubbish ----------------------------------------------------------------------------------------------


class UnfitError(Exception):
    """Pickles, and does not unpickle."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


class Unlucky(ProcessingStage[Task[Any], Task[Any]]):
    """Goes well when it is called for the third time.

    Args:
        calls: Where it counts.
        fail: What it does before.
    """

    retry_delay_s = 0.0

    def __init__(self, calls: Path, fail: Any) -> None:
        self.calls, self.fail = calls, fail

    def process(self, task: Task[Any]) -> Task[Any]:
        with self.calls.open("a") as calls:
            calls.write("x")
        if len(self.calls.read_text()) < 3:
            self.fail()
        return Task(data=task.data)


def unfit() -> None:
    raise UnfitError(3, "not fit to travel")


@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize(("retry_on", "calls"), [(UnfitError, 3), (ConnectionError, 1)])
def test_retry_on_knows_exceptions_that_do_not_unpickle(tmp_path, isolated, retry_on, calls):
    stage = Unlucky(tmp_path / "calls", unfit).with_(isolated=isolated, retry_on=retry_on, max_attempts=3)
    recorder = Recorder()
    result = run(stage, data=["a"], on_error="skip", observers=[recorder])
    assert len((tmp_path / "calls").read_text()) == calls
    assert len(result) == (calls == 3)
    assert recorder.batches[0].error.type.endswith("test_isolated.UnfitError")
    assert recorder.batches[0].error.doing == "on task '0'"


def test_attempts_for_other_exceptions_take_none_of_those_for_a_chance_kill(tmp_path):
    marks = tmp_path / "calls"
    marks.write_text("x")
    stage = Unlucky(marks, lambda: os._exit(1)).with_(isolated=True, retry_on=ConnectionError, max_attempts=3)
    assert len(run(stage, data=["a"])) == 1


def test_notes_that_cannot_be_sent_are_a_failure_and_no_crash():
    class Noting(ProcessingStage):
        isolated = True

        def process(self, task):
            task.metadata["lock"] = threading.Lock()
            return Task(data=1)

    with pytest.raises(StageError, match="cannot pickle"):
        run(Noting(), data=["a"])


class Exiting:
    """Ends the program of whoever unpickles it, where that is not this process."""

    def __reduce__(self):
        return exit_elsewhere, (os.getpid(),)


def exit_elsewhere(here: int) -> None:
    if os.getpid() != here:
        sys.exit("no")


def test_what_exits_while_it_is_read_is_a_failure():
    result = run(Deadly(), data=[Exiting(), "a"], on_error="skip")
    assert [task.data for task in result] == ["a"]


def test_what_is_no_exception_ends_the_run_as_in_this_process():
    class Cancelling(ProcessingStage):
        isolated = True

        def process(self, task):
            threading.Thread(target=threading.Event().wait, daemon=False).start()
            raise asyncio.CancelledError

    before = children()
    with pytest.raises(asyncio.CancelledError):
        run(Cancelling(), data=["a"], on_error="skip")
    assert children() <= before


def test_what_it_leaves_open_is_written_at_its_end(tmp_path):
    class Leaving(ProcessingStage):
        isolated = True

        def process(self, task):
            self.file = (tmp_path / "file").open("w")
            self.file.write("written")
            atexit.register((tmp_path / "left").touch)
            return task

    run(Leaving(), data=["a"])
    assert (tmp_path / "file").read_text() == "written"
    assert (tmp_path / "left").exists()


def test_a_new_process_that_cannot_be_set_up_says_so(tmp_path):
    class Greedy(Deadly):
        def setup(self, worker):
            (tmp_path / "taken").touch(exist_ok=False)

    recorder = Recorder()
    result = run(Greedy(), data=["a", "exits", "b"], on_error="skip", observers=[recorder])
    assert [task.data for task in result] == ["a"]
    assert "its new process cannot be set up: FileExistsError" in recorder.batches[-1].error.message


def test_metrics_of_a_batch_outlive_a_process(tmp_path):
    class Counting(Deadly):
        batch_size = 4

        def setup(self, worker):
            self.metrics.add("loads")

        def process(self, task):
            self.metrics.add("calls")
            return super().process(task)

    recorder = Recorder()
    run(Counting(), data=["a", "b", "exits", "c"], on_error="skip", observers=[recorder])
    assert recorder.batches[0].metrics == {"loads": 1, "calls": 3}


def test_a_path_that_is_no_text(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, tmp_path])
    assert len(run(Elsewhere(), data=["a"])) == 1


def test_it_ends_by_itself_where_a_fork_of_the_worker_has_a_copy_of_everything_that_is_open(tmp_path):
    pids = []

    class Leaving(ProcessingStage):
        isolated = True

        def process(self, task):
            atexit.register((tmp_path / "left").touch)
            return task

    class Forking(ProcessingStage):
        def process(self, task):
            pid = os.fork()
            if pid == 0:
                threading.Event().wait()
            pids.append(pid)
            return task

    try:
        run(Leaving(), Forking(), data=["a"])
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    assert (tmp_path / "left").exists()  # it was not killed
