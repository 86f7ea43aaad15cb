# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: what an earlier run finished is neither done again nor lost, also where tasks were joined."""

from __future__ import annotations

from typing import Any

import pytest
from nemo_curator.pipeline import Pipeline
from nemo_curator.stages.resources import Resources
from nemo_curator.tasks import FileGroupTask
from tests.nemo.library import Add, Listing, Named, NamedSource, Numbers, Pack, Raises, Writes

from curator_core import Checkpoint, ConfigurationError, LocalExecutor, StageError


@pytest.mark.parametrize("task_class", [Named, Numbers])
def test_finished_source_tasks_are_recognized_in_another_order(tmp_path, task_class):
    listed = tmp_path / "listed"
    executor = LocalExecutor().with_(checkpoint=Checkpoint(tmp_path / "it", accept_changes=True))
    listed.write_text("1 2 3 4")
    with pytest.raises(StageError, match="no 4"):
        Pipeline("it", stages=[Listing(listed, task_class), Raises()]).run(executor)
    listed.write_text("5 3 2 1 4")
    second = Pipeline("it", stages=[Listing(listed, task_class), Add().with_(name="raises")]).run(executor)
    assert len(second.accounting.resumed) == 3
    assert [task.data for task in second] == [[6], [5]]


def test_resources_of_a_stage_may_change(tmp_path):
    executor = LocalExecutor().with_(checkpoint=tmp_path / "it")
    Pipeline("it", stages=[NamedSource([1]), Add()]).run(executor)
    changed = Add().with_(resources=Resources(cpus=2.0), batch_size=3, num_workers=2, runtime_env={"pip": ["x"]})
    assert Pipeline("it", stages=[NamedSource([1]), changed]).run(executor) == []
    with pytest.raises(ConfigurationError, match="stage 'add': amount has changed"):
        Pipeline("it", stages=[NamedSource([1]), Add(2)]).run(executor)


def test_joined_source_tasks_finish_together(tmp_path):
    """A run fails in the middle of joined tasks: those that share an output are all done again, the others are not."""
    out = tmp_path / "out"
    out.mkdir()

    def run(fails_at: int | None) -> Any:
        executor = LocalExecutor().with_(checkpoint=Checkpoint(tmp_path / "it", accept_changes=True))
        return Pipeline("it", stages=[NamedSource(range(15)), Pack(), Writes(str(out), fails_at)]).run(executor)

    with pytest.raises(StageError, match="disk full"):
        run(9)  # in the second batch of five, in the second of its files
    result = run(None)
    assert sorted(result.accounting.resumed) == sorted(f"content{n}" for n in range(5))
    rows = [int(line) for path in out.iterdir() for line in path.read_text().splitlines()]
    assert sorted(rows) == [*range(15)]
    paths = [path for task in result for path in task.data]
    assert sorted(paths) == sorted(map(str, out.iterdir()))
    assert all(type(task) is FileGroupTask for task in result)
