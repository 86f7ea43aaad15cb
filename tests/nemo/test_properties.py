# SPDX-License-Identifier: Apache-2.0
"""Random pipelines of NeMo Curator's kinds of stages, compared with a loop over its own adapters."""

from __future__ import annotations

import copy
import re
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from nemo_curator.pipeline import Pipeline
from tests.nemo.library import (
    Add,
    Anew,
    Batches,
    BatchFilter,
    BatchHoles,
    Even,
    EvenMarked,
    Pack,
    Source,
    Split,
    numbers,
    reference,
)

from curator_core import LocalExecutor

KINDS = [Add, Anew, Even, EvenMarked, Split, Batches, BatchFilter, BatchHoles, Pack]


@st.composite
def stages(draw: st.DrawFn) -> list[Any]:
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=5))
    return [kind().with_(batch_size=draw(st.integers(1, 6))) for kind in kinds]


def shown(tasks: list[Any]) -> list[tuple[str, Any]]:
    """Return ids and payloads; of ids that NeMo Curator chooses at random, only that they are."""
    return [(re.sub(r"^r[0-9a-f-]+", "r", task.task_id), task.data) for task in tasks]


def recorded(tasks: list[Any]) -> list[list[str]]:
    return [[record.stage_name for record in task._stage_perf] for task in tasks]


@given(stages(), st.integers(0, 20), st.booleans())
@settings(deadline=None)
def test_random_pipeline_gives_what_nemo_curator_gives(chosen, count, has_source):
    if has_source:
        pipeline, initial = [Source(count), *chosen], []
    else:
        pipeline, initial = chosen, [numbers(n) for n in range(count + 1)]
    expected = reference(pipeline, initial)
    result = Pipeline("it", stages=copy.deepcopy(pipeline)).run(LocalExecutor(), initial_tasks=copy.deepcopy(initial))
    assert shown(result) == shown(expected)
    if not any(isinstance(stage, Split) for stage in chosen):  # tasks that share a list get each other's records there
        assert recorded(result) == recorded(expected)
    assert list(result.lost) == []
    assert result.accounting.unfinished == ()
    for stage in result.stages:
        assert stage.tasks_in == stage.tasks_passed + stage.tasks_filtered + stage.tasks_merged
