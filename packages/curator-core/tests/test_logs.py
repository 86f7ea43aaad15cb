# SPDX-License-Identifier: Apache-2.0
"""Log records of a stage's code name the run, stage, batch, and task that they belong to."""

from __future__ import annotations

import asyncio
import json
import logging
import logging.handlers
import os
import queue
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.waiting import DEADLINE_S

from curator_core import (
    LOG_FORMAT,
    LocalExecutor,
    NodeInfo,
    Pipeline,
    ProcessingStage,
    StageError,
    StageLogFilter,
    StageWork,
    Task,
    WorkerMetadata,
    current_work,
    processing_stage,
)
from curator_core.logs import RecordBuffer, marked_records
from curator_core.testing.probe import Calling, CallingBatches, Probe, seen

from .helpers import tasks  # noqa: TID252 - no import can write this directory's name

logger = logging.getLogger("stages")


@pytest.fixture(autouse=True)
def _all_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


@pytest.fixture(autouse=True)
def leaves_everything_as_it_was() -> Any:
    before = logging.getLogRecordFactory()
    yield
    assert logging.getLogRecordFactory() is before
    assert current_work() is None


def marks(caplog: pytest.LogCaptureFixture) -> list[tuple[str, ...]]:
    """Return the message, stage, task, and batch of the records so far."""
    return [
        (record.getMessage(), record.curator_stage, record.curator_task_id, record.curator_batch_id)
        for record in caplog.records
        if hasattr(record, "curator_run_id")
    ]


def saying(name: str, **settings: Any) -> ProcessingStage:
    """Return a stage that logs the data of each task."""

    def say(task):
        logger.info("%s", task.data)
        return task

    return processing_stage(name=name, **settings)(say)


# --- fields of a record ---------------------------------------------------------------------------------


class Living(ProcessingStage):
    def setup_on_node(self, node_info, worker_metadata):
        logger.info("node")

    def setup(self, worker_metadata):
        logger.info("setup")

    def process(self, task):
        logger.info("process")
        return task

    def teardown(self):
        logger.info("teardown")


def test_the_whole_life_of_a_worker_is_marked(caplog):
    result = Pipeline("p", [Living()]).run(initial_tasks=tasks(1, 2))
    assert marks(caplog) == [
        ("node", "Living", "", ""),
        ("setup", "Living", "", ""),
        ("process", "Living", "0", "0/0"),
        ("process", "Living", "1", "0/1"),
        ("teardown", "Living", "", ""),
    ]
    assert {record.curator_run_id for record in caplog.records} == {result.run_id}


def test_log_records_name_the_batches_in_the_history_of_the_task(caplog):
    (task,) = Pipeline("p", [saying("one"), saying("two")]).run(initial_tasks=tasks("x"))
    assert [(record.curator_stage, record.curator_batch_id) for record in caplog.records] == [
        (stats.stage_name, stats.batch_id) for stats in task.stage_perf
    ]
    assert {record.curator_task_id for record in caplog.records} == {task.task_id}


def test_each_task_of_a_batch_is_named(caplog):
    probe = Probe(saying("say", batch_size=3))
    with marked_records():
        probe(seen("4", "a"), seen("7", "b"), seen("9", "c"))
    batch = probe.report.batch_id
    assert marks(caplog) == [("a", "say", "4", batch), ("b", "say", "7", batch), ("c", "say", "9", batch)]


@pytest.mark.parametrize(("ids", "named"), [(["4"], "4"), (["4", "7"], "")])
def test_a_batch_names_its_task_only_if_it_has_one(caplog, ids, named):
    def work(tasks):
        logger.info("batch")
        return tasks

    probe = Probe(CallingBatches(work))
    with marked_records():
        probe(*map(seen, ids))
    assert marks(caplog) == [("batch", "CallingBatches", named, probe.report.batch_id)]


def test_current_work_names_stage_task_and_batch():
    asked = []

    def work(task):
        asked.append(current_work())

    probe = Probe(Calling(work))
    probe.adapter.setup(WorkerMetadata("w-1"))
    probe(seen("4"), seen("7"))
    batch = probe.reports[-1].batch_id
    assert asked == [StageWork("run", "Calling", task_id, batch, "w-1") for task_id in ("4", "7")]


def test_log_records_of_task_methods_belong_to_the_batch(caplog):
    class Talking(Task):
        def validate(self):
            logger.info("validate %s", self.data)
            return True

    Pipeline("p", [saying("say", batch_size=2)]).run(initial_tasks=[Talking(data="a"), Talking(data="b")])
    said = [(message, task_id) for message, _, task_id, _ in marks(caplog)]
    assert said == [("validate a", ""), ("validate b", ""), ("a", "0"), ("b", "1")]


def test_log_records_of_libraries_are_marked_for_any_logger(caplog):
    library = logging.getLogger("some.library.that.is.there.already")
    library.addHandler(own := logging.handlers.BufferingHandler(10))
    library.propagate = False
    try:
        library.warning("before")
        Pipeline("p", [Calling(lambda task: library.warning("in the stage"))]).run(initial_tasks=tasks(1))
        library.warning("after")
    finally:
        library.propagate = True
        library.removeHandler(own)
    assert [getattr(record, "curator_stage", None) for record in own.buffer] == [None, "Calling", None]


def test_a_generator_is_marked_with_its_task_while_it_is_read(caplog):
    def words(task):
        for word in task.data.split():
            logger.info(word)
            yield Task(data=word)

    Pipeline("p", [Calling(words, batch_size=2)]).run(initial_tasks=tasks("a b", "c"))
    assert [(message, task_id) for message, _, task_id, _ in marks(caplog)] == [("a", "0"), ("b", "0"), ("c", "1")]


def test_coroutines_in_the_same_thread_are_marked_and_other_threads_are_not(caplog):
    async def talk(who):
        await asyncio.sleep(0)
        logger.info(who)

    def work(task):
        asyncio.run(talk("coroutine"))
        thread = threading.Thread(target=logger.info, args=("thread",))
        thread.start()
        thread.join()

    Pipeline("p", [Calling(work)]).run(initial_tasks=tasks(1))
    assert [message for message, *_ in marks(caplog)] == ["coroutine"]
    assert "thread" in caplog.messages


# --- consecutive stages ---------------------------------------------------------------------------------


class Counting(ProcessingStage):
    """A source that logs before, between, and after its outputs."""

    def process(self, task):
        try:
            for number in range(3):
                logger.info("make %d", number)
                yield Task(data=number)
        finally:
            logger.info("close")


def test_records_of_a_source_and_later_stages_are_marked_in_turn(caplog):
    Pipeline("p", [Counting(), saying("pairs", batch_size=2)]).run()
    assert [mark[:3] for mark in marks(caplog)] == [
        ("make 0", "Counting", ""),
        ("make 1", "Counting", ""),
        ("0", "pairs", "0"),
        ("1", "pairs", "1"),
        ("make 2", "Counting", ""),
        ("close", "Counting", ""),
        ("2", "pairs", "2"),
    ]
    assert {batch for _, stage, _, batch in marks(caplog) if stage == "Counting"} == {"0/"}


def test_between_outputs_of_a_source_there_is_no_current_work(caplog):
    made = Probe(Counting()).adapter.process_source(seen(""))
    assert [current_work() for _ in made] == [None] * 3


def test_a_source_that_is_closed_early_is_marked_while_it_closes(caplog):
    made = Probe(Counting()).adapter.process_source(seen(""))
    with marked_records():
        next(made)
        made.close()
    assert [mark[:2] for mark in marks(caplog)] == [("make 0", "Counting"), ("close", "Counting")]


def test_a_source_can_continue_in_another_thread(caplog):
    made = Probe(Counting()).adapter.process_source(seen(""))
    with marked_records():
        next(made)
        thread = threading.Thread(target=lambda: [logger.info("other") for _ in made])
        thread.start()
        thread.join()
    assert [message for message, *_ in marks(caplog)] == ["make 0", "make 1", "make 2", "close"]


def test_observers_are_not_in_a_stage():
    asked = []
    probe = Probe(Living())
    probe.adapter.bind(probe.adapter.state.context, lambda report: asked.append(current_work()))
    probe.adapter.setup_on_node(NodeInfo(), WorkerMetadata())
    probe.adapter.setup(WorkerMetadata())
    probe(seen("0"))
    probe.adapter.teardown()
    assert asked == [None] * 3


def test_a_nested_run_marks_its_own_records(caplog):
    def inner_run(task):
        logger.info("before")
        inner = Pipeline("inner", [saying("inner")]).run(initial_tasks=tasks("inside"))
        logger.info("after")
        return Task(data=inner.run_id)

    result = Pipeline("outer", [processing_stage(name="outer")(inner_run)]).run(initial_tasks=tasks(1))
    assert [(record.getMessage(), record.curator_run_id, record.curator_stage) for record in caplog.records] == [
        ("before", result.run_id, "outer"),
        ("inside", result[0].data, "inner"),
        ("after", result.run_id, "outer"),
    ]


both = threading.Barrier(2, timeout=DEADLINE_S)  # a global, because stages are copied and a barrier does not pickle


class Meeting(ProcessingStage):
    def process(self, task):
        both.wait()
        logger.info(task.data)
        both.wait()
        return task


def test_runs_in_two_threads_mark_only_their_own_records(caplog):
    results = {}

    def run(name):
        results[name] = Pipeline(name, [Meeting().with_(name=name)]).run(initial_tasks=tasks(f"{name}-0", f"{name}-1"))

    threads = [threading.Thread(target=run, args=(name,)) for name in ("left", "right")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    said = {(r.getMessage(), r.curator_run_id, r.curator_stage, r.curator_task_id) for r in caplog.records}
    assert said == {
        (f"{name}-{number}", results[name].run_id, name, str(number)) for name in ("left", "right") for number in (0, 1)
    }


# --- failures -------------------------------------------------------------------------------------------


def failing(task: Task) -> Task:
    logger.info("try %s", task.data)
    if task.data == "bad":
        raise ValueError(task.data)
    return task


def test_after_a_failure_there_is_no_current_work(caplog):
    probe = Probe(Calling(failing))
    with marked_records():
        with pytest.raises(StageError):
            probe(seen("0", "bad"))
        assert current_work() is None
        logger.info("between")
        probe(seen("1", "good"))
    assert [(message, task_id) for message, _, task_id, _ in marks(caplog)] == [("try bad", "0"), ("try good", "1")]


@pytest.mark.parametrize("method", ["setup_on_node", "setup", "teardown"])
def test_after_a_failing_setup_or_teardown_there_is_no_current_work(caplog, method):
    class Broken(Living):
        pass

    def fail(self, *given):
        logger.info("broken")
        raise ValueError(method)

    setattr(Broken, method, fail)
    probe = Probe(Broken())
    with marked_records():
        if method == "teardown":
            probe.adapter.teardown()
        else:
            given = (NodeInfo(), WorkerMetadata()) if method == "setup_on_node" else (WorkerMetadata(),)
            with pytest.raises(StageError):
                getattr(probe.adapter, method)(*given)
    assert marks(caplog) == [("broken", "Broken", "", "")]
    assert current_work() is None


def test_after_an_interrupt_there_is_no_current_work():
    def interrupt(task):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Probe(Calling(interrupt))(seen("0"))
    assert current_work() is None


def test_tasks_after_a_failed_one_are_named_correctly(caplog):
    probe = Probe(Calling(failing, batch_size=3), on_error="skip")
    with marked_records():
        probe(seen("0", "a"), seen("1", "bad"), seen("2", "c"))
    assert [(message, task_id) for message, _, task_id, _ in marks(caplog)] == [
        ("try a", "0"),
        ("try bad", "1"),
        ("try c", "2"),
    ]


def test_tasks_after_an_invalid_one_are_named_correctly(caplog):
    class Checked(Task):
        def validate(self):
            return self.data != "invalid"

    invalid, good = Checked(data="invalid"), Checked(data="good")
    stages = [Calling(failing, batch_size=3)]
    Pipeline("p", stages).run(initial_tasks=[invalid, good, good], on_error="skip")
    assert [(message, task_id) for message, _, task_id, _ in marks(caplog)] == [("try good", "1"), ("try good", "2")]


def test_attempts_at_a_batch_have_the_same_fields(caplog):
    class Flaky(ProcessingStage):
        max_attempts, batch_size = 3, 2
        calls = 0

        def process(self, task):
            self.calls += 1
            logger.info("call %d", self.calls)
            if self.calls in (2, 3):
                raise ConnectionError
            return task

    probe = Probe(Flaky())
    with marked_records():
        probe(seen("4"), seen("5"))
    (batch,) = {report.batch_id for report in probe.reports}
    assert marks(caplog) == [
        ("call 1", "Flaky", "4", batch),
        ("call 2", "Flaky", "5", batch),
        ("call 3", "Flaky", "4", batch),
        ("call 4", "Flaky", "4", batch),
        ("call 5", "Flaky", "5", batch),
    ]


# --- processes ------------------------------------------------------------------------------------------


def test_worker_processes_mark_their_records(tmp_path):
    where = str(tmp_path)

    class Noting(ProcessingStage):
        def setup(self, worker_metadata):
            self.handler = logging.FileHandler(f"{where}/{worker_metadata.worker_id}.log")
            names = ("process", "curator_run_id", "curator_stage", "curator_task_id", "curator_batch_id")
            self.handler.setFormatter(logging.Formatter(json.dumps([f"%({name})s" for name in names])))
            self.logger = logging.getLogger("noting")
            self.logger.addHandler(self.handler)
            self.logger.warning("ready")

        def process(self, task):
            self.logger.warning("at work")
            return task

        def teardown(self):
            self.handler.close()

    result = Pipeline("p", [Noting()]).run(LocalExecutor(workers=2), initial_tasks=tasks(*range(6)))
    said = [json.loads(line) for path in Path(where).glob("*.log") for line in path.read_text().splitlines()]
    assert str(os.getpid()) not in {process for process, *_ in said}
    assert {(run_id, stage) for _, run_id, stage, *_ in said} == {(result.run_id, "Noting")}
    at_work = sorted((task_id, batch_id) for *_, task_id, batch_id in said if task_id)
    assert at_work == [(str(number), f"0/{number}") for number in range(6)]
    assert len(said) == 6 + len(list(Path(where).glob("*.log")))


# --- the filter -----------------------------------------------------------------------------------------


def a_record() -> logging.LogRecord:
    return logging.makeLogRecord({"msg": "said", "name": "n", "levelname": "INFO"})


def test_outside_of_a_stage_the_filter_leaves_the_fields_empty():
    record = a_record()
    assert StageLogFilter().filter(record) is True
    shown = logging.Formatter(LOG_FORMAT).format(record)
    assert shown.endswith("INFO n [run= stage= batch= task=] said")


def test_the_filter_fills_the_fields_without_a_run():
    records = []

    def work(task):
        records.append(a_record())
        StageLogFilter().filter(records[-1])

    Probe(Calling(work))(seen("4"))
    shown = logging.Formatter(LOG_FORMAT).format(records[0])
    assert shown.endswith("INFO n [run=run stage=Calling batch=0/4 task=4] said")


def test_the_filter_keeps_the_fields_of_records_from_other_threads():
    passing: queue.SimpleQueue = queue.SimpleQueue()
    handed_over = logging.handlers.QueueHandler(passing)
    logger.addHandler(handed_over)
    try:
        Pipeline("p", [saying("say")]).run(initial_tasks=tasks("x"))
    finally:
        logger.removeHandler(handed_over)
    record = passing.get(timeout=DEADLINE_S)
    StageLogFilter().filter(record)
    assert (record.curator_stage, record.curator_task_id) == ("say", "0")


# --- the record factory ---------------------------------------------------------------------------------


@pytest.fixture
def own_factory():
    """A user-defined record factory, installed before the run."""
    before = logging.getLogRecordFactory()

    def make(*args, **kwargs):
        record = before(*args, **kwargs)
        record.mine = True
        return record

    logging.setLogRecordFactory(make)
    yield make
    logging.setLogRecordFactory(before)


def test_a_record_factory_of_the_user_works_during_and_after_the_run(caplog, own_factory):
    Pipeline("p", [saying("say")]).run(initial_tasks=tasks("x"))
    assert logging.getLogRecordFactory() is own_factory
    (record,) = caplog.records
    assert (record.mine, record.curator_stage) == (True, "say")


def test_the_record_factory_is_restored_after_a_failure(own_factory):
    with pytest.raises(StageError):
        Pipeline("p", [Calling(failing)]).run(initial_tasks=tasks("bad"))
    assert logging.getLogRecordFactory() is own_factory


def test_a_record_factory_set_during_a_run_is_kept(caplog):
    before = logging.getLogRecordFactory()

    def install(task):
        ours = logging.getLogRecordFactory()

        def theirs(*args, **kwargs):
            record = ours(*args, **kwargs)
            record.theirs = True
            return record

        logging.setLogRecordFactory(theirs)
        logger.info("set")
        return task

    try:
        Pipeline("p", [processing_stage(name="install")(install)]).run(initial_tasks=tasks(1))
        theirs = logging.getLogRecordFactory()
        logger.info("between runs")
        Pipeline("p", [saying("say")]).run(initial_tasks=tasks("next"))
        assert logging.getLogRecordFactory() is theirs
    finally:
        logging.setLogRecordFactory(before)
    assert all(record.theirs for record in caplog.records)
    assert [mark[:2] for mark in marks(caplog)] == [("set", "install"), ("next", "say")]


def test_a_record_that_is_relayed_twice_is_marked_once():
    first, second = RecordBuffer(), RecordBuffer()
    logger = logging.getLogger("sent")
    logger.addHandler(first)
    try:
        for _ in range(3):
            try:
                raise ValueError("the reason")
            except ValueError:
                logger.exception("task %d", 7)
    finally:
        logger.removeHandler(first)
    for record in first.take():
        second.handle(record)
    (record,) = second.take()
    text = logging.Formatter().format(record)
    assert text.startswith("task 7\nTraceback")
    assert text.count("ValueError: the reason") == 1
    assert (record.curator_template, record.curator_times) == ("task %d", 3)


def test_excess_records_are_counted():
    buffer = RecordBuffer()
    for number in range(60):
        buffer.handle(logging.LogRecord("many", logging.WARNING, __file__, 1, "number %d", (number,), None))
    *kept, last = buffer.take()
    assert [record.getMessage() for record in kept] == [f"number {number}" for number in range(50)]
    assert last.getMessage() == "10 more warnings are not shown"
    assert buffer.take() == []
