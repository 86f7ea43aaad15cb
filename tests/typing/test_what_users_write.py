# SPDX-License-Identifier: Apache-2.0
"""User code as type checkers see it: `nox -s types` checks this file, and the tests run it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, assert_type

from curator_core import (
    CompositeStage,
    LocalExecutor,
    Pipeline,
    Plan,
    ProcessingStage,
    Resources,
    RunResult,
    StagePerfStats,
    Task,
    processing_stage,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class Text(Task[str]):
    """A task with an additional field."""

    language: str = "en"


class Upper(ProcessingStage[Text, Text]):
    """Returns one task for one task, or none."""

    resources = Resources(cpus=0.5)
    batch_size = 8

    def process(self, task: Text) -> Text | None:
        assert_type(task.data, str)
        return Text(data=task.data.upper()) if task.data else None


class Words(ProcessingStage[Text, Task[str]]):
    """Fans out lazily."""

    def process(self, task: Text) -> Iterator[Task[str]]:
        return (Task(data=word) for word in task.data.split())


class Lengths(ProcessingStage[Task[str], Task[int]]):
    """Processes a whole batch at a time, with one entry for each input."""

    def process_batch(self, tasks: list[Task[str]]) -> list[Task[int]]:
        return [Task(data=len(task.data)) for task in tasks]


class LongOnes(ProcessingStage[Task[int], Task[int]]):
    """Returns a batch in which an entry may be None."""

    def process_batch(self, tasks: list[Task[int]]) -> list[Task[int] | None]:
        return [task if task.data > 3 else None for task in tasks]


class Counting(CompositeStage[Text, Task[int]]):
    """Appears as one stage to its user, and compiles to two."""

    def decompose(self) -> list[ProcessingStage[Any, Any]]:
        return [Words(), Lengths()]


@processing_stage(name="negated")
def negated(task: Task[int]) -> Task[int]:
    return Task(data=-task.data)


def test_a_task_knows_the_type_of_its_data() -> None:
    task = Text(data="a b")
    assert_type(task.data, str)
    assert_type(task.language, str)
    assert_type(task.task_id, str)
    assert_type(task.num_items, int)
    assert_type(task.metadata, dict[str, Any])
    assert_type(task.stage_perf, tuple[StagePerfStats, ...])


def test_with_keeps_the_type_of_the_stage() -> None:
    assert_type(Upper().with_(batch_size=2), Upper)


def test_pipelines() -> None:
    pipeline = Pipeline(name="lengths", stages=[Upper(), Counting()])
    assert_type(pipeline.add_stage(LongOnes()).add_stage(negated), Pipeline)
    assert_type(pipeline.compile(), Plan)
    result = pipeline.run(LocalExecutor(), initial_tasks=[Text(data="four letters"), Text(data="")])
    assert_type(result, RunResult)
    assert_type(result.summary(), str)
    assert sorted(task.data for task in result) == [-7, -4]
