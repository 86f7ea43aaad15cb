# SPDX-License-Identifier: Apache-2.0
"""The budget of spans, held against whatever may come."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator_otel.sampling import SpanBudget

REASONS = ("error", "first", "setup", "rest")


@st.composite
def arrivals(draw):
    stages = draw(st.integers(1, 12))
    asked = st.tuples(st.integers(0, stages - 1), st.sampled_from(REASONS))
    return draw(st.integers(1, 300)), stages, draw(st.lists(asked, max_size=400))


@given(arrivals())
def test_the_limit_holds_and_everything_is_counted(case):
    limit, stages, asked = case
    budget = SpanBudget(limit, stages)
    admitted = [budget.admit(stage, reason) for stage, reason in asked]
    assert sum(admitted) == budget.kept
    assert budget.kept + stages + 1 <= max(limit, stages + 1)
    refused = Counter(stage for (stage, _), yes in zip(asked, admitted, strict=True) if not yes)
    assert budget.left_out == [refused[stage] for stage in range(stages)]


@given(arrivals())
def test_nothing_is_left_out_while_all_of_it_fits(case):
    _, stages, asked = case
    # A tenth may go to errors, set-ups and first batches each; the share of each stage is its own.
    budget = SpanBudget(stages + 1 + 4 * max(1, len(asked)), stages)
    assert all(budget.admit(stage, reason) for stage, reason in asked)
    assert budget.left_out == [0] * stages


@given(st.integers(1, 12), st.integers(0, 11), st.sampled_from(REASONS))
def test_a_crowd_of_one_kind_leaves_room_for_the_others(stages, crowded, reason):
    crowded %= stages
    budget = SpanBudget(1500, stages)
    for _ in range(5000):
        budget.admit(crowded, reason)
    for other in set(REASONS) - {reason, "rest"}:
        assert budget.admit(crowded, other)
    for stage in range(stages):
        if stage != crowded:
            assert budget.admit(stage, "rest")


def test_a_single_stage_may_use_the_whole_of_the_rest():
    budget = SpanBudget(1002, 1)
    for _ in range(5000):
        budget.admit(0, "rest")
    assert budget.kept == 700  # a tenth each for errors, first batches and set-ups is kept back


@pytest.mark.parametrize("limit", [1, 3, 4])
def test_a_tiny_limit_leaves_the_run_and_its_stages(limit):
    budget = SpanBudget(limit, 3)
    assert not budget.admit(0, "error")
    assert budget.left_out == [1, 0, 0]
