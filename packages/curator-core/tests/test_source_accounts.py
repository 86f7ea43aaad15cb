# SPDX-License-Identifier: Apache-2.0
"""What is known of source tasks, held against a plain model of everything that is on its way."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from curator_core import Plan, ProcessingStage, Task
from curator_core.ledger import Ledger
from curator_core.report import BatchReport, ErrorInfo, InputOutcome, Manifest, Outcomes
from curator_core.sources import Finished, SourceAccounts
from curator_core.task import child_id

STAGES = 3
ERROR = ErrorInfo("ValueError", "no", "")


def report(stage: int, *outcomes: tuple[str, str, int], manifests: tuple[Manifest, ...] = ()) -> BatchReport:
    inputs = Outcomes.of(InputOutcome(*outcome) for outcome in outcomes)
    failed = any(kind in ("failed", "retried") for _, kind, _ in outcomes)
    return BatchReport(
        "run",
        stage,
        f"stage {stage}",
        "batch",
        "worker",
        "node",
        1,
        0,
        1,
        1,
        inputs,
        error=ERROR if failed else None,
        manifests=manifests,
    )


def accounts(*source_ids: str, first: int = 0) -> SourceAccounts:
    made = SourceAccounts(STAGES - 1, first)
    for source_id in source_ids:
        made.admit(source_id)
    return made


def finished(book: SourceAccounts, *told: BatchReport) -> list[str]:
    return [each.source_id for one in told for each in book.on_batch(one)]


def test_a_task_that_goes_through_is_finished_by_the_last_stage():
    book = accounts("0", "1")
    assert finished(book, report(0, ("0", "out", 1), ("1", "out", 1)), report(1, ("0", "out", 1))) == []
    assert finished(book, report(2, ("0", "out", 1))) == ["0"]
    assert book.unfinished == ["1"]


def test_a_task_that_is_dropped_is_finished_where_it_is():
    book = accounts("0", "1")
    assert finished(book, report(0, ("0", "filtered", 0), ("1", "out", 1))) == ["0"]


def test_a_task_is_finished_with_the_last_of_what_it_became():
    book = accounts("0")
    assert finished(book, report(0, ("0", "out", 3)), report(2, ("0.1", "out", 1), ("0.0", "filtered", 0))) == []
    assert finished(book, report(1, ("0.2", "out", 2)), report(2, ("0.2.1", "out", 5))) == []
    assert finished(book, report(2, ("0.2.0", "out", 1))) == ["0"]
    assert book.unfinished == []


def test_failures_finish_as_well_and_are_told():
    book = accounts("0")
    told = [*book.on_batch(report(0, ("0", "out", 2)))]
    told += book.on_batch(report(1, ("0.0", "failed", 0), ("0.1", "failed", 0)))
    assert told == [Finished("0", 2, ())]


def test_what_is_tried_again_is_not_finished():
    book = accounts("0")
    assert finished(book, report(2, ("0", "retried", 0))) == []
    assert finished(book, report(2, ("0", "out", 1))) == ["0"]


def test_what_was_written_goes_along():
    book = accounts("0", "1")
    one, two = Manifest("0.0", "0.0", ["a"], ""), Manifest("0.1", "0.1", ["b"], "")
    other = Manifest("1", "1", ["c"], "")
    told = [*book.on_batch(report(0, ("0", "out", 2)))]
    told += book.on_batch(report(2, ("0.0", "out", 1), ("1", "out", 1), manifests=(one, other)))
    told += book.on_batch(report(2, ("0.1", "out", 1), manifests=(two,)))
    assert told == [Finished("1", 0, (other,)), Finished("0", 0, (one, two))]


def test_a_source_in_the_driver_is_no_source_task():
    book = accounts("0", first=1)
    assert finished(book, report(0, ("", "out", 1))) == []
    assert finished(book, report(2, ("0", "out", 1))) == ["0"]


def test_a_source_on_a_worker_stands_for_all_it_makes():
    book = accounts("", first=1)
    assert finished(book, report(0, ("", "out", 2)), report(2, ("0", "out", 1))) == []
    assert finished(book, report(2, ("named", "out", 1))) == [""]


def test_tasks_that_were_made_by_a_run_before_are_told_apart():
    book = accounts("3.0", "3.1", "30")
    assert finished(book, report(2, ("3.1", "out", 1))) == ["3.1"]
    assert finished(book, report(1, ("3.0", "out", 2)), report(2, ("3.0.1", "out", 1))) == []
    assert book.unfinished == ["3.0", "30"]


def test_what_was_never_admitted_is_left_alone():
    book = accounts("0")
    assert finished(book, report(2, ("7", "out", 1), ("7.1", "failed", 0))) == []
    assert book.unfinished == ["0"]


outcome = st.sampled_from(
    [("out", 0), ("out", 0), ("list", 1), ("list", 2), ("list", 3), ("filtered", 0), ("failed", 0)]
)


@given(st.data(), st.integers(1, 6))
def test_a_source_task_is_finished_when_nothing_of_it_is_on_its_way(data, count):
    ids = [str(number) for number in range(count)]
    book = accounts(*ids)
    waiting: list[tuple[int, str]] = [(0, source_id) for source_id in ids]
    done: set[str] = set()
    for _ in range(200):
        if not waiting:
            break
        stage = data.draw(st.sampled_from(sorted({stage for stage, _ in waiting})))
        batch = [task_id for at, task_id in waiting if at == stage][: data.draw(st.integers(1, 3))]
        if data.draw(st.booleans()):
            assert finished(book, report(stage, *((task_id, "retried", 0) for task_id in batch))) == []
        told = []
        for task_id in batch:
            waiting.remove((stage, task_id))
            what, number = data.draw(outcome)
            children = [task_id] if what == "out" else [child_id(task_id, index) for index in range(number)]
            told.append((task_id, "out" if what == "list" else what, len(children)))
            if stage + 1 < STAGES:
                waiting += [(stage + 1, child) for child in children]
            if what in ("filtered", "failed"):
                assert children == []
        gone = set(finished(book, report(stage, *told)))
        left = {task_id.split(".")[0] for _, task_id in waiting}
        done |= gone
        assert done == set(ids) - left
        assert set(book.unfinished) == left


class Step(ProcessingStage[Task, Task]):
    def process(self, task: Task) -> Task:
        return task


PLAN = Plan.from_stages([Step().with_(name=f"stage {number}") for number in range(STAGES)], fed=True)


@given(st.data(), st.integers(1, 6))
def test_accounts_add_up_however_often_it_is_begun_again(data, count):
    """What becomes of a task may be another thing each time; what counts is the last time from its source on."""
    ids = [str(number) for number in range(count)]
    book, ledger = accounts(*ids), Ledger(PLAN)
    book.may_begin_again = True
    waiting: list[tuple[int, str]] = [(0, source_id) for source_id in ids]
    counted: dict[str, list[list[int]]] = {}  # by source task and stage: in, out, filtered, failed
    begun_again = 0
    while waiting:
        if begun_again < 3 and data.draw(st.integers(0, 9)) == 0:
            begun_again += 1
            unfinished = book.unfinished
            assert {task_id.split(".")[0] for _, task_id in waiting} == set(unfinished)
            for stage, tally in book.begin_again().items():
                ledger.take_back(stage, tally)
            counted = {source_id: kept for source_id, kept in counted.items() if source_id not in unfinished}
            waiting = [(0, source_id) for source_id in unfinished]
        stage, task_id = data.draw(st.sampled_from(waiting))
        waiting.remove((stage, task_id))
        what, number = data.draw(outcome)
        children = [task_id] if what == "out" else [child_id(task_id, index) for index in range(number)]
        kind = "out" if what == "list" else what
        if stage + 1 < STAGES:
            waiting += [(stage + 1, child) for child in children]
        told = report(stage, (task_id, kind, len(children)))
        ledger.on_batch(told)
        book.on_batch(told)
        mine = counted.setdefault(task_id.split(".")[0], [[0] * 4 for _ in range(STAGES)])[stage]
        for at, more in enumerate((1, len(children), kind == "filtered", kind == "failed")):
            mine[at] += more
    assert book.unfinished == []
    assert ledger.lost(count) == []
    for stage, summary in enumerate(ledger.summaries()):
        expected = [sum(kept[stage][at] for kept in counted.values()) for at in range(4)]
        assert [summary.tasks_in, summary.tasks_out, summary.tasks_filtered, summary.tasks_failed] == expected
