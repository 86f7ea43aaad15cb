# SPDX-License-Identifier: Apache-2.0
"""The inputs of a batch in its report, which contains outcomes only for exceptions to the rule."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator_core import BatchReport
from curator_core._reports.batch import InputOutcome, Tally, input_fields

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
