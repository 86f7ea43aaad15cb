# SPDX-License-Identifier: Apache-2.0
"""The queue of a group of stages, in the driver of `LocalExecutor`: its pending tasks, and its bundles in flight."""

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

_BUNDLE_S = 0.1  # of work in a bundle: some 200 times the cost of a hop here
_WORTH_S = 0.005  # less work than that is not worth a hop
_AHEAD_S = 0.1  # of work in a process's jobs; with less, it gets another bundle
_MAX_WINDOW = 32  # bundles per process that are not forwarded, because an earlier one is still worked on
_MAX_WINDOW_BYTES = 64 * 2**20  # of their outputs
_MAX_BUNDLE = 10_000  # tasks in a bundle, however short they are
_FIRST_PARCEL = 8  # outputs in a parcel until it is known how long the next group takes


class InFlight:
    """A bundle that a worker works on, or whose outputs wait for those of an earlier bundle.

    Attributes:
        queue: The queue that it comes from.
        count: Number of tasks.
        seconds: How long it is expected to take.
        reply: The worker's reply; None until it arrives.
    """

    __slots__ = ("queue", "count", "seconds", "reply")

    def __init__(self, queue: GroupQueue, count: int, seconds: float) -> None:
        self.queue = queue
        self.count = count
        self.seconds = seconds
        self.reply: Reply | None = None

    def settle(self, reply: Reply) -> None:
        """Record the reply."""
        self.reply = reply
        self.queue.observe(self, reply)


class GroupQueue:
    """The queue of a group of stages. Outputs leave it in the order in which the tasks arrived.

    Args:
        group: The group.
        processes: The processes that may work for it.
        files: Packs tasks.
        bundle: Whether several batches are sent at once.

    Attributes:
        group: The group.
        processes: The processes that may work for it.
        plan: The rules for the sizes of its bundles.
        backlog: The pending tasks.
        upcoming: How many more tasks will arrive; None if unknown.
        window: The bundles that were sent and whose outputs are not forwarded yet, in order.
        following: The queue that its outputs go to; None if they are the pipeline's outputs.
        node: State of the node's setup; "ready" from the start if no stage prepares the node.
        num_sent: Number of bundles sent so far.
    """

    def __init__(
        self, group: StageGroup, processes: Sequence[WorkerProcess], files: SharedFiles, *, bundle: bool
    ) -> None:
        self.group = group
        self.processes = processes
        self.plan = BundlePlan.of(group, len(processes))
        self.backlog = Backlog(self.plan, files)
        self.upcoming: int | None = None
        self.window: deque[InFlight] = deque()
        self.following: GroupQueue | None = None
        prepares_node = any(_prepares_node(compiled.stage) for compiled in group.stages)
        self.node: Literal["untouched", "in setup", "ready"] = "untouched" if prepares_node else "ready"
        self.num_sent = 0
        self._bundle = bundle
        self._pace = Pace(self.plan)
        self._size: int | None = None
        self._tasks_packed = 0
        self._bytes_packed = 0
        self._window_bytes = 0

    # --- bundle sizes ---------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Number of tasks for the next bundle."""
        if self._size is None:
            self._size = self._pace.next_size()
        return min(self._size, self._max_size())  # measurements since then may have lowered the maximum

    def _max_size(self) -> int:
        """Return the maximum number of tasks in a bundle, as far as measured; at least one batch."""
        if not self._bundle:
            return self.plan.batch_size
        limit, mean = _MAX_BUNDLE, self._pace.seconds_per_task
        if mean:
            limit = min(limit, self.plan.whole_batches(int(_BUNDLE_S / mean)))
        if self._bytes_packed:
            limit = min(limit, self.plan.max_bytes * self._tasks_packed // self._bytes_packed)
        return max(limit, self.plan.batch_size)

    def _fair_size(self) -> int:
        """Return how many of the remaining tasks one process may get, so that all processes finish together."""
        if self.upcoming is None:
            return self.size
        mean = self._pace.seconds_per_task
        worth = _WORTH_S / mean if mean else 1
        return self.plan.whole_batches(max(worth, (self.backlog.count + self.upcoming) / (2 * self.plan.slots)))

    @property
    def parcel_size(self) -> int:
        """Number of tasks that workers of the previous group pack together: usually less than a bundle."""
        limit = self._max_size()
        return self.plan.whole_batches(min(limit, _FIRST_PARCEL) if self._pace.seconds_per_task is None else limit // 4)

    # --- what can happen next -------------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """Whether the backlog is so large that no more tasks should be added for now."""
        pending = self.backlog.count
        if pending < self.plan.batch_size:
            return False
        slots = len(self.processes)
        return pending >= self.size * slots or self.backlog.nbytes >= self.plan.max_bytes * slots

    @property
    def is_done(self) -> bool:
        """Whether all tasks have arrived, and all outputs are forwarded."""
        return self.upcoming == 0 and not self.backlog.count and not self.window

    def has_bundle(self, *, any_size: bool) -> bool:
        """Whether a bundle can be sent now.

        Args:
            any_size: Whether the bundle may be smaller than intended, because a process is idle.
        """
        pending = self.backlog.count
        if not pending or self._is_blocked():
            return False
        if self.upcoming == 0:
            return True
        if pending < self.plan.batch_size:
            return False
        return any_size or pending >= self.size or self.backlog.nbytes >= self.plan.max_bytes

    def _is_blocked(self) -> bool:
        """Whether the node is not ready, or there is no room for more outputs."""
        if self.node == "in setup" or (self.following is not None and self.following.is_full):
            return True
        too_many = len(self.window) >= _MAX_WINDOW * len(self.processes)
        return too_many or self._window_bytes >= _MAX_WINDOW_BYTES

    def next_process(self, *, idle: bool) -> WorkerProcess | None:
        """Return the process to send the next bundle to; None if all are busy.

        A process that is set up for the group comes first, and of several the one with the fewest jobs.

        Args:
            idle: Whether to consider only processes that have no job.
        """
        free = [process for process in self.processes if (not process.jobs if idle else _has_time(process))]
        index = self.group.index
        return min(free, key=lambda process: (index not in process.groups, len(process.jobs)), default=None)

    # --- what happens -----------------------------------------------------------------------------------------

    def take(self) -> tuple[InFlight, list[Parcel]]:
        """Take the next bundle from the backlog, to be sent.

        Raises:
            Exception: See `Backlog.take`.
        """
        parcels = self.backlog.take(min(self.size, self._fair_size()))
        self._size = None
        count = sum(parcel.count for parcel in parcels)
        self._tasks_packed += count
        self._bytes_packed += sum(parcel.nbytes for parcel in parcels)
        mean = self._pace.seconds_per_task
        in_flight = InFlight(self, count, math.inf if mean is None else mean * count)
        self.window.append(in_flight)
        self.num_sent += 1
        return in_flight, parcels

    def observe(self, in_flight: InFlight, reply: Reply) -> None:
        """Record how long a bundle took, and how large its outputs are."""
        self._pace.observe(in_flight.count, reply.seconds)
        self._window_bytes += _size_of(reply)

    def pop_outputs(self) -> Iterator[Parcel]:
        """Remove and yield the outputs to forward: those of all bundles before the first one without a reply."""
        while self.window and (reply := self.window[0].reply) is not None:
            self.window.popleft()
            self._window_bytes -= _size_of(reply)
            yield from reply.parcels

    def finished_outputs(self) -> Iterator[Parcel]:
        """Yield all outputs that have arrived, for a run that ends early."""
        for in_flight in self.window:
            if in_flight.reply is not None:
                yield from in_flight.reply.parcels


def _has_time(process: WorkerProcess) -> bool:
    return not process.jobs or sum(job.seconds for job in process.jobs) < _AHEAD_S


def _size_of(reply: Reply) -> int:
    return sum(parcel.nbytes for parcel in reply.parcels)


def _prepares_node(stage: Any) -> bool:
    return getattr(stage.setup_on_node, "__func__", None) is not ProcessingStage.setup_on_node
