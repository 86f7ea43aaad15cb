# SPDX-License-Identifier: Apache-2.0
"""The outcomes of the inputs of a batch: a sequence that stores only exceptions to the rule."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator_core._reports.batch import BatchReport, InputOutcome, Outcomes, Tally
from curator_core._transport.pickling import dumps, loads

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


def report_of(outcomes: Any) -> BatchReport:
    return BatchReport("r", 0, "s", "0/0", "w", "n", 1, 0, 0, 0, outcomes)


@given(rows)
def test_they_read_as_the_outcomes_they_were_made_of(known):
    outcomes = Outcomes.of(iter(known))
    assert isinstance(outcomes, Sequence)
    assert len(outcomes) == len(known)
    assert bool(outcomes) is bool(known)
    assert tuple(outcomes) == known
    assert tuple(reversed(outcomes)) == known[::-1]
    assert all(isinstance(outcome, InputOutcome) for outcome in outcomes)
    for index in range(-len(known), len(known)):
        assert outcomes[index] == known[index]
    for outcome in known:
        assert outcome in outcomes
        assert outcomes.index(outcome) == known.index(outcome)
        assert outcomes.count(outcome) == known.count(outcome)
    assert InputOutcome("no such task", "out", 1) not in outcomes
    assert repr(outcomes) == f"Outcomes{known!r}"


@given(rows, st.slices(8))
def test_slices_are_tuples(known, part):
    assert Outcomes.of(known)[part] == known[part]
    assert type(Outcomes.of(known)[part]) is tuple


@pytest.mark.parametrize("index", [5, -6, 100])
def test_beyond_the_ends_there_is_nothing(index):
    with pytest.raises(IndexError):
        Outcomes.of(SOME)[index]


def test_an_index_is_a_whole_number():
    with pytest.raises(TypeError):
        Outcomes.of(SOME)["0"]


@given(rows, rows)
def test_they_are_equal_where_their_outcomes_are(first, second):
    one, other = Outcomes.of(first), Outcomes.of(second)
    assert (one == other) is (first == second)
    assert (one != other) is (first != second)
    assert one == Outcomes.of(first)
    assert hash(one) == hash(Outcomes.of(first))
    assert (one == second) is (second == one) is (first == second)
    assert (one == list(second)) is (first == second)


@pytest.mark.parametrize("other", [5, None, "01234", {"0": 1}, ("0", "1", "2", "3", "4"), SOME[:4], iter(SOME)])
def test_they_are_not_equal_to_anything_else(other):
    assert Outcomes.of(SOME) != other


@given(rows)
def test_they_travel(known):
    outcomes = Outcomes.of(known)
    for there in (pickle.loads(pickle.dumps(outcomes)), loads(dumps(outcomes)), copy.deepcopy(outcomes)):
        assert type(there) is Outcomes
        assert there == outcomes
        assert there.tally() == outcomes.tally()


def test_they_travel_light():
    known = tuple(InputOutcome(f"{number}.{number % 3}", "out", 1) for number in range(1000))
    light, plain = len(pickle.dumps(Outcomes.of(known))), len(pickle.dumps(known))
    assert light < 0.6 * plain
    ids = len(pickle.dumps(tuple(outcome.task_id for outcome in known)))
    assert light < ids + 100
    mixed = (*known[:900], *(InputOutcome(task_id, "filtered", 0) for task_id, _, _ in known[900:]))
    assert len(pickle.dumps(Outcomes.of(mixed))) < 0.7 * len(pickle.dumps(mixed))


# --- counts of outcomes ---------------------------------------------------------------------------------


@given(rows)
def test_the_tally_counts_each_kind(known):
    kinds = [kind for _, kind, _ in known]
    assert Outcomes.of(known).tally() == Tally(
        passed=kinds.count("out"),
        filtered=kinds.count("filtered"),
        failed=kinds.count("failed"),
        retried=kinds.count("retried"),
        out=sum(count for _, _, count in known),
    )


def test_all_inputs_can_be_said_to_have_come_to_the_same():
    outcomes = Outcomes.of(SOME)
    failed = outcomes.all_as("failed")
    assert [*failed] == [InputOutcome(str(number), "failed", 0) for number in range(5)]
    assert failed.tally() == Tally(failed=5)
    assert report_of(failed).num_out == 0
    assert outcomes == SOME


@pytest.mark.parametrize(
    ("outcomes", "retried"),
    [
        (Outcomes((), {}), False),
        (Outcomes.of(SOME), False),
        (Outcomes.of(SOME).all_as("retried"), True),
        (Outcomes.of(SOME).all_as("failed"), False),
    ],
)
def test_a_report_says_whether_its_inputs_come_again(outcomes, retried):
    assert outcomes.are_retried is retried
    assert report_of(outcomes).is_retried is retried
