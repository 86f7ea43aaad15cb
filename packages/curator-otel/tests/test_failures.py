# SPDX-License-Identifier: Apache-2.0
"""Failures of batches, workers, stages, and runs in a trace."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.trace import StatusCode

from curator_core import DeadLetter, Pipeline, ProcessingStage, StageError, Task, deadletter, processing_stage


class Picky(ProcessingStage[Any, Any]):
    max_attempts = 2

    def process(self, task):
        if task.data == "bad":
            raise ValueError("cannot read this")
        return task


def test_failed_attempts_have_error_type_status_and_an_exception_event(memory):
    tasks = [Task(data="good"), Task(data="bad")]
    Pipeline("picky", [Picky()]).run(initial_tasks=tasks, observers=[memory.observer()], on_error="skip")
    good, retried, failed = memory.named("process_batch Picky")
    assert good.status.status_code is StatusCode.UNSET
    assert not good.events
    for span, outcome in ((retried, "retried"), (failed, "failed")):
        assert span.attributes["curator.outcome"] == outcome
        assert span.attributes["error.type"] == "ValueError"
        assert span.status.status_code is StatusCode.ERROR
        assert span.status.description == "cannot read this"
        (event,) = span.events
        assert event.name == "exception"
        assert event.timestamp == span.end_time
        assert dict(event.attributes) == {
            "exception.type": "ValueError",
            "exception.message": "cannot read this",
        }
    assert (retried.attributes["curator.batch.attempt"], failed.attributes["curator.batch.attempt"]) == (1, 2)
    assert memory.one("00 Picky").attributes["curator.batch.retried"] == 1


@pytest.mark.parametrize("parent", ["", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"])
def test_dead_letter_names_the_trace_of_its_failure(memory, monkeypatch, tmp_path, parent):
    monkeypatch.setenv("TRACEPARENT", parent)
    result = Pipeline("picky", [Picky()]).run(
        initial_tasks=[Task(data="good"), Task(data="bad")],
        observers=[memory.observer()],
        on_error=DeadLetter(tmp_path),
    )
    (letter,) = deadletter.read(tmp_path)
    failed = memory.named("process_batch Picky")[-1]
    assert letter.trace_id == result.trace_id == f"{failed.context.trace_id:032x}"
    assert letter.trace_id in parent or not parent
    assert letter.run_id == result.run_id
    assert letter.worker_id == failed.attributes["curator.worker.id"]


def test_retry_that_succeeds_leaves_its_stage_unmarked(memory, script, boom):
    script.play(
        memory.observer(),
        script.batch(0, 0, kinds=("retried",), error=boom),
        script.batch(0, 1, attempt=2, batch_id="0/0"),
    )
    assert memory.one("00 read").status.status_code is StatusCode.UNSET


def test_ctrl_c_ends_all_spans(memory):
    @processing_stage()
    def interrupted(task):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Pipeline("cut", [interrupted]).run(initial_tasks=[Task(data=1)], observers=[memory.observer()])
    assert memory.one("run cut").attributes["error.type"] == "KeyboardInterrupt"
    assert memory.one("00 interrupted")


def test_failed_setup_has_a_span_and_marks_its_stage(memory):
    class Broken(ProcessingStage[Any, Any]):
        def setup(self, worker_metadata):
            raise OSError("no weights")

        def process(self, task):
            return task

    with pytest.raises(StageError):
        Pipeline("p", [Broken()]).run(initial_tasks=[Task(data=1)], observers=[memory.observer()])
    span = memory.one("worker setup")
    assert span.status.description == "no weights"
    assert span.attributes["error.type"] == memory.one("00 Broken").attributes["error.type"] == "OSError"
    assert span.attributes["curator.outcome"] == "failed"
    assert memory.one("00 Broken").status.status_code is StatusCode.ERROR


def test_failure_without_a_description_is_marked(memory, script):
    script.play(memory.observer(), script.batch(kinds=("failed",)), script.worker(1, event="setup_failed"))
    assert memory.one("00 read").attributes["error.type"] == "_OTHER"
    assert memory.one("01 write").attributes["error.type"] == "_OTHER"


def test_failed_teardown_has_a_span(memory, script, boom):
    script.play(memory.observer(), script.batch(), script.worker(event="ended", at=5, error=boom))
    span = memory.one("worker teardown")
    assert span.attributes["error.type"] == "ValueError"
    assert span.end_time <= memory.one("00 read").end_time


def test_lost_tasks_mark_the_run(memory, script):
    script.play(memory.observer(), script.batch(), lost=["1 of 2 tasks between 'read' and 'write'"])
    root = memory.one("run by_hand")
    assert root.status.status_code is StatusCode.ERROR
    assert root.attributes["curator.run.unaccounted"] == ("1 of 2 tasks between 'read' and 'write'",)


def test_messages_are_cut_at_1_kb(memory, script, boom):
    script.play(memory.observer(), script.batch(error=boom._replace(message="ä" * 5000), kinds=("failed",)))
    message = memory.one("process_batch read").events[0].attributes["exception.message"]
    assert message == "ä" * 512


def test_messages_are_omitted_on_request(memory, script, boom):
    secret = boom._replace(message="token=abc")
    observer = memory.observer(exception_messages=False)
    script.play(observer, script.batch(error=secret, kinds=("failed",)), error=RuntimeError("token=abc"))
    assert "token=abc" not in "".join(span.to_json() for span in memory.spans)
    assert memory.one("process_batch read").attributes["error.type"] == "ValueError"
    assert memory.one("process_batch read").status.description == "ValueError"


def test_text_that_cannot_be_encoded_is_replaced(memory, script, boom):
    script.play(memory.observer(), script.batch(error=boom._replace(message="\ud800!"), kinds=("failed",)))
    assert memory.one("process_batch read").events[0].attributes["exception.message"] == "?!"
