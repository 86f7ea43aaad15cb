# SPDX-License-Identifier: Apache-2.0
"""Stages and tasks of NeMo Curator for the tests, and a plain loop over NeMo Curator's own adapters to compare with."""

from __future__ import annotations

import copy
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loguru import logger
from nemo_curator.backends.base import BaseStageAdapter
from nemo_curator.pipeline import Pipeline
from nemo_curator.pipeline.pipeline import assign_root_task_ids
from nemo_curator.stages.base import CompositeStage, ProcessingStage
from nemo_curator.stages.resources import Resources
from nemo_curator.tasks import EmptyTask, FileGroupTask, Task
from nemo_curator.tasks.sentinels import FailedTask, NoneTask
from nemo_curator.tasks.utils import TaskPerfUtils

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MINE = logger.bind(module=__name__)  # a logger in a global


@dataclass
class Numbers(Task[list[int]]):
    """A list of numbers."""

    @property
    def num_items(self) -> int:
        return len(self.data)

    def validate(self) -> bool:
        return True


def numbers(*data: int) -> Numbers:
    return Numbers(dataset_name="numbers", data=list(data))


class Source(ProcessingStage[EmptyTask, Numbers]):
    """Makes tasks of one number each, in the driver, although it asks for half a CPU and one worker."""

    name = "source"
    resources = Resources(cpus=0.5)

    def __init__(self, count: int = 8) -> None:
        self.count = count

    def num_workers(self) -> int | None:
        return 1

    def process(self, _: EmptyTask) -> list[Numbers]:
        return [numbers(n) for n in range(self.count)]


class Named(Numbers):
    """Numbers whose id is made from the content."""

    def get_deterministic_id(self) -> str:
        return f"content{self.data[0]}"


class NamedSource(Source):
    """Makes tasks with content ids, in an order of choice."""

    def __init__(self, data: Iterable[int]) -> None:
        self.data = list(data)

    def process(self, _: EmptyTask) -> list[Numbers]:
        return [Named(dataset_name="numbers", data=[n]) for n in self.data]


class Listing(Source):
    """Lists the numbers in a file, each as a task with or without a content id, with a note that differs every time."""

    name = "listing"

    def __init__(self, path: Path, task_class: type[Numbers] = Named) -> None:
        self.path, self.task_class = str(path), task_class

    def process(self, _: EmptyTask) -> list[Numbers]:
        made = [self.task_class(dataset_name="numbers", data=[int(n)]) for n in Path(self.path).read_text().split()]
        for task in made:
            task._metadata["note"] = uuid.uuid4().hex
        return made


class Add(ProcessingStage[Numbers, Numbers]):
    """Works in place."""

    name = "add"

    def __init__(self, amount: int = 1) -> None:
        self.amount = amount

    def process(self, task: Numbers) -> Numbers:
        MINE.debug("adding {}", self.amount)
        task.data = [n + self.amount for n in task.data]
        self._log_metric("added", self.amount)
        with self._time_metric("time"):
            return task


class Anew(Add):
    """Returns a new task."""

    name = "anew"

    def process(self, task: Numbers) -> Numbers:
        return numbers(*(n + self.amount for n in task.data))


class Even(ProcessingStage[Numbers, Numbers]):
    """Drops tasks that begin with an odd number."""

    name = "even"

    def process(self, task: Numbers) -> Numbers | None:
        return None if task.data[0] % 2 else task


class EvenMarked(Even):
    """The same, with NeMo Curator's marker."""

    name = "even_marked"

    def process(self, task: Numbers) -> Any:
        return NoneTask() if task.data[0] % 2 else task


class Split(ProcessingStage[Numbers, Numbers]):
    """Makes as many tasks as the first number says, up to three, which share the list of records."""

    name = "split"

    def process(self, task: Numbers) -> list[Numbers]:
        made = [numbers(n, task.data[0]) for n in range(task.data[0] % 4)]
        for each in made:
            each._stage_perf = task._stage_perf
        return made


class Batches(ProcessingStage[Numbers, Numbers]):
    """One output for each input of a batch."""

    name = "batches"
    batch_size = 4

    def process(self, task: Numbers) -> Any:
        raise NotImplementedError

    def process_batch(self, tasks: list[Numbers]) -> list[Any]:
        return [numbers(*task.data, len(task.data)) for task in tasks]


class BatchFilter(Batches):
    """Returns some of its inputs."""

    name = "batch_filter"

    def process_batch(self, tasks: list[Numbers]) -> list[Any]:
        return [task for task in tasks if task.data[0] % 3]


class BatchHoles(Batches):
    """Returns None in place of some of its inputs."""

    name = "batch_holes"

    def process_batch(self, tasks: list[Numbers]) -> list[Any]:
        return [None if task.data[0] % 3 == 0 else numbers(*task.data) for task in tasks]


class Pack(Batches):
    """Turns a batch into tasks of three numbers at most: any number of tasks into another."""

    name = "pack"
    batch_size = 5

    def process_batch(self, tasks: list[Numbers]) -> list[Any]:
        data = [n for task in tasks for n in task.data]
        return [numbers(*data[at : at + 3]) for at in range(0, len(data), 3)]


class GivesUp(ProcessingStage[Numbers, Numbers]):
    """Returns a FailedTask for some tasks."""

    name = "gives_up"

    def process(self, task: Numbers) -> Any:
        return FailedTask() if task.data[0] % 4 == 3 else task


class Raises(ProcessingStage[Numbers, Numbers]):
    """Raises on some tasks."""

    name = "raises"

    def process(self, task: Numbers) -> Numbers:
        if task.data[0] % 5 == 4:
            raise ValueError(f"no {task.data[0]}")
        return task


class BatchRaises(Batches):
    """Raises on batches with some tasks."""

    name = "batch_raises"

    def process_batch(self, tasks: list[Numbers]) -> list[Any]:
        for task in tasks:
            if task.data[0] % 5 == 4:
                raise ValueError(f"no {task.data[0]}")
        return [numbers(*task.data) for task in tasks]


class Writes(ProcessingStage[Numbers, FileGroupTask]):
    """Writes each task to a file that is named after its id, as NeMo Curator's writers do."""

    name = "writes"

    def __init__(self, path: str, fails_at: int | None = None, delay_s: float = 0.0) -> None:
        self.path, self.fails_at, self.delay_s = path, fails_at, delay_s

    def process(self, task: Numbers) -> FileGroupTask:
        if self.fails_at in task.data:
            raise OSError("disk full")
        time.sleep(self.delay_s)
        path = Path(self.path) / f"{task.task_id}.txt"
        path.write_text("\n".join(map(str, task.data)))
        return FileGroupTask(dataset_name=task.dataset_name, data=[str(path)])


class Both(CompositeStage[Numbers, Numbers]):
    """A composite of two stages."""

    name = "both"

    def decompose(self) -> list[ProcessingStage]:
        return [Add(1).with_(name="first"), Add(10).with_(name="second")]


def built(stages: Iterable[Any]) -> list[Any]:
    """Return stages as NeMo Curator's pipeline hands them to an executor."""
    pipeline = Pipeline("reference", stages=[copy.deepcopy(stage) for stage in stages])
    pipeline.build()
    return pipeline.stages


def reference(stages: Iterable[Any], initial_tasks: Sequence[Task] = ()) -> list[Any]:
    """Return what NeMo Curator makes of a pipeline: a loop over its adapters."""
    tasks: list[Any] = assign_root_task_ids(copy.deepcopy([*initial_tasks])) or [EmptyTask()]
    for stage in built(stages):
        adapter = BaseStageAdapter(stage)
        adapter.setup_on_node(None, None)
        adapter.setup(None)
        size = stage.batch_size or 1
        tasks = [made for at in range(0, len(tasks), size) for made in adapter.process_batch(tasks[at : at + size])]
        adapter.teardown()
    return tasks


def data_of(tasks: Iterable[Any]) -> list[Any]:
    """Return the payloads in an order that does not depend on the executor."""
    return sorted((task.data for task in tasks), key=repr)


def ids_of(tasks: Iterable[Any]) -> list[str]:
    return sorted(task.task_id for task in tasks)


def sums_of(tasks: Iterable[Any]) -> dict[str, dict[str, float]]:
    """Return the sums of NeMo Curator's metrics that do not measure time: executors choose the batches."""
    kept = ("num_items_processed", "input_data_size_mb", "custom.added")
    return {
        stage: {name: round(float(values.sum()), 9) for name, values in found.items() if name in kept}
        for stage, found in TaskPerfUtils.collect_stage_metrics([*tasks]).items()
    }
