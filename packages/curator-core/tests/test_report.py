# SPDX-License-Identifier: Apache-2.0
"""The inputs of a batch in its report, which contains outcomes only for exceptions to the rule, and their totals."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from functools import reduce
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator_core import BatchReport
from curator_core._reports.batch import FIELD_OF, InputOutcome, OutcomeKind, Tally, input_fields
from curator_core.observers import ErrorInfo, StageTotals, WorkerReport

a_kind_and_count = st.one_of(
    st.just(("out", 1)),
    st.tuples(st.just("out"), st.integers(1, 9)),
    st.tuples(st.sampled_from(["filtered", "failed", "retried"]), st.just(0)),
    st.tuples(st.just("failed"), st.integers(1, 9)),
)
rows = st.lists(st.tuples(st.text(max_size=3), a_kind_and_count), max_size=8).map(
    lambda pairs: tuple(InputOutcome(task_id, kind, count) for task_id, (kind, count) in pairs)
)

SOME = (
    InputOutcome("0", "out", 1),
    InputOutcome("1", "filtered", 0),
    InputOutcome("2", "out", 3),
    InputOutcome("3", "failed", 0),
    InputOutcome("4", "out", 1),
)


def report_of(outcomes: Iterable[InputOutcome]) -> BatchReport:
    return BatchReport("r", 0, "s", "0/0", "w", "n", 1, 0, 0, 0, **input_fields(outcomes))


@given(rows)
def test_inputs_are_the_outcomes_that_the_report_was_made_from(known):
    report = report_of(iter(known))
    assert report.inputs == known
    assert report.num_in == len(known)
    assert report.input_ids == tuple(outcome.task_id for outcome in known)


@given(rows, rows)
def test_reports_are_equal_if_their_outcomes_are(first, second):
    assert (report_of(first) == report_of(second)) is (first == second)


def test_one_output_for_each_input_adds_nothing_to_the_ids():
    known = tuple(InputOutcome(f"{number}.{number % 3}", "out", 1) for number in range(1000))
    assert report_of(known).other_outcomes == {}
    mixed = (*known[:900], *(InputOutcome(task_id, "filtered", 0) for task_id, _, _ in known[900:]))
    assert len(pickle.dumps(report_of(mixed))) < 0.7 * len(pickle.dumps(mixed))


def test_tally_has_a_field_for_each_outcome():
    assert [*FIELD_OF] == [*get_args(OutcomeKind)]
    assert (*FIELD_OF.values(), "out") == Tally._fields


@given(rows)
def test_tally_counts_each_kind(known):
    kinds = [kind for _, kind, _ in known]
    expected = Tally(
        passed=kinds.count("out"),
        filtered=kinds.count("filtered"),
        failed=kinds.count("failed"),
        retried=kinds.count("retried"),
        out=sum(count for _, _, count in known),
    )
    assert report_of(known).tally() == expected
    assert report_of(known).num_out == expected.out


def test_all_as_replaces_each_outcome():
    report = report_of(SOME)
    failed = report.all_as("failed")
    assert failed.inputs == tuple(InputOutcome(str(number), "failed", 0) for number in range(5))
    assert failed.tally() == Tally(failed=5)
    assert report.inputs == SOME


@pytest.mark.parametrize(
    ("report", "retried"),
    [
        (report_of(()), False),
        (report_of(SOME), False),
        (report_of(SOME).all_as("retried"), True),
        (report_of(SOME).all_as("failed"), False),
    ],
)
def test_is_retried_if_all_inputs_are(report: Any, retried: bool):
    assert report.is_retried is retried


# --- totals of a stage --------------------------------------------------------------------------------------

ERROR = ErrorInfo("ValueError", "bad", "")


def timed(outcomes: Iterable[InputOutcome], start: int, took: int, error: ErrorInfo | None = None) -> BatchReport:
    some = {"start_unix_ns": start, "duration_ns": took, "cpu_ns": took // 2, "idle_ns": took // 3, "num_items": start}
    return report_of(outcomes)._replace(**some, error=error)


some_batches = st.builds(
    timed,
    rows.map(lambda known: [outcome for outcome in known if outcome.kind != "retried"]),
    st.integers(1, 50),
    st.integers(0, 50),
    st.sampled_from([None, ERROR]),
)


@given(st.lists(some_batches))
def test_totals_of_a_stage_are_the_sums_of_its_reports(reports):
    totals = StageTotals()
    outcomes = [totals.add(report) for report in reports]
    assert outcomes == ["ok" if report.error is None else "failed" for report in reports]
    assert (totals.batches_ok, totals.batches_failed) == (outcomes.count("ok"), outcomes.count("failed"))
    assert totals.batches == len(reports)
    tally = reduce(Tally.plus, (report.tally() for report in reports), Tally())
    assert (totals.passed, totals.filtered, totals.failed, totals.out) == (*tally[:3], tally.out)
    assert totals.tasks_in == sum(report.num_in for report in reports)
    for name, field in (("process_ns", "duration_ns"), ("cpu_ns", "cpu_ns"), ("idle_ns", "idle_ns")):
        assert getattr(totals, name) == sum(getattr(report, field) for report in reports)
    assert totals.items == sum(report.num_items for report in reports)
    assert totals.first_ns == min((report.start_unix_ns for report in reports), default=0)
    assert totals.last_ns == max((report.end_unix_ns for report in reports), default=0)


def test_only_the_time_of_a_retried_attempt_counts():
    totals = StageTotals()
    assert totals.add(timed(SOME, 7, 12, ERROR).all_as("retried")) == "retried"
    assert (totals.batches_retried, totals.batches, totals.tasks_in, totals.items) == (1, 0, 0, 0)
    assert (totals.process_ns, totals.cpu_ns, totals.idle_ns, totals.first_ns, totals.last_ns) == (12, 6, 4, 7, 19)


def test_only_the_setup_of_a_worker_counts():
    totals = StageTotals()
    for event in ("ready", "setup_failed", "ready", "ended"):
        totals.add_worker(WorkerReport("r", 0, "s", "w", "n", 1, event, 100, 5))
    assert (totals.workers, totals.startup_ns, totals.last_ns) == (2, 10, 0)
