# SPDX-License-Identifier: Apache-2.0
"""The limit on spans: which spans are kept in any run, and that all others are counted."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator_core import ConfigurationError
from curator_core._reports.batch import ErrorInfo, InputOutcome, input_fields
from curator_otel import OTelObserver

BOOM = ErrorInfo("ValueError", "boom", "")
NO_LINEAGE = ("a batch that has no span",)
EVERYTHING_FITS = 10_000


def kept_batches(memory):
    """Return the batches that have a span, by id, with the reason."""
    batches = [span.attributes for span in memory.spans if span.name.startswith("process_batch")]
    return {batch["curator.batch.id"]: batch["curator.batch.kept_as"] for batch in batches}


def left_out(memory, script):
    return [span.attributes["curator.span.left_out"] for span in memory.spans if span.name[3:] in script.stages]


@st.composite
def runs(draw):
    """Draw a limit, the number of stages, and batches in order of arrival: some fan out, some fail."""
    limit = draw(st.integers(1, 10) | st.integers(1, 300) | st.just(EVERYTHING_FITS))
    stages, tasks, chance = draw(st.integers(1, 6)), draw(st.integers(0, 60)), draw(st.randoms(use_true_random=True))
    batches = []
    for task in range(tasks):
        made = [(str(task), ())]
        for stage in range(stages):
            fans_out = chance.randint(1, 3) if stage == 0 else 1
            below = []
            for name, parents in made:
                batch_id = f"{stage}/{name}"
                batches.append((stage, name, batch_id, parents, chance.randint(0, 2), chance.random() < 0.1))
                below += [(f"{name}.{n}" if fans_out > 1 else name, (batch_id,)) for n in range(fans_out)]
            made = below
    return limit, stages, batches


@given(case=runs())
def test_any_run_keeps_the_limit_counts_the_rest_and_keeps_whole_lineages(make_memory, make_script, case):
    limit, stages, batches = case
    memory, script = make_memory(), make_script(*(f"s{index}" for index in range(stages)))
    reports = [
        script.batch(stage, sequence, batch_id=batch_id, parents=parents, error=BOOM if fails else None)._replace(
            **input_fields([InputOutcome(name, "out", 1)])
        )
        for stage, name, batch_id, parents, sequence, fails in batches
    ]
    script.play(memory.observer(max_spans=limit), *reports)
    kept = kept_batches(memory)
    assert len(memory.spans) <= max(limit, stages + 2)  # spans of the run, its start, and its stages are always kept
    assert len(left_out(memory, script)) == (stages if reports else 0)
    assert sum(left_out(memory, script)) == len(reports) - len(kept)
    assert memory.one("run by_hand").attributes["curator.span.left_out"] == len(reports) - len(kept)
    if limit == EVERYTHING_FITS:
        assert len(kept) == len(reports)
    for report in reports:
        if kept.get(report.batch_id) == "lineage":
            assert not report.parents or not kept.keys().isdisjoint(report.parents)


def test_whole_lineages_are_sampled_evenly_and_reproducibly(make_memory, script):
    def chosen():
        memory = make_memory()
        reports = [
            script.batch(stage, 1, batch_id=f"{stage}/{task}", parents=(f"0/{task}",) if stage else ())._replace(
                **input_fields([InputOutcome(str(task), "out", 1)])
            )
            for task in range(1000)
            for stage in (0, 1)
        ]
        script.play(memory.observer(max_spans=300), *reports)
        tasks = defaultdict(list)
        for batch_id in kept_batches(memory):
            stage, _, task = batch_id.partition("/")
            tasks[stage].append(int(task))
        return tasks["0"], tasks["1"]

    read, write = chosen()
    assert read == write
    assert len(read) > 10
    assert any(task > 500 for task in read)
    assert chosen() == (read, write)


def test_lineages_begin_below_a_source_that_reports_last(memory, script):
    source = script.batch(0, 0, batch_id="0/", **input_fields([InputOutcome("", "out", 1000)]))
    tasks = [
        script.batch(1, 1, batch_id=f"1/{n}", parents=("0/",), **input_fields([InputOutcome(str(n), "out", 1)]))
        for n in range(1000)
    ]
    script.play(memory.observer(max_spans=300), *tasks, source)
    kept = kept_batches(memory)
    assert kept.pop("0/") == "first"
    assert set(kept.values()) == {"lineage"}
    assert any(int(batch_id[2:]) > 500 for batch_id in kept)


@pytest.mark.parametrize("stages", [2, 12])
@pytest.mark.parametrize("crowd", [{}, {"sequence": 0}, {"error": BOOM, "kinds": ("failed",)}])
def test_many_spans_of_one_kind_leave_room_for_others(memory, make_script, stages, crowd):
    script = make_script("read", *(f"s{number}" for number in range(2, stages)), "write")
    last = stages - 1
    script.play(
        memory.observer(max_spans=200),
        *(script.batch(0, number, **{"sequence": number + 1} | crowd) for number in range(1000)),
        *(script.worker(0) for _ in range(100)),
        script.batch(last, 0, batch_id="first", parents=NO_LINEAGE),
        script.batch(last, 7, batch_id="error", parents=NO_LINEAGE, error=BOOM, kinds=("failed",)),
        script.worker(last, event="setup_failed", error=BOOM),
    )
    kept = kept_batches(memory)
    assert "sequence" in crowd or kept["first"] == "first"
    assert "error" in crowd or kept["error"] == "error"
    setups = [span.attributes["curator.stage.name"] for span in memory.named("worker setup")]
    assert "read" in setups
    assert "error" in crowd or "write" in setups
    assert len(memory.spans) <= 200


@pytest.mark.parametrize("max_spans", [0, -1, 1.5, "many", True, None])
def test_invalid_limit_is_rejected(max_spans):
    with pytest.raises(ConfigurationError, match="max_spans"):
        OTelObserver(max_spans=max_spans)
