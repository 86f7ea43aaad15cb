# SPDX-License-Identifier: Apache-2.0
"""A task: some data on its way through the stages, and the framework's state beside it.

The framework's state (id, history, metadata) is kept out of the user's hands: it is taken before a stage's
code runs and stamped on whatever comes out, so a stage that returns a brand-new task copies nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sized
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from curator_core.perf import StagePerfStats

__all__ = ["EmptyTask", "Task", "TaskState", "child_id", "root_id", "stamp", "state_of"]

T = TypeVar("T")

_READABLE_ID = re.compile(r"(?!\d+$)[A-Za-z0-9_-]{1,64}")  # not digits alone: those are ordinals


class TaskState(NamedTuple):
    """What the framework knows about a task. It travels inside the task's pickle.

    Attributes:
        task_id: See `Task.task_id`.
        perf: One plain tuple a stage, in the order of the fields of `StagePerfStats`, oldest first.
            Tuples, because ten dataclasses cost ten times as much to pickle.
        metadata: See `Task.metadata`; None until somebody writes to it.
    """

    task_id: str = ""
    perf: tuple[tuple[Any, ...], ...] = ()
    metadata: dict[str, Any] | None = None


_NEW = TaskState()


@dataclass
class Task(Generic[T]):
    """Some data on its way through a pipeline.

    Subclass it with more fields where data alone does not say enough:

        @dataclass
        class VideoTask(Task[bytes]):
            fps: float = 0.0

    Attributes:
        data: The payload.
        dataset_name: Which dataset it belongs to, if that matters to you.
    """

    data: T
    dataset_name: str = ""

    # A class attribute, so that it is no field: it takes no part in init, repr or ==.
    _state: ClassVar[TaskState] = _NEW

    @property
    def task_id(self) -> str:
        """Where the task comes from: the source task's ordinal or own name, then a segment for each fan-out.

        The same in every run on the same input. Empty until a pipeline has seen the task.
        """
        return self._state.task_id

    @property
    def stage_perf(self) -> tuple[StagePerfStats, ...]:
        """Performance of the batches this task went through, oldest first."""
        return tuple(StagePerfStats(*row) for row in self._state.perf)

    @property
    def metadata(self) -> dict[str, Any]:
        """Notes that stay with the task and are handed down to what is made of it. Keep them small."""
        state = self._state
        if state.metadata is None:
            state = state._replace(metadata={})
            stamp(self, state)
        return state.metadata  # type: ignore[return-value]

    @property
    def num_items(self) -> int:
        """How many items the task holds: the length of sized data that is not text or bytes, else 1."""
        data = self.data
        if isinstance(data, Sized) and not isinstance(data, str | bytes | bytearray | memoryview):
            return len(data)
        return 1

    @property
    def num_bytes(self) -> int:
        """Bytes of payload where they are known at no cost, else 0."""
        data = self.data
        if isinstance(data, bytes | bytearray):
            return len(data)
        size = getattr(data, "nbytes", 0)  # numpy arrays, Arrow tables, memoryviews, torch tensors
        return size if isinstance(size, int) else 0

    def validate(self) -> bool:
        """Whether the task can be worked on; asked before each batch. Override it to check your data."""
        return True

    def get_deterministic_id(self) -> str | None:
        """A name made from the task's content, for a source task; None leaves it to its position.

        With a name of its own a task keeps its id, and its writers their file names, when the source
        lists in another order.
        """
        return None


@dataclass
class EmptyTask(Task[None]):
    """The task that a source stage is called with when a run is given no initial tasks."""

    data: None = None

    @property
    def num_items(self) -> int:
        """0: there is nothing in it yet."""
        return 0


def state_of(task: Any) -> TaskState:
    """The framework's state of a task; an empty one for a task that no pipeline has seen."""
    return task._state  # type: ignore[no-any-return]


def stamp(task: Any, state: TaskState) -> None:
    """Put the framework's state on a task."""
    # Past any __setattr__ of the user's class, as for a frozen dataclass.
    task.__dict__["_state"] = state


def child_id(parent: str, index: int) -> str:
    """The id of the output at ``index`` of the list that a stage made of ``parent``."""
    return f"{parent}.{index}" if parent else str(index)


def root_id(task: Any, ordinal: int, taken: dict[str, int]) -> str:
    """The id of a source task: its own name made safe for file names, else its position.

    Args:
        task: The source task.
        ordinal: Its position among the source tasks of the run.
        taken: The own names seen so far in this run and how often; updated. Two tasks of the same
            content are two tasks: the second one's id ends in ``-2``.
    """
    name = task.get_deterministic_id()
    if name is None:
        return str(ordinal)
    name = str(name)
    if not _READABLE_ID.fullmatch(name):
        name = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=10).hexdigest()
        name = f"h{name}"  # never digits alone
    seen = taken[name] = taken.get(name, 0) + 1
    return name if seen == 1 else f"{name}-{seen}"
