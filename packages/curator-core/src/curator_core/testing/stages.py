# SPDX-License-Identifier: Apache-2.0
"""The stages and tasks that the conformance kit runs.

They live in an importable module, so that workers in other processes unpickle them by reference.
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
    "Split",
    "Squares",
    "Twice",
    "Unruly",
    "WithColumns",
    "grow",
]

POISON = frozenset({3, 11, 12})  # the numbers that `Squares` cannot work on


class SampleError(Exception):
    """What the sample stages raise. It takes two arguments, as exceptions do that pickle and do not unpickle."""

    def __init__(self, reason: str, code: int) -> None:
        super().__init__(f"{reason} (code {code})")
        self.code = code


@dataclass
class Named(Task[Any]):
    """A task that names itself by content."""

    name: str | None = None

    def get_deterministic_id(self) -> str | None:
        """The name it was given."""
        return self.name


@dataclass
class Record(Task[Any]):
    """A task with columns, and an opinion about its own validity.

    Attributes:
        columns: Names of its columns.
        valid: What ``validate()`` says.
    """

    columns: tuple[str, ...] = ("text",)
    valid: bool = True

    def validate(self) -> bool:
        """What it was told to say."""
        return self.valid


class SamplePanicError(BaseException):
    """An exception that is no `Exception`, as Rust extensions raise when they panic."""

    def __init__(self, reason: str, code: int) -> None:
        super().__init__(f"{reason} (code {code})")


class FatalError(Exception):
    """One that would end the process which unpickles it, or asks what it says."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (7,)

    def __str__(self) -> str:
        raise SystemExit("what it says")


class Renew(ProcessingStage[Task[Any], Task[Any]]):
    """Makes a brand-new task of each task, batch by batch, and writes its own life into a journal."""

    batch_size = 3

    def __init__(self, journal: Journal | None = None, extra: Any = None) -> None:
        self.journal = journal
        self.extra = extra  # anything: a lambda, say
        self.worker_id = ""

    def setup_on_node(self, node_info: NodeInfo, worker_metadata: WorkerMetadata) -> None:
        """Write it down."""
        del worker_metadata
        self._note("setup_on_node", node_info.node_id)

    def setup(self, worker_metadata: WorkerMetadata) -> None:
        """Write it down."""
        self.worker_id = worker_metadata.worker_id
        self._note("setup", self.worker_id)

    def process_batch(self, tasks: list[Task[Any]]) -> list[Task[Any]]:
        """A new task with the same data for each."""
        self._note("process", self.worker_id)
        self.metrics.set("seen", len(tasks))
        self.metrics.add("tasks", len(tasks))
        self.metrics.set("note", "a text")
        with self.metrics.timer("seconds"):
            return [Task(data=task.data) for task in tasks]

    def teardown(self) -> None:
        """Write it down."""
        self._note("teardown", self.worker_id)

    def _note(self, event: str, who: str) -> None:
        if self.journal is not None:
            self.journal.write(self.name, event, who)


class Split(ProcessingStage[Task[Any], Task[Any]]):
    """Fans out where the data is a list, also a list of one or of none; drops None; lets the rest pass."""

    def process(self, task: Task[Any]) -> Task[Any] | list[Task[Any]] | None:
        """Each element becomes a task of its own."""
        if task.data is None:
            return None
        if isinstance(task.data, list):
            return [Task(data=part) for part in task.data]
        return task


def grow(tree: Any, task_id: str, levels: int) -> list[tuple[str, Any]]:
    """The model of `Split`: ids and data of what comes of a tree after so many splits."""
    if levels == 0:
        return [(task_id, tree)]
    if tree is None:
        return []
    if isinstance(tree, list):
        return [leaf for i, part in enumerate(tree) for leaf in grow(part, f"{task_id}.{i}", levels - 1)]
    return grow(tree, task_id, levels - 1)


class Flaky(ProcessingStage[Task[Any], Task[Any]]):
    """Fails its first two attempts at every batch, after spoiling the inputs."""

    batch_size = 2
    max_attempts = 3
    retry_delay_s = 0.0

    def __init__(self) -> None:
        self.attempts: Counter[str] = Counter()

    def process_batch(self, tasks: list[Task[Any]]) -> list[Task[Any]]:
        """The tasks as they are, at the third attempt."""
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
    """Drops negative numbers, half of them by None and half by an empty list."""

    batch_size = 4

    def process(self, task: Task[Any]) -> Task[Any] | list[Task[Any]] | None:
        """Numbers from 0 up pass."""
        if task.data >= 0:
            return task
        return None if task.data % 2 else []


class Numbers(ProcessingStage[EmptyTask, Named]):
    """A source that emits numbers, lazily; names of its own where they are given.

    Args:
        count: How many.
        names: Names of the first ones.
    """

    def __init__(self, count: int, names: tuple[str | None, ...] = ()) -> None:
        self.count = count
        self.names = names

    def process(self, task: EmptyTask) -> Iterator[Named]:
        """The numbers from 0 up."""
        if not isinstance(task, EmptyTask):
            raise TypeError(f"a source is given an EmptyTask, and not {task!r}")
        for number in range(self.count):
            yield Named(data=number, name=self.names[number] if number < len(self.names) else None)


class Broken(ProcessingStage[Task[Any], Task[Any]]):
    """Raises on one task.

    Args:
        bad: The data at which it raises.
    """

    batch_size = 2

    def __init__(self, bad: Any) -> None:
        self.bad = bad

    def process(self, task: Task[Any]) -> Task[Any]:
        """The task, unless it is the bad one."""
        if task.data == self.bad:
            try:
                self._deep_inside()
            except KeyError as exc:
                raise SampleError(f"cannot work on {task.data}", 7) from exc
        return Task(data=task.data)

    def _deep_inside(self) -> None:
        raise KeyError("the root of it")


class BrokenSetup(ProcessingStage[Task[Any], Task[Any]]):
    """Raises in setup."""

    def setup(self, worker_metadata: WorkerMetadata) -> None:
        """Raises."""
        raise SamplePanicError(f"no model for {type(worker_metadata).__name__}", 3)

    def process(self, task: Task[Any]) -> Task[Any]:
        """Never gets here."""
        return task


class Unruly(ProcessingStage[Task[Any], Task[Any]]):
    """Leaves `process` in the way that the data names; tasks whose data is no such way pass."""

    FAULTS = ("panics", "is cancelled", "exits", "raises what ends processes")

    def process(self, task: Task[Any]) -> Task[Any]:
        """The task, or nothing at all: a task that says "forks" comes out once, whatever its child does."""
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
    """Stands for one that asks a service, which is what the data says: it may be down, for once or for good."""

    concurrency = 4
    max_attempts = 2
    retry_delay_s = 0.0
    timeout_s = 1.0

    def __init__(self) -> None:
        self.asked = Counter[str]()
        self.loop: Any = None

    async def setup(self, worker_metadata: WorkerMetadata) -> None:  # type: ignore[override]  # may be a coroutine
        """Remember where it was."""
        self.loop = asyncio.get_running_loop()

    async def process(self, task: Task[Any]) -> Task[Any]:  # type: ignore[override]  # as `setup`
        """The task, unless the service does not answer."""
        if asyncio.get_running_loop() is not self.loop:
            raise RuntimeError("called on another loop than it was set up on")
        await asyncio.sleep(0)
        if task.data == "never answers":
            await asyncio.Event().wait()
        self.asked[str(task.data)] += 1
        if task.data == "is down" or (task.data == "is down for once" and self.asked[task.data] == 1):
            raise SampleError("the service is down", 503)
        return Task(data=task.data)


class Misbehaving(ProcessingStage[Task[Any], Task[Any]]):
    """Breaks the contract in the way that the data names; tasks whose data is no such way pass."""

    FAULTS = ("too few", "too many", "no list", "wrong entry", "wrong entry in a list", "same object twice", "foreign")

    def __init__(self) -> None:
        self.kept: Task[Any] | None = None

    def num_workers(self) -> int:
        """One, so that a task that it keeps is there for the next one."""
        return 1

    def process_batch(self, tasks: list[Task[Any]]) -> Any:
        """One entry for a batch of one, and it is wrong."""
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
            # Two tasks say so, and they may come in either order: the later one is given the earlier one's output.
            foreign, self.kept = self.kept or task, task
            return [foreign]
        return wrong.get(task.data, [task])


class WithColumns(ProcessingStage[Record, Record]):
    """Needs an attribute and a column, which are checked before it is called."""

    batch_size = 4

    def inputs(self) -> tuple[list[str], list[str]]:
        """The attribute ``valid`` and the column ``text``."""
        return ["valid"], ["text"]

    def process(self, task: Record) -> Record:
        """The task; raises if it should never have come here."""
        if not task.valid or "text" not in task.columns:
            raise CuratorError("the executor let a task through that the stage must not see", stage=self.name)
        return task


class Checksum(ProcessingStage[Task[Any], Task[Any]]):
    """Passes a large payload on and notes a checksum of it; it never writes into the payload."""

    def process(self, task: Task[Any]) -> Task[Any]:
        """A new task around the same payload."""
        compiled = memoryview(task.data).cast("B")
        self.metrics.set("bytes", compiled.nbytes)
        task.metadata.setdefault("checksums", []).append(sum(compiled[::4096]))
        return Task(data=task.data)


class Squares(ProcessingStage[Task[int], Task[int]]):
    """Squares whole batches, and raises where one of them is poison; spoils what it is given first.

    Args:
        poison: The data that it cannot work on.
    """

    batch_size = 8

    def __init__(self, poison: frozenset[int] = POISON) -> None:
        self.poison = poison

    def process_batch(self, tasks: list[Task[int]]) -> list[Task[int]]:
        """A new task for each."""
        numbers = [task.data for task in tasks]
        for task in tasks:
            task.data = -1
        bad = self.poison.intersection(numbers)
        if bad:
            raise ValueError(f"poison: {sorted(bad)}")
        return [Task(data=number * number) for number in numbers]


class Fragile(ProcessingStage[Task[str], Task[str]]):
    """Ends the process that it is in, or never returns, where a task says so; in a process of its own."""

    batch_size = 2
    timeout_s = 3.0  # far more than the others take, also on a machine that is busy

    def process_batch(self, tasks: list[Task[str]]) -> list[Task[str]]:
        """A new task for each."""
        data = [task.data for task in tasks]
        if "dies" in data:
            os._exit(1)
        if "hangs" in data:
            threading.Event().wait()
        return [Task(data=each) for each in data]


class Filed(ProcessingStage[Task[int], FileGroupTask]):
    """Writes each task to a file named after its id, and notes how often it did; raises at some.

    Args:
        directory: Where to.
        broken: The data that it raises at.
    """

    def __init__(self, directory: Path, broken: frozenset[int] = frozenset()) -> None:
        self.directory = directory
        self.broken = broken

    def setup(self, worker_metadata: WorkerMetadata) -> None:
        """Make the directory."""
        del worker_metadata
        self.directory.mkdir(exist_ok=True)

    def process(self, task: Task[int]) -> FileGroupTask:
        """The file."""
        if task.data in self.broken:
            raise ValueError(f"cannot write {task.data}")
        path = self.directory / f"{task.task_id}.txt"
        with path.open("a") as stream:  # once more where it is run once more
            stream.write(f"{task.data}\n")
        return FileGroupTask([str(path)])


class Listing(ProcessingStage[EmptyTask, Task[int]]):
    """A source.

    Args:
        numbers: What it lists.
    """

    def __init__(self, numbers: list[int]) -> None:
        self.numbers = numbers

    def process(self, task: EmptyTask) -> Iterator[Task[int]]:
        """A task for each number."""
        del task
        return (Task(data=number) for number in self.numbers)


class Twice(ProcessingStage[Task[int], Task[int]]):
    """Makes two tasks of each."""

    def process(self, task: Task[int]) -> list[Task[int]]:
        """Itself, and one of a hundred more."""
        return [Task(data=task.data), Task(data=task.data + 100)]
