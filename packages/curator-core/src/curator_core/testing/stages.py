# SPDX-License-Identifier: Apache-2.0
"""The stages and tasks of the conformance kit.

They are in an importable module, so that workers in other processes unpickle them by reference.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from curator_core.errors import CuratorError
from curator_core.stages import ProcessingStage
from curator_core.tasks import EmptyTask, FileGroupTask, Task

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from curator_core.stages import NodeInfo, WorkerMetadata
    from curator_core.testing.recorder import Journal

__all__ = [
    "POISON",
    "Broken",
    "BrokenSetup",
    "Checksum",
    "Filed",
    "Flaky",
    "Fragile",
    "Listing",
    "Misbehaving",
    "Named",
    "Numbers",
    "Record",
    "Renew",
    "SampleError",
    "SamplePanicError",
    "Service",
    "Sieve",
    "Single",
    "Split",
    "Squares",
    "Twice",
    "Unruly",
    "WithColumns",
    "grow",
]

POISON = frozenset({3, 11, 12})  # the numbers that `Squares` cannot work on


class SampleError(Exception):
    """The exception of the sample stages. With its two arguments, it pickles but does not unpickle."""

    def __init__(self, reason: str, code: int) -> None:
        super().__init__(f"{reason} (code {code})")
        self.code = code


@dataclass
class Named(Task[Any]):
    """A task that has its own deterministic id."""

    name: str | None = None

    def get_deterministic_id(self) -> str | None:
        """Return the name from the constructor."""
        return self.name


@dataclass
class Record(Task[Any]):
    """A task with columns that can be declared invalid.

    Attributes:
        columns: Names of its columns.
        valid: The result of ``validate()``.
    """

    columns: tuple[str, ...] = ("text",)
    valid: bool = True

    def validate(self) -> bool:
        """Return the value from the constructor."""
        return self.valid


class SamplePanicError(BaseException):
    """An exception that is not an `Exception`, such as Rust extensions raise when they panic."""

    def __init__(self, reason: str, code: int) -> None:
        super().__init__(f"{reason} (code {code})")


class FatalError(Exception):
    """An exception that ends a process that unpickles it, and raises `SystemExit` if its message is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (7,)

    def __str__(self) -> str:
        raise SystemExit("the message was read")


class Renew(ProcessingStage[Task[Any], Task[Any]]):
    """Makes a new task from each task, batch by batch, and records its life cycle in a journal."""

    batch_size = 3

    def __init__(self, journal: Journal | None = None, extra: Any = None) -> None:
        self.journal = journal
        self.extra = extra  # anything, such as a lambda
        self.worker_id = ""

    def setup_on_node(self, node_info: NodeInfo, worker_metadata: WorkerMetadata) -> None:
        """Record the event."""
        del worker_metadata
        self._note("setup_on_node", node_info.node_id)

    def setup(self, worker_metadata: WorkerMetadata) -> None:
        """Record the event."""
        self.worker_id = worker_metadata.worker_id
        self._note("setup", self.worker_id)

    def process_batch(self, tasks: list[Task[Any]]) -> list[Task[Any]]:
        """Return a new task with the same data for each task."""
        self._note("process", self.worker_id)
        self.metrics.set("seen", len(tasks))
        self.metrics.add("tasks", len(tasks))
        self.metrics.set("note", "a text")
        with self.metrics.timer("seconds"):
            return [Task(data=task.data) for task in tasks]

    def teardown(self) -> None:
        """Record the event."""
        self._note("teardown", self.worker_id)

    def _note(self, event: str, who: str) -> None:
        if self.journal is not None:
            self.journal.write(self.name, event, who)


class Split(ProcessingStage[Task[Any], Task[Any]]):
    """Fans out if the data is a list, even an empty one or one of a single element; drops None; passes the rest."""

    def process(self, task: Task[Any]) -> Task[Any] | list[Task[Any]] | None:
        """Return a task for each element of a list."""
        if task.data is None:
            return None
        if isinstance(task.data, list):
            return [Task(data=part) for part in task.data]
        return task


def grow(tree: Any, task_id: str, levels: int) -> list[tuple[str, Any]]:
    """Model `Split`: return the ids and data of the tasks that a tree becomes after `levels` splits."""
    if levels == 0:
        return [(task_id, tree)]
    if tree is None:
        return []
    if isinstance(tree, list):
        return [leaf for i, part in enumerate(tree) for leaf in grow(part, f"{task_id}.{i}", levels - 1)]
    return grow(tree, task_id, levels - 1)


class Flaky(ProcessingStage[Task[Any], Task[Any]]):
    """Fails its first two attempts at every batch, and modifies the inputs before."""

    batch_size = 2
    max_attempts = 3
    retry_delay_s = 0.0

    def __init__(self) -> None:
        self.attempts: Counter[str] = Counter()

    def process_batch(self, tasks: list[Task[Any]]) -> list[Task[Any]]:
        """Return the tasks unchanged at the third attempt."""
        key = " ".join(task.task_id for task in tasks)
        self.attempts[key] += 1
        self.metrics.set("attempt", self.attempts[key])
        if self.attempts[key] < self.max_attempts:
            for task in tasks:
                task.metadata["spoiled"] = True
                task.data = "spoiled"
            raise SampleError("not yet", self.attempts[key])
        return list(tasks)


class Sieve(ProcessingStage[Task[Any], Task[Any]]):
    """Drops negative numbers: odd ones with None, and even ones with an empty list."""

    batch_size = 4

    def process(self, task: Task[Any]) -> Task[Any] | list[Task[Any]] | None:
        """Return the task if its number is 0 or more."""
        if task.data >= 0:
            return task
        return None if task.data % 2 else []


class Numbers(ProcessingStage[EmptyTask, Named]):
    """A source that lazily emits numbers, some with names.

    Args:
        count: How many numbers.
        names: Names of the first ones.
    """

    def __init__(self, count: int, names: tuple[str | None, ...] = ()) -> None:
        self.count = count
        self.names = names

    def process(self, task: EmptyTask) -> Iterator[Named]:
        """Yield the numbers from 0."""
        if not isinstance(task, EmptyTask):
            raise TypeError(f"a source must be given an EmptyTask, not {task!r}")
        for number in range(self.count):
            yield Named(data=number, name=self.names[number] if number < len(self.names) else None)


class Broken(ProcessingStage[Task[Any], Task[Any]]):
    """Raises for one task.

    Args:
        bad: The data of that task.
    """

    batch_size = 2

    def __init__(self, bad: Any) -> None:
        self.bad = bad

    def process(self, task: Task[Any]) -> Task[Any]:
        """Return a new task, unless it is the bad one."""
        if task.data == self.bad:
            try:
                self._deep_inside()
            except KeyError as exc:
                raise SampleError(f"cannot work on {task.data}", 7) from exc
        return Task(data=task.data)

    def _deep_inside(self) -> None:
        raise KeyError("the root of it")


class Single(ProcessingStage[Any, Any]):
    """A stage with one worker, for tests that need no more: engines take seconds to start each worker."""

    def num_workers(self) -> int:
        """Return 1."""
        return 1


class BrokenSetup(Single):
    """Raises in setup."""

    def setup(self, worker_metadata: WorkerMetadata) -> None:
        """Raise an error."""
        raise SamplePanicError(f"no model for {type(worker_metadata).__name__}", 3)

    def process(self, task: Task[Any]) -> Task[Any]:
        """Return the task; never called."""
        return task


class Unruly(ProcessingStage[Task[Any], Task[Any]]):
    """Leaves `process` in the way that the data of a task names; other tasks pass."""

    FAULTS = ("panics", "is cancelled", "exits", "raises what ends processes")

    def process(self, task: Task[Any]) -> Task[Any]:
        """Return the task, unless its data names a fault. A task that forks comes out once, whatever its child does."""
        match task.data:
            case "panics":
                raise SamplePanicError("index out of bounds", 5)
            case "is cancelled":
                raise asyncio.CancelledError
            case "exits":
                raise SystemExit(3)
            case "raises what ends processes":
                raise FatalError
            case "forks" if child := os.fork():
                _, status = os.waitpid(child, 0)
                return Task(data=os.waitstatus_to_exitcode(status))
            case "forks":
                sys.exit(4)  # in the child, which has no part in the run
            case _:
                pass
        return task


class Service(ProcessingStage[Task[Any], Task[Any]]):
    """An asynchronous stage that calls a service. The data says whether the service is down, and for how long."""

    concurrency = 4
    max_attempts = 2
    retry_delay_s = 0.0
    timeout_s = 1.0

    def __init__(self) -> None:
        self.asked = Counter[str]()
        self.loop: Any = None

    async def setup(self, worker_metadata: WorkerMetadata) -> None:  # type: ignore[override]  # may be a coroutine
        """Remember the event loop."""
        self.loop = asyncio.get_running_loop()

    async def process(self, task: Task[Any]) -> Task[Any]:  # type: ignore[override]  # see `setup`
        """Return a new task, unless the service fails."""
        if asyncio.get_running_loop() is not self.loop:
            raise RuntimeError("called on another event loop than setup")
        await asyncio.sleep(0)
        if task.data == "never answers":
            await asyncio.Event().wait()
        self.asked[str(task.data)] += 1
        if task.data == "is down" or (task.data == "is down for once" and self.asked[task.data] == 1):
            raise SampleError("the service is down", 503)
        return Task(data=task.data)


class Misbehaving(ProcessingStage[Task[Any], Task[Any]]):
    """Breaks the contract in the way that the data of a task names; other tasks pass."""

    FAULTS = ("too few", "too many", "no list", "wrong entry", "wrong entry in a list", "same object twice", "foreign")

    def __init__(self) -> None:
        self.kept: Task[Any] | None = None

    def num_workers(self) -> int:
        """Return 1, so that a task that it keeps is still there for the next one."""
        return 1

    def process_batch(self, tasks: list[Task[Any]]) -> Any:
        """Return a wrong result for a batch of one task, if its data names a fault."""
        (task,) = tasks
        wrong: dict[str, Any] = {
            "too few": [],
            "too many": [task, Task(data=0)],
            "no list": task,
            "wrong entry": [42],
            "wrong entry in a list": [[task, "text"]],
            "same object twice": [[task, task]],
        }
        if task.data == "foreign":
            # There are two such tasks, in either order: the earlier one is returned as the output of the later one.
            foreign, self.kept = self.kept or task, task
            return [foreign]
        return wrong.get(task.data, [task])


class WithColumns(ProcessingStage[Record, Record]):
    """Requires an attribute and a column, which are checked before it is called."""

    batch_size = 4

    def inputs(self) -> tuple[list[str], list[str]]:
        """Return what it requires: the attribute ``valid`` and the column ``text``."""
        return ["valid"], ["text"]

    def process(self, task: Record) -> Record:
        """Return the task; raise an error if it does not meet the requirements."""
        if not task.valid or "text" not in task.columns:
            raise CuratorError("the executor passed a task that the stage must not see", stage=self.name)
        return task


class Checksum(Single):
    """Passes on a large payload, and adds its checksum to the metadata. It never writes to the payload."""

    def process(self, task: Task[Any]) -> Task[Any]:
        """Return a new task with the same payload."""
        payload = memoryview(task.data).cast("B")
        self.metrics.set("bytes", payload.nbytes)
        task.metadata.setdefault("checksums", []).append(sum(payload[::4096]))
        return Task(data=task.data)


class Squares(ProcessingStage[Task[int], Task[int]]):
    """Squares whole batches, and raises if one number is poison. Modifies its inputs first.

    Args:
        poison: The numbers that it cannot work on.
    """

    batch_size = 8

    def __init__(self, poison: frozenset[int] = POISON) -> None:
        self.poison = poison

    def process_batch(self, tasks: list[Task[int]]) -> list[Task[int]]:
        """Return a new task for each task."""
        numbers = [task.data for task in tasks]
        for task in tasks:
            task.data = -1
        bad = self.poison.intersection(numbers)
        if bad:
            raise ValueError(f"poison: {sorted(bad)}")
        return [Task(data=number * number) for number in numbers]


class Fragile(Single):
    """Ends its process, or never returns, if a task says so. Because of its time limit, it has its own process."""

    batch_size = 2
    timeout_s = 3.0  # far more than the other tasks take, even on a busy machine

    def process_batch(self, tasks: list[Task[str]]) -> list[Task[str]]:
        """Return a new task for each task."""
        data = [task.data for task in tasks]
        if "dies" in data:
            os._exit(1)
        if "hangs" in data:
            threading.Event().wait()
        return [Task(data=each) for each in data]


class Filed(ProcessingStage[Task[int], FileGroupTask]):
    """Writes each task to a file named after its id, one line each time; raises for some.

    Args:
        directory: The directory to write to.
        broken: The data of tasks for which it raises.
    """

    def __init__(self, directory: Path, broken: frozenset[int] = frozenset()) -> None:
        self.directory = directory
        self.broken = broken

    def setup(self, worker_metadata: WorkerMetadata) -> None:
        """Create the directory."""
        del worker_metadata
        self.directory.mkdir(exist_ok=True)

    def process(self, task: Task[int]) -> FileGroupTask:
        """Append a line to the file, and return its path."""
        if task.data in self.broken:
            raise ValueError(f"cannot write {task.data}")
        path = self.directory / f"{task.task_id}.txt"
        with path.open("a") as stream:  # a line for each time that the task is processed
            stream.write(f"{task.data}\n")
        return FileGroupTask([str(path)])


class Listing(ProcessingStage[EmptyTask, Task[int]]):
    """A source that emits a list of numbers.

    Args:
        numbers: The numbers.
    """

    def __init__(self, numbers: list[int]) -> None:
        self.numbers = numbers

    def process(self, task: EmptyTask) -> Iterator[Task[int]]:
        """Return a task for each number, lazily."""
        del task
        return (Task(data=number) for number in self.numbers)


class Twice(Single):
    """Makes two tasks from each task."""

    def process(self, task: Task[int]) -> list[Task[int]]:
        """Return the number, and the number plus 100."""
        return [Task(data=task.data), Task(data=task.data + 100)]
