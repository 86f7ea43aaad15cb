# SPDX-License-Identifier: Apache-2.0
"""How many tasks travel together between workers.

A hop costs about the same for one task as for a thousand, so tasks travel in bundles. A bundle that is too large has
its own cost: other workers wait, and a worker that dies takes the whole bundle with it. So a bundle contains about half
a second of work, as measured. Bundles start small until there are measurements, and shrink toward the end of the input,
where a large one would keep one worker busy while the others have nothing left (guided self-scheduling, in its
"factoring" variant: half of what remains is dealt out evenly; Flynn Hummel, Schonberg, and Flynn, CACM 35(8), 1992).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from curator_core._guard.user_code import check_failure
from curator_core._transport.packed import Packed
from curator_core._transport.sizes import bytes_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from curator_core._plan.groups import StageGroup

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
HOP_S = 0.02  # approximate cost of a hop on Xenna; less work than that is not worth a hop
_GROWTH = 4  # a bundle has at most this many times the tasks of the one before it
_SAMPLE = 8  # number of tasks to measure if tasks do not report their size
_UNMEASURED_LIMIT = 64  # maximum tasks in a bundle while the time per task is unknown


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
        # Engines copy what they are given, payloads included. No code changes a bundle, so it needs no copy.
        return self


@dataclass(frozen=True, slots=True)
class BundlePlan:
    """The rules for the sizes of a group's bundles.

    Attributes:
        batch_size: The number of tasks in a bundle is a multiple of this if there are enough tasks.
        slots: Number of bundles in flight at once, over all workers of the group.
        max_bytes: Maximum size of a bundle. Only a single task, or a single batch that must be full, may exceed it.
        full: Whether bundles contain whole batches, regardless of their size in bytes.
    """

    batch_size: int = 1
    slots: int = 1
    max_bytes: int = MAX_BUNDLE_BYTES
    full: bool = False

    @classmethod
    def of(cls, group: StageGroup, slots: int, max_bytes: int = MAX_BUNDLE_BYTES) -> BundlePlan:
        """Return the rules for a group with this number of slots and maximum size."""
        # If batches must be full, only those of the first stage count: later stages may have partial ones.
        unit = group.stages[0].batch_size if group.full_batches else group.batch_size
        return cls(unit, slots, max_bytes, group.full_batches)

    def whole_batches(self, count: float) -> int:
        """Round a number of tasks up to whole batches."""
        return max(1, math.ceil(count / self.batch_size)) * self.batch_size


class Pace:
    """Chooses the number of tasks in the next bundle from how long earlier tasks took.

    Args:
        plan: The rules for bundle sizes.
    """

    def __init__(self, plan: BundlePlan) -> None:
        self._plan = plan
        self._dealt = 0  # bundles so far
        self._last = 0  # tasks in the last one
        self._tasks = 0
        self._seconds = 0.0

    def observe(self, tasks: int, seconds: float) -> None:
        """Record finished work.

        Args:
            tasks: Number of tasks.
            seconds: How long they took in total, in all stages of the group.
        """
        self._tasks += tasks
        self._seconds += seconds

    @property
    def seconds_per_task(self) -> float | None:
        """Mean time of a task; None if nothing was measured yet."""
        return self._seconds / self._tasks if self._tasks else None

    def next_size(self, remaining: int | None = None) -> int:
        """Return the number of tasks for the next bundle, in whole batches.

        Args:
            remaining: Number of tasks that are not dealt out yet; None if unknown.
        """
        plan, mean = self._plan, self.seconds_per_task
        fair = math.inf if remaining is None else math.ceil(remaining / (2 * plan.slots))
        if mean is None:
            wanted = plan.batch_size * _GROWTH ** (self._dealt // plan.slots)
            wanted = min(wanted, plan.whole_batches(_UNMEASURED_LIMIT), fair)
        else:
            limit = max(self._last, plan.batch_size) * _GROWTH
            # A fair share of what remains, but no more than the target and no less than is worth a hop.
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
        plan: The rules for bundle sizes.
        seconds_per_task: Time that a task takes in the next group; None if unknown.
    """
    start = 0
    while remaining := len(tasks) - start:
        if seconds_per_task is None:  # they may be slow: no worker should have much left when others are done
            wanted: float = min(_UNMEASURED_LIMIT, math.ceil(remaining / (2 * plan.slots)))
        else:
            wanted = min(remaining, _tasks_in(TARGET_S, seconds_per_task))
        bundle = within_bytes(tasks[start : start + plan.whole_batches(wanted)], plan)
        start += len(bundle)
        yield bundle


def within_bytes(tasks: Sequence[Any], plan: BundlePlan) -> list[Any]:
    """Return the first tasks that fit in a bundle by bytes: at least one, or a whole batch if batches must be full."""
    fits = len(tasks)
    if fits > 1 and estimated_bytes(tasks) > plan.max_bytes:
        fits, held = 1, estimated_bytes(tasks[:1])
        while fits < len(tasks) and (held := held + estimated_bytes(tasks[fits : fits + 1])) <= plan.max_bytes:
            fits += 1
    return [*tasks] if fits == len(tasks) else [*tasks[: in_batches(fits, len(tasks), plan)]]


def in_batches(fits: int, there: int, plan: BundlePlan) -> int:
    """Return the number of tasks for a bundle, so that its batches are whole.

    Args:
        fits: Number of tasks that fit by bytes.
        there: Number of tasks available.
        plan: The rules for bundle sizes.
    """
    if fits > plan.batch_size:
        return fits - fits % plan.batch_size
    return min(plan.batch_size, there) if plan.full else fits


def estimated_bytes(tasks: Sequence[Any]) -> int:
    """Return the size of tasks in bytes, as they report it or else estimated by pickling a sample. Never raises."""
    known = bytes_of(tasks)
    if known or not tasks:
        return known
    sample = tasks[:: math.ceil(len(tasks) / _SAMPLE)]
    return sum(map(_pickled_bytes, sample)) * len(tasks) // len(sample)


def unbundled(items: Iterable[Any]) -> list[Any]:
    """Return the tasks from a mix of bundles and individual tasks."""
    tasks: list[Any] = []
    for item in items:
        if isinstance(item, Bundle):
            tasks += item.tasks
        else:
            tasks.append(item)
    return tasks


def _pickled_bytes(task: Any) -> int:
    try:
        return Packed.of(task).nbytes
    except BaseException as exc:  # noqa: BLE001 - raised by user code; sending the task will report it
        check_failure(exc)
        return 0
