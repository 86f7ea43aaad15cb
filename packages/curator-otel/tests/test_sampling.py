# SPDX-License-Identifier: Apache-2.0
"""The budget of spans, held against whatever may come."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator_core.report import BatchReport, ErrorInfo, InputOutcome, Outcomes
from curator_otel.sampling import Lineages, SpanBudget

BOOM = ErrorInfo("ValueError", "boom", "")


def batch(stage=0, task="0", parents=(), *, number=1, error=None):
    return BatchReport(
        run_id="r",
        stage_index=stage,
        stage_name=str(stage),
        batch_id=f"{stage}/{task}",
        worker_id="w",
        node_id="n",
        pid=1,
        sequence=number,
        start_unix_ns=1,
        duration_ns=1,
        inputs=Outcomes.of([InputOutcome(task, "out", 1)]),
        parents=tuple(parents),
        error=error,
    )


@st.composite
def runs(draw):
    """Batches of a pipeline in the order of their coming: each task goes through all stages, some fan out."""
    stages = draw(st.integers(1, 6))
    reports = []
    for task in range(draw(st.integers(0, 60))):
        made = [(str(task), ())]
        for stage in range(stages):
            fans_out = draw(st.integers(1, 3)) if stage == 0 else 1
            below = []
            for name, parents in made:
                error = BOOM if draw(st.integers(0, 9)) == 0 else None
                report = batch(stage, name, parents, number=draw(st.integers(0, 2)), error=error)
                reports.append(report)
                below += [(f"{name}.{n}" if fans_out > 1 else name, (report.batch_id,)) for n in range(fans_out)]
            made = below
    return draw(st.integers(1, 300)), stages, reports


@given(runs())
def test_the_limit_holds_and_everything_is_counted(case):
    limit, stages, reports = case
    budget = SpanBudget(limit, stages)
    admitted = [budget.admit_batch(report) for report in reports]
    late = [
        budget.left_out[stage] and budget.admit_slowest(stage, window)
        for window in range(budget.windows.most)
        for stage in range(stages)
    ]
    made = sum(kept is not None for kept in admitted) + sum(map(bool, late))
    assert made + budget.windows.most * stages + stages + 2 <= max(limit, stages + 2)
    assert sum(budget.left_out) == len(reports) - made
    assert min(budget.left_out, default=0) >= 0


@given(runs())
def test_a_lineage_that_has_begun_goes_on_while_there_is_room(case):
    _, stages, reports = case
    lineages = Lineages(10_000, stages)
    kept = {report.batch_id for report in reports if lineages.admit(report)}
    for report in reports:
        assert (report.batch_id in kept) == (not report.parents or bool(kept.intersection(report.parents)))


@given(runs())
def test_no_batch_is_kept_for_its_lineage_whose_makers_are_not(case):
    limit, stages, reports = case
    lineages = Lineages(limit, stages)
    kept = set()
    for report in reports:
        if lineages.admit(report):
            assert not report.parents or kept.intersection(report.parents)
            kept.add(report.batch_id)


def test_nothing_of_a_small_run_is_left_out():
    budget = SpanBudget(1500, 3)
    for task in range(50):
        for stage in range(3):
            parents = [f"{stage - 1}/{task}"] if stage else []
            assert budget.admit_batch(batch(stage, str(task), parents)) == "lineage"
    assert budget.left_out == [0, 0, 0]


def test_the_lineages_of_a_source_begin_below_it():
    lineages = Lineages(100, 2)
    source = batch(0, "")
    kept = [lineages.admit(batch(1, str(task), [source.batch_id])) for task in range(1000)]
    assert not lineages.admit(source)  # reported last, where it streams; it is its worker's first, and kept as that
    assert 0 < sum(kept) <= 50
    assert any(kept[500:])  # something is left for what comes later


def test_the_same_lineages_are_chosen_in_every_run():
    def chosen():
        lineages = Lineages(100, 2)
        return [task for task in range(1000) if lineages.admit(batch(0, str(task)))]

    assert chosen() == chosen()


@pytest.mark.parametrize("stages", [1, 3, 12])
def test_a_crowd_of_one_kind_leaves_room_for_the_others(stages):
    for crowd in (batch(0, "x"), batch(0, number=0), batch(0, error=BOOM)):
        budget = SpanBudget(1500, stages)
        for number in range(5000):
            budget.admit_batch(crowd._replace(inputs=Outcomes.of([InputOutcome(str(number), "out", 1)])))
            budget.admit_worker(0, failed=False) if crowd.sequence else None
        kinds = Counter()
        if crowd.error is None:
            kinds[budget.admit_batch(batch(stages - 1, "q", ["?"], error=BOOM))] += 1
        if crowd.sequence:
            kinds[budget.admit_batch(batch(stages - 1, "r", ["?"], number=0))] += 1
        kinds["slowest" if budget.admit_slowest(stages - 1, 0) else None] += 1
        assert None not in kinds


def test_the_slowest_are_spread_over_all_windows():
    budget = SpanBudget(1500, 40)
    turns = [window for window in range(budget.windows.most) if budget.admit_slowest(0, window)]
    assert turns[0] == 0
    assert len(turns) == 5  # 15% of 1,458, for 40 stages
    gaps = {later - earlier for earlier, later in itertools.pairwise(turns)}
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("limit", [1, 3, 5])
def test_a_tiny_limit_leaves_the_run_and_its_stages(limit):
    budget = SpanBudget(limit, 3)
    assert budget.admit_batch(batch(error=BOOM)) is None
    assert not budget.admit_worker(1, failed=True)
    assert not budget.admit_slowest(0, 0)
    assert budget.windows.most == 0
    assert budget.left_out == [1, 1, 0]
