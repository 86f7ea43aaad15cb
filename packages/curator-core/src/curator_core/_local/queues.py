# SPDX-License-Identifier: Apache-2.0
"""A group of stages as the driver of `LocalExecutor` sees it: what waits for it, and what is with its workers."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Any

from curator_core._local.parcels import Backlog
from curator_core._plan.bundles import BundlePlan, Pace
from curator_core.stages import ProcessingStage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Literal

    from curator_core._local.parcels import Parcel, SharedFiles
    from curator_core._local.pool import WorkerProcess
    from curator_core._local.worker import Reply
    from curator_core._plan.groups import StageGroup

__all__ = ["GroupQueue", "InFlight"]

_BUNDLE_S = 0.1  # of work in a bundle: some 200 times what a hop costs here
_WORTH_S = 0.005  # less is not worth a hop
_AHEAD_S = 0.1  # of work that a process has at hand; with less it is given a further bundle
_WINDOW = 32  # bundles for each process that are not handed on, because one before them is still worked on
_HELD_BYTES = 64 * 2**20  # as much of their outputs
_MOST = 10_000  # tasks in a bundle, however short they are
_PART = 8  # outputs that are packed together while nothing is known of how long the next group takes


class InFlight:
    """A bundle that is with a worker, or has come back and waits for those before it.

    Attributes:
        queue: Whose it is.
        count: How many tasks it has.
        seconds: How long it is expected to take.
        reply: What became of it.
    """

    __slots__ = ("queue", "count", "seconds", "reply")

    def __init__(self, queue: GroupQueue, count: int, seconds: float) -> None:
        self.queue = queue
        self.count = count
        self.seconds = seconds
        self.reply: Reply | None = None

    def settle(self, reply: Reply) -> None:
        """It has come back."""
        self.reply = reply
        self.queue.observe(self, reply)


class GroupQueue:
    """A group of stages, and its place in the flow of tasks. Tasks leave it in the order in which they came.

    Args:
        group: The group.
        processes: The processes that may work for it.
        files: Packs tasks.
        bundle: Whether several batches are sent at once.

    Attributes:
        group: The group.
        processes: The processes that may work for it.
        plan: What its bundles are to be like.
        backlog: What waits.
        to_come: How many more tasks will; None where that is not known.
        window: What was sent and is not handed on, in order.
        following: Where its outputs go; None for the pipeline's.
        node: What has become of the node's setup; it is ready where no stage has one.
        sent: How many bundles were sent.
    """

    def __init__(
        self, group: StageGroup, processes: Sequence[WorkerProcess], files: SharedFiles, *, bundle: bool
    ) -> None:
        self.group = group
        self.processes = processes
        self.plan = BundlePlan.of(group, len(processes))
        self.backlog = Backlog(self.plan, files)
        self.to_come: int | None = None
        self.window: deque[InFlight] = deque()
        self.following: GroupQueue | None = None
        has_set_up = any(_prepares_node(compiled.stage) for compiled in group.stages)
        self.node: Literal["untouched", "in setup", "ready"] = "untouched" if has_set_up else "ready"
        self.sent = 0
        self._bundle = bundle
        self._pace = Pace(self.plan)
        self._size: int | None = None
        self._tasks_packed = 0
        self._bytes_packed = 0
        self._held_bytes = 0

    # --- how large bundles are ------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """How many tasks the next bundle is to have."""
        if self._size is None:
            self._size = self._pace.next_size()
        return min(self._size, self._most())  # more may have become known since

    def _most(self) -> int:
        """How many tasks a bundle may have by what is known of them, and at least one batch."""
        if not self._bundle:
            return self.plan.batch_size
        most, mean = _MOST, self._pace.seconds_per_task
        if mean:
            most = min(most, self.plan.whole_batches(int(_BUNDLE_S / mean)))
        if self._bytes_packed:
            most = min(most, self.plan.max_bytes * self._tasks_packed // self._bytes_packed)
        return max(most, self.plan.batch_size)

    def _fair(self) -> int:
        """How many tasks of those that remain one process may have, so that towards the end nobody has much left."""
        if self.to_come is None:
            return self.size
        mean = self._pace.seconds_per_task
        worth = _WORTH_S / mean if mean else 1
        return self.plan.whole_batches(max(worth, (self.backlog.count + self.to_come) / (2 * self.plan.slots)))

    @property
    def part_size(self) -> int:
        """How many tasks a worker of the group before this one is to pack together: less than a bundle, as a rule."""
        most = self._most()
        return self.plan.whole_batches(min(most, _PART) if self._pace.seconds_per_task is None else most // 4)

    # --- what may happen next -------------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """Whether so much waits that nothing more is to come for now."""
        waiting = self.backlog.count
        if waiting < self.plan.batch_size:
            return False
        slots = len(self.processes)
        return waiting >= self.size * slots or self.backlog.nbytes >= self.plan.max_bytes * slots

    @property
    def is_done(self) -> bool:
        """Whether all that will ever come has left."""
        return self.to_come == 0 and not self.backlog.count and not self.window

    def has_bundle(self, *, any_size: bool) -> bool:
        """Whether a bundle can be sent now.

        Args:
            any_size: Also one that is smaller than it should be, since a process has nothing else to do.
        """
        waiting = self.backlog.count
        if not waiting or self._is_held_up():
            return False
        if self.to_come == 0:
            return True
        if waiting < self.plan.batch_size:
            return False
        return any_size or waiting >= self.size or self.backlog.nbytes >= self.plan.max_bytes

    def _is_held_up(self) -> bool:
        """Whether nobody may work, or there is no place for what would come out."""
        if self.node == "in setup" or (self.following is not None and self.following.is_full):
            return True
        too_many = len(self.window) >= _WINDOW * len(self.processes)
        return too_many or self._held_bytes >= _HELD_BYTES

    def next_process(self, *, idle: bool) -> WorkerProcess | None:
        """The process to work next, if one has time: one that is set up, and of these the one with the least to do.

        Args:
            idle: Only such that have nothing to do.
        """
        free = [process for process in self.processes if (not process.held if idle else _has_time(process))]
        index = self.group.index
        return min(free, key=lambda process: (index not in process.groups, len(process.held)), default=None)

    # --- what happens -----------------------------------------------------------------------------------------

    def take(self) -> tuple[InFlight, list[Parcel]]:
        """The next bundle, to be sent.

        Raises:
            Exception: As `Backlog.take`.
        """
        parcels = self.backlog.take(min(self.size, self._fair()))
        self._size = None
        count = sum(parcel.count for parcel in parcels)
        self._tasks_packed += count
        self._bytes_packed += sum(parcel.nbytes for parcel in parcels)
        mean = self._pace.seconds_per_task
        sent = InFlight(self, count, math.inf if mean is None else mean * count)
        self.window.append(sent)
        self.sent += 1
        return sent, parcels

    def observe(self, sent: InFlight, reply: Reply) -> None:
        """Learn from what has come back."""
        self._pace.observe(sent.count, reply.seconds)
        self._held_bytes += _size_of(reply)

    def leaving(self) -> Iterator[Parcel]:
        """What can be handed on: outputs up to the first bundle that is still worked on."""
        while self.window and (reply := self.window[0].reply) is not None:
            self.window.popleft()
            self._held_bytes -= _size_of(reply)
            yield from reply.parcels

    def complete(self) -> Iterator[Parcel]:
        """All outputs that have come back, when no more is to."""
        for sent in self.window:
            if sent.reply is not None:
                yield from sent.reply.parcels


def _has_time(process: WorkerProcess) -> bool:
    return not process.held or sum(job.seconds for job in process.held) < _AHEAD_S


def _size_of(reply: Reply) -> int:
    return sum(parcel.nbytes for parcel in reply.parcels)


def _prepares_node(stage: Any) -> bool:
    return getattr(stage.setup_on_node, "__func__", None) is not ProcessingStage.setup_on_node
