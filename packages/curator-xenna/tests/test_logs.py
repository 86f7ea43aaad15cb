# SPDX-License-Identifier: Apache-2.0
"""Log records of stages in Xenna's workers name the run, stage, batch, and task that they belong to."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from curator_core import EmptyTask, Pipeline, ProcessingStage, Task, processing_stage

if TYPE_CHECKING:
    from curator_xenna import XennaExecutor

NAMES = ("process", "message", "curator_run_id", "curator_stage", "curator_task_id", "curator_batch_id")


class Talkative(ProcessingStage):
    """Warns about each task in two ways, and repeats a constant warning."""

    def process(self, task):
        log = logging.getLogger("talkative")
        log.info("not heard")
        for number in range(5):
            log.warning("part %d is odd", 5 * task.data + number)
            log.error("again")
        return task


class Ran(NamedTuple):
    result: Any
    heard: list[logging.LogRecord]
    lines: list[list[str]]
    emitted: list[Any]
    factory_kept: bool


def noting(directory: Path, name: str, **settings: Any) -> ProcessingStage:
    """Return a stage that logs to a file of its worker."""

    class Noting(ProcessingStage):
        def setup(self, worker_metadata):
            self.handler = logging.FileHandler(directory / f"{self.name}-{os.getpid()}.log")
            self.handler.setFormatter(logging.Formatter(json.dumps([f"%({name})s" for name in NAMES])))
            self.logger = logging.getLogger(f"noting.{self.name}")
            self.logger.addHandler(self.handler)
            self.logger.warning("setup")

        def process(self, task):
            self.logger.warning("process")
            return task

        def teardown(self):
            self.logger.warning("teardown")
            self.handler.close()

    return Noting().with_(name=name, **settings)


def emit(task: EmptyTask) -> list[Task[int]]:
    logging.getLogger("emit").warning("emit")
    return [Task(data=number) for number in range(4)]


@pytest.fixture(scope="module")
def ran(executor: XennaExecutor, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A run whose source and stages log."""
    directory = tmp_path_factory.mktemp("logs")
    emitted: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = emitted.append  # type: ignore[method-assign]
    logging.getLogger("emit").addHandler(handler)
    heard: list[logging.LogRecord] = []
    hearing = logging.Handler()
    hearing.emit = heard.append  # type: ignore[method-assign]
    logging.getLogger("talkative").addHandler(hearing)
    before = logging.getLogRecordFactory()
    stages = [
        processing_stage(name="emit")(emit),
        noting(directory, "first"),
        noting(directory, "second", batch_size=2),
        Talkative().with_(num_workers=1),
    ]
    result = Pipeline("p", stages).run(executor)
    lines = [json.loads(line) for path in directory.glob("*.log") for line in path.read_text().splitlines()]
    return Ran(result, heard, lines, emitted, factory_kept=logging.getLogRecordFactory() is before)


def test_workers_mark_the_records_of_all_stages_of_their_group(ran: Ran) -> None:
    assert str(os.getpid()) not in {process for process, *_ in ran.lines}
    assert {run_id for _, _, run_id, *_ in ran.lines} == {ran.result.run_id}
    known = {(stats.stage_name, task.task_id, stats.batch_id) for task in ran.result for stats in task.stage_perf[1:3]}
    assert {tuple(mark) for _, message, _, *mark in ran.lines if message == "process"} == known
    others = {(message, *mark) for _, message, _, *mark in ran.lines if message != "process"}
    names = ("first", "second")
    assert others == {(message, name, "", "") for message in ("setup", "teardown") for name in names}


def test_the_source_marks_its_records_in_the_driver(ran: Ran) -> None:
    (record,) = ran.emitted
    assert (record.curator_run_id, record.curator_stage) == (ran.result.run_id, "emit")
    assert ran.factory_kept


def test_first_warnings_of_each_kind_are_logged_in_the_driver(ran: Ran) -> None:
    said = [record.getMessage() for record in ran.heard]
    assert sum(text.startswith("part ") for text in said) == 5
    assert "15 more like this from workers: part %d is odd" in said
    (again,) = [record for record in ran.heard if record.getMessage().startswith("again  [stage 'Talkative', worker ")]
    assert (again.levelname, Path(again.pathname).name) == ("ERROR", "test_logs.py")
    assert not any("not heard" in text for text in said)
    mark = again.curator_run_id, again.curator_stage, again.curator_task_id  # type: ignore[attr-defined]  # as documented
    assert mark in {(ran.result.run_id, "Talkative", task.task_id) for task in ran.result}
