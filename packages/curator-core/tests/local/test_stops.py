# SPDX-License-Identifier: Apache-2.0
"""Scripts that a scheduler stops, with a signal to one process or to all: each ends gracefully and in time."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.waiting import NEVER_S, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from .machine import Script  # noqa: TID252 - no import can write this directory's name

STOPPED = """
    import hashlib
    import os
    import threading
    from curator_core import LocalExecutor, Pipeline, ProcessingStage, RunObserver, Task

    class Source(ProcessingStage):
        def process(self, task):
            number = 0
            while True:
                yield Task(data=(number := number + 1))

    class Work(ProcessingStage):
        isolated = {isolated}

        def process(self, task):
            if {hangs} and task.data > 3:
                os.write(1, b"hangs\\n")  # one write: several processes write here
                hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # takes hours, and cannot be interrupted
            return task

        def teardown(self):
            os.write(1, b"torn down\\n")

    class Watch(RunObserver):
        def on_batch(self, report):
            if report.stage_name == "Work":
                os.write(1, b"batch\\n")

        def on_run_end(self, result, error):
            os.write(1, f"{{result.state}}, {{result.stages[1].tasks_in > 0}}\\n".encode())

    Pipeline("p", [Source(), Work()]).run(
        LocalExecutor({workers}),
        observers=[Watch()],
        checkpoint={checkpoint!r},
        on_error="skip",
        shutdown_grace_s={grace},
    )
"""

REPEATED = """
    import atexit
    import logging
    import os
    import signal
    from curator_core import Pipeline, Task, processing_stage

    def again(where, numbers=(signal.SIGTERM, signal.SIGUSR1), kill=os.kill, pid=os.getpid(), write=os.write):
        for number in numbers:
            kill(pid, number)
        write(1, where)

    class Last:
        def __del__(self, again=again):
            again(b"interpreter ")

    class Log(logging.Handler):
        def emit(self, record):
            again(b"log ")

    @processing_stage()
    def stop(task):
        atexit.register(again, b"exit ")
        os.kill(os.getpid(), signal.SIGTERM)
        return task

    last = Last()
    atexit.register(again, b"late exit ")
    logging.getLogger("curator_core").addHandler(Log())
    try:
        Pipeline("p", [stop]).run(initial_tasks=[Task(data=1)])
    finally:
        again(b"finally ")
"""

GOES_ON = """
    import os
    import signal
    import time
    from curator_core import Pipeline, RunStopped, Task, processing_stage

    @processing_stage()
    def stop(task):
        os.kill(os.getpid(), signal.SIGTERM)
        return task

    try:
        Pipeline("p", [stop]).run(initial_tasks=[Task(data=1)], shutdown_grace_s=1)
    except RunStopped:
        end = time.monotonic() + 1
        os.kill(os.getpid(), signal.SIGTERM)
        print("goes on", flush=True)
    while time.monotonic() < end:
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    print("cannot be stopped", flush=True)
"""


def finished(checkpoint: Path) -> int:
    assert not (checkpoint / "lock").exists()
    return len((checkpoint / "finished.jsonl").read_text().splitlines())


@pytest.mark.parametrize(
    ("number", "code", "state", "workers", "isolated"),
    [
        (signal.SIGTERM, 143, "terminated", 1, None),
        (signal.SIGUSR1, 138, "preempted", 1, None),
        (signal.SIGTERM, 143, "terminated", 2, None),
        (signal.SIGUSR1, 138, "preempted", 2, True),
    ],
)
def test_a_stopped_run_is_torn_down_and_accounted_for(
    script: Callable[[str], Script],
    tmp_path: Path,
    number: int,
    code: int,
    state: str,
    workers: int,
    isolated: bool | None,
) -> None:
    checkpoint = tmp_path / "progress"
    running = script(
        STOPPED.format(workers=workers, isolated=isolated, hangs=False, checkpoint=str(checkpoint), grace=NEVER_S)
    )
    wait_until(lambda: running.line() == "batch")
    running.interrupt(number)
    status, out, err = running.end()
    assert status == code
    lines = [line for line in out.splitlines() if line != "batch"]
    assert lines[-1] == f"{state}, True"
    assert 1 <= lines.count("torn down") <= workers
    assert f"ended early: {state}" in err
    assert "Traceback" not in err
    assert finished(checkpoint) > 0
    wait_until(lambda: running.is_gone)


def test_repeated_signals_are_ignored_until_the_process_ends(script: Callable[[str], Script]) -> None:
    status, out, err = script(REPEATED).end()
    assert (status, err) == (143, "")
    assert out == "log finally exit late exit interpreter "


def test_a_process_that_continues_can_be_stopped_after_the_grace_period(script: Callable[[str], Script]) -> None:
    status, out, _ = script(GOES_ON).end()
    assert (status, out) == (-signal.SIGTERM, "goes on\n")


@pytest.mark.parametrize(("workers", "isolated"), [(1, None), (1, True), (2, None)])
def test_code_that_cannot_be_interrupted_ends_at_the_deadline(
    script: Callable[[str], Script], tmp_path: Path, workers: int, isolated: bool | None
) -> None:
    checkpoint = tmp_path / "progress"
    running = script(
        STOPPED.format(workers=workers, isolated=isolated, hangs=True, checkpoint=str(checkpoint), grace=4)
    )
    wait_until(lambda: running.line() == "hangs")
    running.interrupt(signal.SIGTERM)
    status, out, err = running.end()
    assert status == 143
    assert "terminated, True" in out.splitlines()
    assert "ended early: terminated" in err
    assert finished(checkpoint) in ([3] if workers == 1 else [1, 2, 3])  # a bundle is reported as a whole
    wait_until(lambda: running.is_gone)


ENDLESS = """
    import os
    from curator_core import LocalExecutor, Pipeline, ProcessingStage, RunStopped, Task

    class Split(ProcessingStage):
        def process(self, task):
            for number in range(10**9):
                if number == 10:
                    os.write(1, b"splits\\n")
                yield Task(data=number)

        def teardown(self):
            os.write(1, b"torn down\\n")

    class Look(ProcessingStage):
        def process(self, task):
            return task

    try:
        Pipeline("p", [{stages}]).run(
            LocalExecutor(workers=2), [Task(data=1)], checkpoint={checkpoint!r}, shutdown_grace_s={grace}, {settings}
        )
    except RunStopped as stopped:
        os.write(1, f"{{len(stopped.result)}} of {{stopped.result.stages[-1].tasks_out}}\\n".encode())
        raise
"""


@pytest.mark.parametrize(
    ("stages", "settings"), [("Split(), Look()", "on_error='skip'"), ("Split(), Look()", ""), ("Look(), Split()", "")]
)
def test_a_generator_on_a_worker_stops_between_two_outputs(
    script: Callable[[str], Script], tmp_path: Path, stages: str, settings: str
) -> None:
    # With a checkpoint, a last stage is read to its end, because it names all files of its input at once.
    checkpoint = None if stages.endswith("Split()") else str(tmp_path / "progress")
    running = script(ENDLESS.format(stages=stages, settings=settings, checkpoint=checkpoint, grace=NEVER_S))
    wait_until(lambda: running.line() == "splits")
    running.interrupt(signal.SIGTERM)
    status, out, err = running.end()
    assert status == 143
    assert out.splitlines().count("torn down") == 1
    assert "0 of 0" in out.splitlines()  # what was made of an input that has no outcome does not count
    assert "Traceback" not in err
    assert checkpoint is None or finished(Path(checkpoint)) == 0
    wait_until(lambda: running.is_gone)
