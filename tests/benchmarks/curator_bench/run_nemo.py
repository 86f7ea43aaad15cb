# SPDX-License-Identifier: Apache-2.0
"""NeMo Curator: a stage for each step, or its own stages, on its executors and on ours with default settings."""

from __future__ import annotations

import json
import pkgutil
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from nemo_curator.pipeline import Pipeline
from nemo_curator.stages.base import ProcessingStage
from nemo_curator.stages.resources import Resources
from nemo_curator.tasks import EmptyTask, Task

from curator_bench.harness import Work

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable

EXECUTORS = {
    "xenna": "nemo_curator.backends.xenna:XennaExecutor",
    "ray-data": "nemo_curator.backends.ray_data:RayDataExecutor",
    "actor-pool": "nemo_curator.backends.ray_actor_pool:RayActorPoolExecutor",
    "ours-xenna": "curator_xenna:XennaExecutor",
    "ours-local": "curator_core:LocalExecutor",
}
OPTIONS = (("--executor", "xenna"), ("--cpus", 0.0), ("--settings", "{}"))


@dataclass
class Item(Task[Any]):
    """A payload as a task."""

    @property
    def num_items(self) -> int:
        """One payload is one item."""
        return 1

    def validate(self) -> bool:
        """Accept any payload."""
        return True


class StepStage(ProcessingStage[Item, Item]):
    """A step as a stage.

    Args:
        call: The step.
    """

    name = "Step"

    def __init__(self, call: Callable[[Any], Any]) -> None:
        self._call = call

    def process(self, task: Item) -> Item | None:
        """See `ProcessingStage`. Changes the task in place, as usual in NeMo Curator: the task keeps its history."""
        task.data = self._call(task.data)
        return None if task.data is None else task


class SourceStage(ProcessingStage[EmptyTask, Item]):
    """A source as a stage.

    Args:
        call: Returns the payloads.
    """

    name = "Source"

    def __init__(self, call: Callable[[Any], list[Any]]) -> None:
        self._call = call

    def process(self, task: EmptyTask) -> list[Item]:
        """See `ProcessingStage`."""
        return [Item(dataset_name="bench", data=payload) for payload in self._call(None)]


def pipeline_of(work: Work, cpus: float) -> Pipeline:
    """Return the pipeline."""
    resources = Resources(cpus=cpus)
    pipeline = Pipeline("bench")
    if work.nemo_stages:
        parts = Pipeline("bench", stages=work.nemo_stages)
        parts.build()  # composites have no resources of their own
        for part in parts.stages:
            pipeline.add_stage(part.with_(resources=resources))
    if work.source:
        pipeline.add_stage(SourceStage(work.source.call).with_(resources=resources))
    for step in work.steps:
        stage = StepStage(step.call).with_(name=step.name, resources=resources, batch_size=step.batch)
        pipeline.add_stage(stage.with_(num_workers=step.workers) if step.workers else stage)
    return pipeline


def prepare(work: Work, given: Namespace) -> Callable[[], list[Any]]:
    """See `harness.main`."""
    executor = executor_of(given)

    def go() -> list[Any]:
        tasks = [Item(dataset_name="bench", data=payload) for payload in work.inputs]
        cpus = given.cpus or work.cpus
        return [task.data for task in pipeline_of(work, cpus).run(executor(), initial_tasks=tasks or None)]

    return go


def executor_of(given: Namespace) -> Callable[[], Any]:
    """Import an executor, before the clock starts, and return what makes it."""
    if given.executor == "ours-xenna":
        import cosmos_xenna.pipelines.v1  # noqa: F401 - as the other executors do
    executor_class = pkgutil.resolve_name(EXECUTORS[given.executor])  # only this one must be importable
    return partial(executor_class, **json.loads(given.settings))
