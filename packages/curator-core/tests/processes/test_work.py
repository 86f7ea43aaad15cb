# SPDX-License-Identifier: Apache-2.0
"""Stages in their own processes: the same results and reports."""

from __future__ import annotations

import atexit
import importlib
import logging
import os
import sys
import threading
import time

import pytest

from curator_core import LocalExecutor, Pipeline, ProcessingStage, StageDefinitionError, StageError, Task
from curator_core.testing import Recorder

from .stages import Deadly, Elsewhere, Recording, run  # noqa: TID252 - no import can write this directory's name


def test_an_isolated_stage_runs_in_a_process_that_ends_with_the_run(children):
    before = children()
    pids = {task.data for task in run(Elsewhere(), data=range(5))}
    assert len(pids) == 1
    assert os.getpid() not in pids
    assert children() <= before


def test_an_isolated_stage_has_the_usual_life_cycle(tmp_path):
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


def test_exceptions_of_an_isolated_stage_are_raised_in_the_driver():
    with pytest.raises(StageError, match="raised ValueError on task '0': that is no good") as raised:
        run(Deadly(), data=["raises"])
    assert isinstance(raised.value.__cause__, ValueError)
    assert 'raise ValueError("that is no good")' in str(raised.value.__cause__.__cause__)


@pytest.mark.parametrize("where", ["setup_on_node", "setup"])
def test_a_failing_setup_ends_the_process(children, where):
    def fail(self, *_):
        raise OSError("no model")

    stage = type("Failing", (Elsewhere,), {where: fail})()
    before = children()
    with pytest.raises(StageError, match="no model"):
        run(stage, data=["a"])
    assert children() <= before


def test_an_isolated_stage_gives_the_same_results_and_reports():
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


def test_cpu_time_of_the_isolated_process_is_counted():
    class Busy(ProcessingStage):
        isolated = True

        def process(self, task):
            start = time.thread_time()
            while time.thread_time() - start < 0.05:
                pass
            return task

    recorder = Recorder()
    run(Busy(), data=["a"], observers=[recorder])
    (report,) = recorder.batches
    assert 50_000_000 <= report.cpu_ns <= report.duration_ns


def test_log_records_of_an_isolated_stage_name_their_task(tmp_path):
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


def test_an_output_that_cannot_be_sent_back_is_a_failure_of_the_stage():
    class Opening(ProcessingStage):
        isolated = True

        def process(self, task):
            return Task(data=threading.Lock())

    with pytest.raises(StageError, match="cannot pickle"):
        run(Opening(), data=["a"])


def test_an_input_that_cannot_be_sent_is_a_failure_of_the_stage():
    result = run(Deadly(), data=[threading.Lock(), "a"], on_error="skip")
    assert [task.data for task in result] == ["a"]


def test_isolated_stages_work_on_several_processes():
    stages = [Deadly().with_(timeout_s=1.5), Elsewhere().with_(isolated=None)]
    tasks = [Task(data=each) for each in ["a", "hangs", "b", "exits", "c"]]
    result = Pipeline("p", stages).run(LocalExecutor(workers=2), tasks, on_error="skip")
    assert len(result) == 3
    assert sorted(result.accounting.failed["Deadly"]) == ["1", "3"]


@pytest.mark.parametrize("value", [0, -1, "soon", True, float("inf")])
def test_an_invalid_time_limit_is_rejected(value):
    with pytest.raises(StageDefinitionError, match="timeout_s"):
        Pipeline("p", [Deadly().with_(timeout_s=value)]).compile()


def test_a_time_limit_needs_an_isolated_process():
    with pytest.raises(StageDefinitionError, match="leave isolated unset"):
        Pipeline("p", [Deadly().with_(timeout_s=1.0, isolated=False)]).compile()


def test_the_module_search_path_is_passed_on(tmp_path, monkeypatch):
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


def test_open_files_are_flushed_when_the_process_ends(tmp_path):
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


def test_a_path_entry_that_is_not_text_is_accepted(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, tmp_path])
    assert len(run(Elsewhere(), data=["a"])) == 1
