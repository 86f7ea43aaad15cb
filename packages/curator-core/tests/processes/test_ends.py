# SPDX-License-Identifier: Apache-2.0
"""Stages in their own processes: a crash or a hang costs one task, and every process ends."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import threading

import psutil
import pytest
from tests.waiting import DEADLINE_S, wait_until

from curator_core import DeadLetter, ProcessDiedError, ProcessingStage, StageTimeoutError, Task, deadletter
from curator_core.testing import Recorder

from .stages import Deadly, DeadlyBatches, deadly, run  # noqa: TID252 - no import can write this directory's name


@pytest.mark.parametrize(
    ("data", "how"),
    [
        ("exits", "exited with status 3"),
        ("segfaults", "was killed by SIGSEGV"),
        ("is killed", "was killed by SIGKILL"),
        ("is killed by a signal without a name", f"was killed by signal {signal.SIGRTMIN + 1}"),
    ],
)
def test_a_call_that_kills_its_process_is_named(data, how, capfd):
    with pytest.raises(ProcessDiedError) as raised:
        run(Deadly(), data=["good", data])
    assert how in str(raised.value)
    assert "task '1'" in str(raised.value)
    assert raised.value.stage == "Deadly"
    assert [task.data for task in raised.value.result] == ["good"]
    assert (" in deadly\n" in capfd.readouterr().err) == (data == "segfaults")  # where the stage crashed


def test_only_the_task_that_kills_the_process_is_lost(tmp_path):
    result = run(Deadly(), data=["a", "exits", "b", "segfaults", "c"], on_error=DeadLetter(tmp_path))
    assert [task.data for task in result] == [*"abc"]
    letters = {letter.task_id: letter.error_type for letter in deadletter.read(tmp_path)}
    assert sorted(letters) == ["1", "3"]
    assert set(letters.values()) == {"curator_core.errors.ProcessDiedError"}


def test_a_batch_that_killed_a_process_is_retried_task_by_task():
    recorder = Recorder()
    result = run(DeadlyBatches(), data=[*"abcdef", "exits", "g"], on_error="skip", observers=[recorder])
    assert [task.data for task in result] == [*"abcdefg"]
    assert [len(report.inputs) for report in recorder.batches] == [8] + 8 * [1]


def test_a_call_that_takes_too_long_is_killed():
    result = run(Deadly().with_(isolated=None, timeout_s=1.5), data=["a", "hangs", "b"], on_error="skip")
    assert [task.data for task in result] == ["a", "b"]
    assert result.accounting.failed == {"Deadly": ("1",)}


def test_what_takes_too_long_is_ended_with_what_it_has_started(tmp_path):
    class Starting(ProcessingStage):
        timeout_s = 1.5

        def process(self, task):
            started = subprocess.Popen(["/bin/sleep", "1000"])
            (tmp_path / "pid").write_text(str(started.pid))
            started.wait()

    with pytest.raises(StageTimeoutError):
        run(Starting(), data=["a"])
    wait_until(lambda: not psutil.pid_exists(int((tmp_path / "pid").read_text())))


def test_a_timeout_error_has_a_hint():
    with pytest.raises(StageTimeoutError) as raised:
        run(Deadly().with_(timeout_s=0.5), data=["spins"])
    assert "field: timeout_s" in str(raised.value)
    assert "given: 0.5" in str(raised.value)
    assert "raise timeout_s" in str(raised.value)


def test_a_call_killed_by_chance_is_repeated_once(tmp_path, caplog):
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
        "stage 'KilledOnce': its process exited with status 1 on task '0'; retrying once in a new process"
        in caplog.text
    )


def test_kills_count_as_attempts_if_there_are_several(tmp_path):
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


def test_ctrl_c_ends_the_isolated_process(tmp_path, children):
    before, main, begun = children(), threading.main_thread().ident, tmp_path / "begun"
    os.mkfifo(begun)

    class Hanging(ProcessingStage):
        isolated = True

        def process(self, task):
            begun.open("w").close()
            threading.Event().wait()

    def interrupt():
        begun.open().close()  # waits until the stage opens it too
        signal.pthread_kill(main, signal.SIGINT)

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=interrupt, daemon=True).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            run(Hanging(), data=["a"])
    finally:
        signal.signal(signal.SIGINT, handler)
    assert children() <= before


@pytest.mark.parametrize("hangs", ["threading.Event().wait()", "re.fullmatch(r'(a+)+', 'a' * 40 + 'b')"])
def test_an_isolated_process_ends_if_its_worker_is_killed(tmp_path, hangs):
    """This includes C code that never returns to Python, such as a regular expression that backtracks."""
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

    def is_written() -> bool:
        assert worker.poll() is None
        return written.exists() and bool(written.read_text())

    try:
        wait_until(is_written)
        process = psutil.Process(int(written.read_text()))
    finally:
        worker.kill()
        worker.wait()
    _, left = psutil.wait_procs([process], timeout=DEADLINE_S)
    for each in left:
        each.kill()
    assert left == []


def test_a_death_is_noticed_while_a_grandchild_lives(tmp_path):
    class Forking(ProcessingStage):
        isolated = True

        def process(self, task):
            pid = os.fork()
            if pid == 0:  # it has copies of all open files
                threading.Event().wait()
            (tmp_path / str(pid)).touch()
            os._exit(1)

    try:
        with pytest.raises(ProcessDiedError, match="exited with status 1"):
            run(Forking(), data=["a"])
    finally:
        for path in tmp_path.iterdir():
            os.kill(int(path.name), signal.SIGKILL)


def test_a_new_process_whose_setup_fails_is_an_error(tmp_path):
    class Greedy(Deadly):
        def setup(self, worker):
            (tmp_path / "taken").touch(exist_ok=False)

    recorder = Recorder()
    result = run(Greedy(), data=["a", "exits", "b"], on_error="skip", observers=[recorder])
    assert [task.data for task in result] == ["a"]
    assert "its new process cannot be set up: FileExistsError" in recorder.batches[-1].error.message


def test_metrics_of_a_batch_survive_the_process(tmp_path):
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


def test_an_isolated_process_ends_even_if_a_fork_has_its_pipes_open(tmp_path):
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


@pytest.mark.parametrize("method", ["setup_on_node", "setup", "teardown"])
def test_a_hanging_setup_or_teardown_is_killed(method, children):
    class Hanging(ProcessingStage):
        setup_timeout_s = 0.5

        def process(self, task):
            return task

    def hang(self, *given):
        threading.Event().wait()

    setattr(Hanging, method, hang)
    before, recorder = children(), Recorder()
    if method == "teardown":
        assert len(run(Hanging(), data=["a"], observers=[recorder])) == 1
    else:
        with pytest.raises(StageTimeoutError, match=rf"timed out after 0.5 s in {method}\(\); its process was killed"):
            run(Hanging(), data=["a"], observers=[recorder])
    (report,) = [report for report in recorder.workers if report.error is not None]
    assert report.error.type == "curator_core.errors.StageTimeoutError"
    assert children() <= before
