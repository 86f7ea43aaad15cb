# SPDX-License-Identifier: Apache-2.0
"""The number of processes, and its requirements."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from curator_core import ExecutorError, LocalExecutor, Pipeline

from ..helpers import tasks  # noqa: TID252 - no import can write this directory's name
from .stages import TWO, stage  # noqa: TID252 - no import can write this directory's name


@pytest.mark.parametrize("workers", [0, -1, 1.5, "2", True, None])
def test_an_invalid_number_of_workers_is_rejected(workers):
    with pytest.raises(ExecutorError, match="invalid number of workers") as raised:
        LocalExecutor(workers=workers)
    assert raised.value.field == "workers"
    assert raised.value.expected == "a whole number, 1 or more"


@pytest.mark.parametrize("most", [-1, 1.5, "2", True, None])
def test_an_invalid_number_of_restarts_is_rejected(most):
    with pytest.raises(ExecutorError, match="invalid number of restarts") as raised:
        LocalExecutor(workers=2, max_restarts=most)
    assert raised.value.field == "max_restarts"
    assert raised.value.expected == "a whole number, 0 or more"


def test_a_process_that_cannot_start_is_an_error_that_names_the_setting(monkeypatch):
    def fails(command, **keywords):
        if "curator_core._local.worker" in command[-1]:
            raise OSError(24, "Too many open files")
        return start(command, **keywords)

    start = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", fails)
    with pytest.raises(ExecutorError, match=r"cannot be started: .*Too many open files"):
        Pipeline("p", [stage(lambda task: task)]).run(TWO, tasks(1))


def test_one_worker_needs_no_process():
    code = """
        import sys
        before = {*sys.modules}  # with coverage, some are already loaded
        from curator_core import LocalExecutor, Pipeline, Task, processing_stage
        LocalExecutor(workers=2)
        stage = processing_stage(name="same")(lambda task: task)
        Pipeline("p", [stage]).run(LocalExecutor(), [Task(data=1)])
        print(*{"subprocess", "multiprocessing", "concurrent"} & {*sys.modules} - before)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
