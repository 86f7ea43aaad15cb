# SPDX-License-Identifier: Apache-2.0
"""Tasks of NeMo Curator in tasks of ours."""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

from nemo_curator.tasks import EmptyTask as NemoEmptyTask
from nemo_curator.tasks import FileGroupTask as NemoFileGroupTask
from nemo_curator.tasks import Task as NemoBaseTask

from curator_core._foreign import BoxedTask
from curator_core.errors import ConfigurationError
from curator_core.tasks import FileGroupTask, Task, stamp, state_of

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["NemoTask", "box_all", "boxed", "unbox_all"]

_ROOT_ID = "0"  # of NeMo Curator's EmptyTask, which begins the ids of all tasks

# What NeMo Curator itself writes on its tasks: none of it is content, and some differs from run to run.
_FRAMEWORKS = {"_stage_perf", "_metadata", "task_id", "_source_id"}


@dataclass(repr=False, eq=False)
class NemoTask(BoxedTask):
    """A task of NeMo Curator as the data of one of ours."""

    @property
    def num_items(self) -> int:
        """As the task itself says."""
        return int(self.data.num_items)

    @property
    def num_bytes(self) -> int:
        """Bytes of the task's payload if they are known at no cost, otherwise 0."""
        return Task(self.data.data).num_bytes

    @property
    def content(self) -> Any:
        """The class of the task, and its attributes without those that the framework sets."""
        task = self.data
        names = {field.name for field in fields(task)} if is_dataclass(task) else set[str]()
        names |= vars(task).keys()
        return type(task), {name: getattr(task, name) for name in names - _FRAMEWORKS}

    @property
    def written_paths(self) -> list[str] | None:
        """The files of a file group, which writers return."""
        return [str(path) for path in self.data.data] if isinstance(self.data, NemoFileGroupTask) else None

    def get_deterministic_id(self) -> str | None:
        """Return the content id that the task itself provides; None if it provides none."""
        name: str | None = self.data.get_deterministic_id()
        return name


def boxed(task: Any) -> NemoTask:
    """Put a task into a new box, which has no state yet."""
    return NemoTask(task, task.dataset_name)


def box_all(tasks: Iterable[Any], *, copies: bool) -> list[Task[Any]]:
    """See `Dialect.box`. Tasks get the ids that NeMo Curator gives to initial tasks; those in boxes keep theirs.

    Raises:
        ConfigurationError: Something else than a task.
    """
    return [_box_one(number, given, copies=copies) for number, given in enumerate(tasks)]


def _box_one(number: int, given: Any, *, copies: bool) -> NemoTask:
    copied = copy.deepcopy if copies else copy.copy
    if isinstance(given, NemoTask):  # a dead letter
        box = boxed(copied(given.data))
        stamp(box, state_of(given))
        return box
    if not isinstance(given, NemoBaseTask):
        raise ConfigurationError(
            "an initial task is not a task of NeMo Curator",
            field=f"initial_tasks[{number}]",
            given=given,
            expected="an instance of nemo_curator.tasks.Task, as the stages are NeMo Curator's",
            hint="wrap the data, for example in a DocumentBatch",
        )
    task = copied(given)
    if not isinstance(task, NemoEmptyTask):
        task._set_task_id(_ROOT_ID, number)
    return boxed(task)


def unbox_all(outputs: Iterable[Any]) -> list[Any]:
    """See `Dialect.unbox`. Copies of a performance record become one object again: NeMo Curator counts objects."""
    records: dict[Any, Any] = {}
    tasks = []
    for output in outputs:
        task = output.data if isinstance(output, NemoTask) else _file_group(output)
        task._stage_perf = [records.setdefault(_key(record), record) for record in task._stage_perf]
        tasks.append(task)
    return tasks


def _key(record: Any) -> Any:
    return tuple(sorted((name, repr(value)) for name, value in record.to_dict().items()))


def _file_group(task: FileGroupTask) -> Any:
    """Return a task for files that an earlier run wrote for the same source task."""
    return NemoFileGroupTask(dataset_name=task.dataset_name, data=list(task.data))
