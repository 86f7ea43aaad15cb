# SPDX-License-Identifier: Apache-2.0
"""The actor that takes a run's reports from its workers and hands them to the driver.

One lives for each run, on the driver's node. A worker's report is here before its outputs can move on, so an
aborted run still has its accounts.
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

    from curator_xenna.parcel import Parcel

__all__ = ["Coordinator", "Delivery", "LateCoordinator", "Work", "WorkerEntry"]

logger = logging.getLogger(__name__)

_RECENT = 65_536  # deliveries to know again: Xenna repeats what a dead worker had in hand, which is a few slots
_TEARDOWN_BUDGET_S = 45.0  # as Xenna's own, where it has one
_PROBE_S = 1.0  # after which a worker that is silent is asked whether it lives
_MAX_WORKERS = 10_000  # calls that may wait at once: one for each worker of a run


class WorkerEntry(NamedTuple):
    """A worker that signed in.

    Attributes:
        worker_id: Xenna's id.
        node_id: Ray's id of its node.
        group: Its group of stages.
        pid: Its process on that node.
        actor_id: Ray's id of its actor.
        handle: Its actor.
    """

    worker_id: str
    node_id: str
    group: int
    pid: int
    actor_id: str
    handle: ActorHandle[Any]


class Work(NamedTuple):
    """What a worker did with what Xenna handed it at once.

    Attributes:
        done: Tasks that its first stage is done with.
        made: Tasks that came out of its last stage.
        seconds: How long all its stages took.
    """

    done: int = 0
    made: int = 0
    seconds: float = 0.0


class Delivery(NamedTuple):
    """What a worker sends after each of Xenna's calls.

    Attributes:
        worker_id: The worker.
        node_id: Its node.
        group: Its group of stages.
        unit: Name of what Xenna had handed over, the same when it hands that over again; empty for set-up and end.
        work: What became of it.
        reports: Pickled reports, in order; opaque here.
        outputs: Output tasks of the pipeline, from workers of the last group; opaque here.
        outputs_ref: The same where they are large: they stay with the worker until the driver has fetched them.
        is_primary: Whether its batches count: the other ranks of an SPMD group are given the same ones.
        sent_unix_ns: When it left, by the clock of the worker's node.
        logs: What was logged there meanwhile, at WARNING and above.
        round_trip_ns: How long the worker's last delivery and its answer took together; 0 on its first.
        received_unix_ns: When it arrived, by the clock of the driver's node; 0 while it is on its way.
        is_repeated: Whether the same had been delivered before.
    """

    worker_id: str
    node_id: str
    group: int
    unit: str
    work: Work
    reports: bytes
    outputs: Parcel | None
    outputs_ref: ObjectRef[Parcel] | None
    is_primary: bool
    sent_unix_ns: int
    logs: tuple[LogRecord, ...] = ()
    round_trip_ns: int = 0
    received_unix_ns: int = 0
    is_repeated: bool = False


class _Group:
    """Counts of one group of stages, and its workers that are ready."""

    def __init__(self) -> None:
        self.expected: int | None = None  # tasks that are to come in; None until the group above has ended
        self.done = 0
        self.made = 0
        self.seconds = 0.0
        self.ended = asyncio.Event()
        self.ready: dict[str, asyncio.Event] = {}  # by worker; set when it has torn down


class Coordinator:
    """Takes deliveries from workers, hands them to the driver, and tells workers when their group is done.

    Args:
        num_groups: Groups of stages in the run.
        fed: Tasks that the first group is fed.
    """

    def __init__(self, num_groups: int, fed: int) -> None:
        self._groups = [_Group() for _ in range(num_groups)]
        self._groups[0].expected = fed
        self._workers: dict[str, WorkerEntry] = {}
        self._recent: dict[tuple[int, str], None] = {}  # in the order of their coming
        self._outbox: list[Delivery] = []
        self._fetched: dict[str, asyncio.Event] = {}  # by worker: it delivers one thing at a time
        self._news = asyncio.Event()

    async def sign_in(self, worker: WorkerEntry) -> None:
        """A worker has started."""
        self._workers[worker.worker_id] = worker

    async def workers(self) -> list[WorkerEntry]:
        """All workers that ever signed in."""
        return list(self._workers.values())

    async def deliver(self, delivery: Delivery) -> float | None:
        """Take a worker's reports; returns once they are safe and, at the end of a group, torn down for.

        Returns:
            What a task takes in the next group, in seconds; None where that is not known.
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
        """What has come since the last call; waits for something to come, up to a time."""
        if not self._outbox:
            try:
                await asyncio.wait_for(self._news.wait(), timeout_s)
            except TimeoutError:
                return []
        self._news.clear()
        news, self._outbox = self._outbox, []
        return news

    async def fetched(self, worker_id: str) -> None:
        """The driver has what a worker keeps for it."""
        self._fetched[worker_id].set()

    async def wake(self) -> None:
        """Let a `pull` that waits return."""
        self._news.set()

    async def group_ended(self, worker_id: str, group: int) -> None:
        """A worker is ready; returns when there is no more work for its group."""
        self._groups[group].ready.setdefault(worker_id, asyncio.Event())
        await self._groups[group].ended.wait()

    async def torn_down(self, worker_id: str) -> None:
        """A worker has torn down."""
        for group in self._groups:
            if worker_id in group.ready:
                group.ready[worker_id].set()

    def _is_known(self, delivery: Delivery) -> bool:
        """Whether this was delivered before: Xenna runs again what a worker that died had in hand."""
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
        """End every group that has nothing left to do, and wait until its workers have torn down."""
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
        """Returns when a worker has torn down, or turns out to have died before it could."""
        from ray.exceptions import RayError  # noqa: PLC0415 - imported in the actor, not with the module

        while not torn_down.is_set():
            try:
                await asyncio.wait_for(torn_down.wait(), _PROBE_S)
            except TimeoutError:
                try:
                    await self._workers[worker_id].handle.__ray_ready__.remote()
                except RayError:
                    return


class LateCoordinator:
    """A run's coordinator, started when it is first sent to a worker, on the driver's node.

    For a new driver Ray starts a process for each CPU beforehand, and Xenna waits for the first two actors that it asks
    for. One that came before them would make it wait for a new process, 0.8 s on two cores; one that comes after them
    finds a process of theirs. Later runs of the same driver have no such processes: they call `get` at once, so that
    the coordinator's starts while Xenna prepares.

    Args:
        num_groups: Groups of stages in the run.
        fed: Tasks that the first group is fed.
    """

    def __init__(self, num_groups: int, fed: int) -> None:
        self._args = num_groups, fed
        self._lock = threading.Lock()
        self._started = threading.Event()
        self._handle: ActorHandle[Any] | None = None

    @property
    def started(self) -> ActorHandle[Any] | None:
        """The actor; None where no worker was ever to have it."""
        return self._handle

    def get(self) -> ActorHandle[Any]:
        """The actor, which is started if need be. It lives as long as the driver holds the handle."""
        with self._lock:
            if self._handle is None:
                # In a thread of its own: Ray is in the middle of pickling what asks for it.
                thread = threading.Thread(target=self._start, name="curator-coordinator", daemon=True)
                thread.start()
                thread.join()
            if self._handle is None:
                raise ClusterError("the run's coordinator did not start", hint="see Ray's logs")
        return self._handle

    def wait(self, timeout_s: float) -> ActorHandle[Any] | None:
        """The actor, as soon as somebody has asked for it; None where nobody has for so long."""
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
