# SPDX-License-Identifier: Apache-2.0
"""Scripts that run a pipeline on several processes: no process outlives them, however they end."""

from __future__ import annotations

import re
import signal
import subprocess
import sys

import pytest
from tests.waiting import DEADLINE_S, NEVER_S, wait_until

from curator_core import Pipeline, ProcessingStage

from ..helpers import tasks  # noqa: TID252 - no import can write this directory's name
from .stages import TWO  # noqa: TID252 - no import can write this directory's name


def test_a_script_runs_without_a_main_guard(script):
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
    wait_until(lambda: running.is_gone)


INTERRUPTED = """
    import os
    import sys
    from curator_core import LocalExecutor, Pipeline, ProcessingStage, Task

    class Source(ProcessingStage):
        def process(self, task):
            while True:
                yield Task(data=1)

    class Work(ProcessingStage):
        def setup(self, worker_metadata):
            os.write(1, b"ready\\n")  # one write: two processes write here

        def process(self, task):
            {work}

        def teardown(self):
            os.write(1, b"torn down\\n")

    Pipeline("p", [Source(), Work()]).run(LocalExecutor(workers=2), shutdown_grace_s={grace})
"""


HANGS = """os.write(1, b"hangs\\n"); __import__("threading").Event().wait()"""

HANGS_IN_C = """os.write(1, b"hangs\\n"); __import__("re").fullmatch("(a+)+", 40 * "a" + "b")"""  # keeps the GIL


def wait_until_both_hang(running):
    assert sorted(running.line() for _ in range(4)) == ["hangs", "hangs", "ready", "ready"]


def test_ctrl_c_prints_the_summary_tears_down_and_leaves_no_process(script):
    running = script(INTERRUPTED.format(grace=NEVER_S, work="return task"))
    assert [running.line(), running.line()] == ["ready", "ready"]
    running.interrupt()
    code, out, err = running.end()
    assert code == -signal.SIGINT
    assert out.split("\n") == ["torn down", "torn down", ""]
    assert err.rstrip().splitlines()[0] == "Traceback (most recent call last):"
    assert "interrupted; work done so far" in err
    assert err.count("Traceback") == 1
    wait_until(lambda: running.is_gone)


def test_ctrl_c_while_workers_start_shows_one_traceback(script):
    running = script(INTERRUPTED.format(grace=NEVER_S, work="return task"))
    wait_until(running.workers)
    running.interrupt()
    code, _, err = running.end()
    assert code == -signal.SIGINT
    assert err.count("Traceback") == 1
    wait_until(lambda: running.is_gone)


def test_ctrl_c_ends_workers_that_do_not_answer_and_what_they_have_started(script):
    starts = """__import__("subprocess").Popen(["sleep", "1000"]); """
    running = script(INTERRUPTED.format(grace=0.6, work=starts + HANGS))
    wait_until_both_hang(running)
    running.interrupt()
    code, out, err = running.end()
    assert (code, out) == (-signal.SIGINT, "")
    assert "waiting up to 0.3 s for workers" in err
    wait_until(lambda: running.is_gone)


def test_a_second_ctrl_c_ends_workers_at_once(script):
    running = script(INTERRUPTED.format(grace=10 * DEADLINE_S, work=HANGS))
    wait_until_both_hang(running)
    running.interrupt()
    assert "Ctrl-C kills them now" in running.process.stderr.readline()
    running.interrupt()
    code, out, err = running.end()
    assert (code, out) == (-signal.SIGINT, "")
    assert "interrupted; work done so far" in err
    wait_until(lambda: running.is_gone)


@pytest.mark.parametrize("work", [HANGS, HANGS_IN_C])
def test_workers_and_files_end_with_a_driver_that_is_killed(script, work):
    running = script(INTERRUPTED.format(grace=NEVER_S, work=work))
    wait_until_both_hang(running)
    running.process.kill()
    running.process.wait()
    wait_until(lambda: running.is_gone)


def test_leftover_threads_of_a_stage_do_not_keep_its_process(script):
    running = script(
        """
        import threading
        from curator_core import LocalExecutor, Pipeline, Task, processing_stage
        from curator_core._processes import process

        process._EXIT_S = 0.3

        @processing_stage()
        def leave(task):
            threading.Thread(target=threading.Event().wait).start()
            return task

        print(len(Pipeline("p", [leave]).run(LocalExecutor(workers=2), [Task(data=1)])))
        """
    )
    assert running.end()[:2] == (0, "1\n")
    wait_until(lambda: running.is_gone)


AS_DAEMON = """
import os
from pathlib import Path
from curator_core import LocalExecutor, Pipeline, Task, processing_stage

@processing_stage()
def talk(task):
    print(task.data)  # to any stream
    return task

result = Pipeline("p", [talk]).run(LocalExecutor(workers=2), [Task(data=number) for number in range(4)])
Path("result").write_text(str([task.data for task in result]))
"""


@pytest.mark.parametrize("closed", ["1", "2", "0 1 2"])
def test_a_run_works_with_closed_standard_streams(tmp_path, closed):
    (tmp_path / "script.py").write_text(AS_DAEMON)
    shell = f"{sys.executable} script.py " + " ".join(f"{number}>&-" for number in closed.split())
    done = subprocess.run(["/bin/sh", "-c", shell], cwd=tmp_path, timeout=DEADLINE_S, check=False)
    assert (done.returncode, (tmp_path / "result").read_text()) == (0, "[0, 1, 2, 3]")


class Keep(ProcessingStage):
    def process(self, task):
        return task


def test_it_runs_in_a_working_directory_that_is_gone(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert len(Pipeline("p", [Keep()]).run(TWO, tasks(1, 2))) == 2


def with_shared_memory(options):
    """Return a command prefix that gives a command its own /dev/shm, like a container."""
    shell = f'mount -t tmpfs -o {options} tmpfs /dev/shm && exec "$@"'
    return ["unshare", "--map-root-user", "--mount", "sh", "-c", shell, "sh"]


@pytest.fixture
def _own_shared_memory():
    try:
        subprocess.run([*with_shared_memory("size=4k"), "true"], capture_output=True, check=True, timeout=DEADLINE_S)
    except (OSError, subprocess.CalledProcessError) as exc:
        pytest.skip(f"cannot mount a file system: {getattr(exc, 'stderr', exc)!r}")


@pytest.mark.usefixtures("_own_shared_memory")
@pytest.mark.parametrize(
    ("options", "temporary", "said"),
    [
        ("size=32k", None, "[2000000, 2000000]"),
        ("ro", None, "[2000000, 2000000]"),
        ("ro", "/nowhere", "the directory that processes share cannot be created: .*'/nowhere/"),
    ],
    ids=["full", "read-only", "nowhere"],
)
def test_shared_memory_may_be_full_or_read_only(script, options, temporary, said):
    running = script(
        f"""
        import tempfile
        from curator_core import ExecutorError, LocalExecutor, Pipeline, Task, processing_stage

        tempfile.tempdir = {temporary!r}
        same = processing_stage(name="same")(lambda task: task)
        try:
            result = Pipeline("p", [same]).run(LocalExecutor(workers=2), [Task(data=bytes(2_000_000)) for _ in "ab"])
            print([len(task.data) for task in result])
        except ExecutorError as raised:
            print(raised)
        """,
        with_shared_memory(options),
    )
    code, out, err = running.end()
    assert (code, err) == (0, "")
    assert re.match(said.replace("[", r"\["), out), out
    wait_until(lambda: running.is_gone)
