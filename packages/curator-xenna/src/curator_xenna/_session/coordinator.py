# SPDX-License-Identifier: Apache-2.0
"""The actor that receives a run's reports from its workers and passes them to the driver.

Each run has one, on the driver's node. A worker's report arrives here before its outputs can move on, so the counts
are complete even for an aborted run.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from curator_core import ClusterError

if TYPE_CHECKING:
    from logging import LogRecord

    from ray import ObjectRef
    from ray.actor import ActorHandle

    from curator_core.backends import Packed

__all__ = ["Coordinator", "CoordinatorLink", "Delivery", "Work", "WorkerEntry"]

logger = logging.getLogger(__name__)

_RECENT = 65_536  # deliveries to remember: Xenna repeats the work in flight of a dead worker, which is a few slots
_TEARDOWN_BUDGET_S = 45.0  # the same as Xenna's own, in versions that have one
_PROBE_S = 1.0  # after which a silent worker is asked whether it is alive
_MAX_WORKERS = 10_000  # calls that can wait at the same time: one for each worker of a run


class WorkerEntry(NamedTuple):
    """A worker that has signed in.

    Attributes:
        worker_id: Xenna's id of the worker.
        node_id: Ray's id of its node.
        group: The index of its group of stages.
        pid: The id of its process on that node.
        actor_id: Ray's id of its actor.
        handle: The handle of its actor.
    """

    worker_id: str
    node_id: str
    group: int
    pid: int
    actor_id: str
    handle: ActorHandle[Any]


class Work(NamedTuple):
    """The work that a worker did in one call from Xenna.

    Attributes:
        done: The number of tasks that its first stage finished.
        made: The number of tasks that its last stage returned.
        seconds: The total time of all its stages.
    """

    done: int = 0
    made: int = 0
    seconds: float = 0.0


class Delivery(NamedTuple):
    """The message that a worker sends after each call from Xenna.

    Attributes:
        worker_id: The worker.
        node_id: Its node.
        group: The index of its group of stages.
        unit: Identifies the tasks of the call, so that a repeated call has the same one; empty for setup and teardown.
        work: The counts and time of the call.
        reports: Pickled reports, in order; opaque to the coordinator.
        outputs: Output tasks of the pipeline, from workers of the last group; opaque to the coordinator.
        outputs_ref: A reference to the outputs if they are large: they stay with the worker until the driver has
            fetched them.
        is_primary: Whether its batches count; the other ranks of an SPMD group get the same batches.
        sent_unix_ns: When it left, by the clock of the worker's node.
        logs: Records that were logged on the worker since its last delivery, at WARNING and above.
        round_trip_ns: How long the worker's last delivery and its reply took together; 0 on its first.
        received_unix_ns: When it arrived, by the clock of the driver's node; 0 until then.
        is_repeated: Whether the work of the same tasks was delivered before.
    """

    worker_id: str
    node_id: str
    group: int
    unit: str
    work: Work
    reports: bytes
    outputs: Packed | None
    outputs_ref: ObjectRef[Packed] | None
    is_primary: bool
    sent_unix_ns: int
    logs: tuple[LogRecord, ...] = ()
    round_trip_ns: int = 0
    received_unix_ns: int = 0
    is_repeated: bool = False


class _Group:
    """The counts of one group of stages, and its workers that are ready."""

    def __init__(self) -> None:
        self.expected: int | None = None  # number of input tasks; None until the previous group has ended
        self.done = 0
        self.made = 0
        self.seconds = 0.0
        self.ended = asyncio.Event()
        self.ready: dict[str, asyncio.Event] = {}  # by worker; set after its teardown


class Coordinator:
    """Receives deliveries from workers, passes them to the driver, and tells workers when their group is done.

    Args:
        num_groups: The number of groups of stages in the run.
        fed: The number of input tasks of the first group.
    """

    def __init__(self, num_groups: int, fed: int) -> None:
        self._groups = [_Group() for _ in range(num_groups)]
        self._groups[0].expected = fed
        self._workers: dict[str, WorkerEntry] = {}
        self._recent: dict[tuple[int, str], None] = {}  # in order of arrival
        self._outbox: list[Delivery] = []
        self._fetched: dict[str, asyncio.Event] = {}  # by worker, which has only one delivery in flight
        self._news = asyncio.Event()

    async def sign_in(self, worker: WorkerEntry) -> None:
        """Register a worker that has started."""
        self._workers[worker.worker_id] = worker

    async def workers(self) -> list[WorkerEntry]:
        """Return all workers that have signed in, including those that ended."""
        return list(self._workers.values())

    async def deliver(self, delivery: Delivery) -> float | None:
        """Receive a worker's reports.

        Returns only when they are safe. If they end a group, also waits until the group's workers have torn down.

        Returns:
            The seconds per task in the next group; None if unknown.
        """
        delivery = delivery._replace(received_unix_ns=time.time_ns())
        repeated = delivery.is_primary and bool(delivery.unit) and self._is_known(delivery)
        if repeated:
            delivery = delivery._replace(is_repeated=True, outputs=None, outputs_ref=None)
        fetched = self._fetched[delivery.worker_id] = asyncio.Event()
        self._outbox.append(delivery)
        self._news.set()
        if delivery.outputs_ref is not None:
            await fetched.wait()
        if delivery.is_primary and not repeated:
            self._count(delivery)
            await self._end_groups()
        return self._pace_of(delivery.group + 1)

    async def pull(self, timeout_s: float) -> list[Delivery]:
        """Return the deliveries since the last call; if there are none, wait for one up to a timeout."""
        if not self._outbox:
            try:
                await asyncio.wait_for(self._news.wait(), timeout_s)
            except TimeoutError:
                return []
        self._news.clear()
        news, self._outbox = self._outbox, []
        return news

    async def fetched(self, worker_id: str) -> None:
        """Note that the driver has fetched the outputs that a worker keeps for it."""
        self._fetched[worker_id].set()

    async def wake(self) -> None:
        """Make a waiting `pull` return."""
        self._news.set()

    async def group_ended(self, worker_id: str, group: int) -> None:
        """Register a worker as ready, and wait until its group has no more work."""
        self._groups[group].ready.setdefault(worker_id, asyncio.Event())
        await self._groups[group].ended.wait()

    async def torn_down(self, worker_id: str) -> None:
        """Note that a worker has torn down."""
        for group in self._groups:
            if worker_id in group.ready:
                group.ready[worker_id].set()

    def _is_known(self, delivery: Delivery) -> bool:
        """Whether this work was delivered before: Xenna repeats the work in flight of a worker that died."""
        unit = delivery.group, delivery.unit
        if unit in self._recent:
            return True
        self._recent[unit] = None
        if len(self._recent) > _RECENT:
            del self._recent[next(iter(self._recent))]
        return False

    def _count(self, delivery: Delivery) -> None:
        group = self._groups[delivery.group]
        group.done += delivery.work.done
        group.made += delivery.work.made
        group.seconds += delivery.work.seconds

    def _pace_of(self, number: int) -> float | None:
        if number >= len(self._groups) or not self._groups[number].done:
            return None
        return self._groups[number].seconds / self._groups[number].done

    async def _end_groups(self) -> None:
        """End every group that has no work left, and wait until its workers have torn down."""
        told: dict[str, asyncio.Event] = {}
        for number, group in enumerate(self._groups):
            if group.expected is None or group.done < group.expected:
                break
            if number + 1 < len(self._groups):
                self._groups[number + 1].expected = group.made
            if not group.ended.is_set():
                group.ended.set()
                told |= group.ready
        waits = [asyncio.ensure_future(self._gone(worker_id, event)) for worker_id, event in told.items()]
        if not waits:
            return
        _, late = await asyncio.wait(waits, timeout=_TEARDOWN_BUDGET_S)
        for wait in late:
            wait.cancel()
        if late:
            logger.warning("%d workers did not tear down within %.0f s", len(late), _TEARDOWN_BUDGET_S)

    async def _gone(self, worker_id: str, torn_down: asyncio.Event) -> None:
        """Wait until a worker has torn down, or is found to have died before."""
        from ray.exceptions import RayError  # noqa: PLC0415 - imported in the actor, not with the module

        while not torn_down.is_set():
            try:
                await asyncio.wait_for(torn_down.wait(), _PROBE_S)
            except TimeoutError:
                try:
                    await self._workers[worker_id].handle.__ray_ready__.remote()
                except RayError:
                    return


class CoordinatorLink:
    """A run's coordinator, which is started on the driver's node when it is first sent to a worker.

    For a new driver, Ray starts one process for each CPU in advance, and Xenna waits for the first two actors that it
    requests. A coordinator started before these actors would make Xenna wait for a new process, 0.8 s on two cores. A
    coordinator started after them finds a process that they left. Later runs of the same driver have no such processes:
    they call `get` immediately, so that the coordinator's process starts while Xenna prepares.

    Args:
        num_groups: The number of groups of stages in the run.
        fed: The number of input tasks of the first group.
    """

    def __init__(self, num_groups: int, fed: int) -> None:
        self._args = num_groups, fed
        self._lock = threading.Lock()
        self._started = threading.Event()
        self._handle: ActorHandle[Any] | None = None

    @property
    def started(self) -> ActorHandle[Any] | None:
        """The actor; None if it was never sent to a worker."""
        return self._handle

    def get(self) -> ActorHandle[Any]:
        """Return the actor, starting it if necessary. It lives as long as the driver has the handle."""
        with self._lock:
            if self._handle is None:
                # In another thread: in this one, Ray is in the middle of pickling the link that needs the actor.
                thread = threading.Thread(target=self._start, name="curator-coordinator", daemon=True)
                thread.start()
                thread.join()
            if self._handle is None:
                raise ClusterError("the run's coordinator did not start", hint="check Ray's logs")
        return self._handle

    def wait(self, timeout_s: float) -> ActorHandle[Any] | None:
        """Return the actor as soon as `get` has started it; None on a timeout."""
        self._started.wait(timeout_s)
        return self._handle

    def _start(self) -> None:
        import ray  # noqa: PLC0415 - the actor itself does not need it
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(Coordinator).options(num_cpus=0, max_concurrency=_MAX_WORKERS, scheduling_strategy=here)
        handle: Any = actor.remote(*self._args)
        self._handle = handle
        self._started.set()
