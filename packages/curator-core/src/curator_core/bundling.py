# SPDX-License-Identifier: Apache-2.0
"""How many tasks travel together between workers.

A hop costs about the same for one task as for a thousand, so tasks travel in bundles. Too large a bundle has its own
price: other workers wait, and a worker that dies takes all of it. So a bundle is to hold about half a second of work,
as measured; begins small while nothing is measured; and shrinks towards the end of the input, where a large one would
keep one worker busy while the others have nothing left (guided self-scheduling, in its "factoring" variant: half of
what remains is dealt out evenly; Flynn Hummel, Schonberg and Flynn, CACM 35(8), 1992).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from curator_core.guard import check_failure
from curator_core.measure import bytes_of
from curator_core.pickling import dump_parts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from curator_core.fusion import Group

__all__ = [
    "MAX_BUNDLE_BYTES",
    "Bundle",
    "BundlePlan",
    "Pace",
    "estimated_bytes",
    "in_batches",
    "split",
    "unbundled",
    "within_bytes",
]

MAX_BUNDLE_BYTES = 32 * 2**20
TARGET_S = 0.5  # of work in a bundle
HOP_S = 0.02  # what a hop costs, more or less, on Xenna; less work than that is not worth one
_GROWTH = 4  # a bundle has at most so many times the tasks of the one before it
_SAMPLE = 8  # tasks that are weighed where tasks do not know their size
_UNMEASURED_LIMIT = 64  # tasks in a bundle where nothing is known of how long they take


class Bundle:
    """Tasks that travel as one object.

    Attributes:
        tasks: The tasks.
    """

    __slots__ = ("tasks",)

    def __init__(self, tasks: list[Any]) -> None:
        self.tasks = tasks

    def __reduce__(self) -> tuple[Any, ...]:
        return Bundle, (self.tasks,)

    def __deepcopy__(self, memo: dict[int, Any]) -> Bundle:
        # Engines copy what they are given, payloads included; nobody changes a bundle.
        return self


@dataclass(frozen=True, slots=True)
class BundlePlan:
    """What bundles for a group of stages are to be like.

    Attributes:
        batch_size: Bundles hold a multiple of it where there are enough tasks.
        slots: Bundles that its workers hold at once, all together.
        max_bytes: No bundle is larger than this, unless a single task is, or a single batch that is to be full.
        full: Whether a bundle has whole batches however large they are.
    """

    batch_size: int = 1
    slots: int = 1
    max_bytes: int = MAX_BUNDLE_BYTES
    full: bool = False

    @classmethod
    def of(cls, group: Group, slots: int, max_bytes: int = MAX_BUNDLE_BYTES) -> BundlePlan:
        """What bundles for a group are to be like, with so many slots and bytes."""
        # What the first stage is given decides on its batches; those of stages after it may be any.
        unit = group.stages[0].batch_size if group.full_batches else group.batch_size
        return cls(unit, slots, max_bytes, group.full_batches)

    def whole_batches(self, count: float) -> int:
        """A number of tasks, rounded up to whole batches."""
        return max(1, math.ceil(count / self.batch_size)) * self.batch_size


class Pace:
    """How many tasks the next bundle is to have, by what the last ones took.

    Args:
        plan: What bundles are to be like.
    """

    def __init__(self, plan: BundlePlan) -> None:
        self._plan = plan
        self._dealt = 0  # bundles so far
        self._last = 0  # tasks in the last one
        self._tasks = 0
        self._seconds = 0.0

    def observe(self, tasks: int, seconds: float) -> None:
        """Learn from work that is done.

        Args:
            tasks: How many tasks.
            seconds: How long they took, in all stages of the group.
        """
        self._tasks += tasks
        self._seconds += seconds

    @property
    def seconds_per_task(self) -> float | None:
        """Mean time of a task; None where nothing is known yet."""
        return self._seconds / self._tasks if self._tasks else None

    def next_size(self, remaining: int | None = None) -> int:
        """How many tasks the next bundle is to have, in whole batches.

        Args:
            remaining: Tasks that are still to be dealt out, where that is known.
        """
        plan, mean = self._plan, self.seconds_per_task
        fair = math.inf if remaining is None else math.ceil(remaining / (2 * plan.slots))
        if mean is None:
            wanted = plan.batch_size * _GROWTH ** (self._dealt // plan.slots)
            wanted = min(wanted, plan.whole_batches(_UNMEASURED_LIMIT), fair)
        else:
            limit = max(self._last, plan.batch_size) * _GROWTH
            # The fair part of what remains, but neither more than is wanted nor less than is worth a hop.
            wanted = min(max(fair, _tasks_in(HOP_S, mean)), _tasks_in(TARGET_S, mean), limit)
        self._dealt += 1
        self._last = plan.whole_batches(wanted if remaining is None else min(wanted, remaining))
        return self._last


def _tasks_in(seconds: float, mean: float) -> float:
    return seconds / mean if mean else math.inf


def split(tasks: Sequence[Any], plan: BundlePlan, seconds_per_task: float | None) -> Iterator[list[Any]]:
    """Split the outputs of a worker into bundles for the next group.

    Args:
        tasks: The tasks.
        plan: What the bundles are to be like.
        seconds_per_task: What a task takes in the next group; None where it is not known.
    """
    start = 0
    while remaining := len(tasks) - start:
        if seconds_per_task is None:  # they may be slow: nobody is to have much left when the others are done
            wanted: float = min(_UNMEASURED_LIMIT, math.ceil(remaining / (2 * plan.slots)))
        else:
            wanted = min(remaining, _tasks_in(TARGET_S, seconds_per_task))
        bundle = within_bytes(tasks[start : start + plan.whole_batches(wanted)], plan)
        start += len(bundle)
        yield bundle


def within_bytes(tasks: Sequence[Any], plan: BundlePlan) -> list[Any]:
    """The first of these tasks, as many as a bundle may hold by their bytes: at least one, or one batch to be full."""
    fits = len(tasks)
    if fits > 1 and estimated_bytes(tasks) > plan.max_bytes:
        fits, held = 1, estimated_bytes(tasks[:1])
        while fits < len(tasks) and (held := held + estimated_bytes(tasks[fits : fits + 1])) <= plan.max_bytes:
            fits += 1
    return [*tasks] if fits == len(tasks) else [*tasks[: in_batches(fits, len(tasks), plan)]]


def in_batches(fits: int, there: int, plan: BundlePlan) -> int:
    """How many tasks a bundle is to have, so that its batches are whole.

    Args:
        fits: How many it may hold.
        there: How many there are.
        plan: What bundles are to be like.
    """
    if fits > plan.batch_size:
        return fits - fits % plan.batch_size
    return min(plan.batch_size, there) if plan.full else fits


def estimated_bytes(tasks: Sequence[Any]) -> int:
    """Bytes of some tasks: as they say, or where they do not know, as some of them would travel. Never raises."""
    known = bytes_of(tasks)
    if known or not tasks:
        return known
    sample = tasks[:: math.ceil(len(tasks) / _SAMPLE)]
    return sum(map(_pickled_bytes, sample)) * len(tasks) // len(sample)


def unbundled(items: Iterable[Any]) -> list[Any]:
    """The tasks of what arrived: bundles, or tasks that travelled alone."""
    tasks: list[Any] = []
    for item in items:
        if isinstance(item, Bundle):
            tasks += item.tasks
        else:
            tasks.append(item)
    return tasks


def _pickled_bytes(task: Any) -> int:
    try:
        head, buffers = dump_parts(task)
    except BaseException as exc:  # noqa: BLE001 - code of users; whoever sends the task will say so
        check_failure(exc)
        return 0
    return len(head) + sum(int(buffer.nbytes) for buffer in buffers)
