# SPDX-License-Identifier: Apache-2.0
"""The actor that takes a run's reports from its workers and hands them to the driver.

One lives for each run, beside the driver. A worker's report is here before its outputs can move on, so an
aborted run still has its accounts.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from curator_core.report import BatchReport, InputOutcome, WorkerReport

if TYPE_CHECKING:
    from ray.actor import ActorHandle

__all__ = ["Coordinator", "Delivery", "WorkerEntry", "start_coordinator"]

logger = logging.getLogger(__name__)

_RECENT_BATCHES = 64  # of each worker: Xenna repeats what a dead worker had in hand, which is a few slots
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


class Delivery(NamedTuple):
    """What a worker sends after each batch.

    Attributes:
        worker_id: The worker.
        group: Its group of stages.
        reports: Reports, in order.
        outputs: Pickled output tasks of the pipeline, from workers of the last group; opaque here.
        is_primary: Whether its batches count: the other ranks of an SPMD group are given the same ones.
    """

    worker_id: str
    group: int
    reports: tuple[BatchReport | WorkerReport, ...]
    outputs: bytes | None
    is_primary: bool


class _Group:
    """Counts of one group of stages, and its workers that are ready."""

    def __init__(self) -> None:
        self.expected: int | None = None  # tasks that are to come in; None until the group above has ended
        self.done = 0
        self.made = 0
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
        self._recent: dict[str, deque[str]] = {}
        self._known: set[str] = set()
        self._outbox: list[Delivery] = []
        self._news = asyncio.Event()

    async def sign_in(self, worker: WorkerEntry) -> None:
        """A worker has started."""
        self._workers[worker.worker_id] = worker

    async def workers(self) -> list[WorkerEntry]:
        """All workers that ever signed in."""
        return list(self._workers.values())

    async def deliver(self, delivery: Delivery) -> None:
        """Take a worker's reports; returns once they are safe and, at the end of a group, torn down for."""
        fresh = self._first_time(delivery) if delivery.is_primary else _without_batches(delivery)
        self._outbox.append(fresh)
        self._news.set()
        self._count(fresh)
        await self._end_groups()

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

    async def group_ended(self, worker_id: str, group: int) -> None:
        """A worker is ready; returns when there is no more work for its group."""
        self._groups[group].ready.setdefault(worker_id, asyncio.Event())
        await self._groups[group].ended.wait()

    async def torn_down(self, worker_id: str) -> None:
        """A worker has torn down."""
        for group in self._groups:
            if worker_id in group.ready:
                group.ready[worker_id].set()

    def _first_time(self, delivery: Delivery) -> Delivery:
        """The delivery, with repeats of batches that were delivered before marked as mere attempts.

        Xenna runs a batch again when its worker died after it had delivered; it must not count twice.
        """
        recent = self._recent.setdefault(delivery.worker_id, deque())
        reports, repeated = [], False
        for report in delivery.reports:
            if isinstance(report, BatchReport) and not _is_retry(report):
                if report.batch_id in self._known:
                    repeated = True
                    report = _as_retry(report)  # noqa: PLW2901 - it goes on as what it turned out to be
                else:
                    self._remember(report.batch_id, recent)
            reports.append(report)
        return delivery._replace(reports=tuple(reports), outputs=None if repeated else delivery.outputs)

    def _remember(self, batch_id: str, recent: deque[str]) -> None:
        self._known.add(batch_id)
        recent.append(batch_id)
        if len(recent) > _RECENT_BATCHES:
            self._known.discard(recent.popleft())

    def _count(self, delivery: Delivery) -> None:
        group = self._groups[delivery.group]
        batches = [r for r in delivery.reports if isinstance(r, BatchReport) and not _is_retry(r)]
        group.done += sum(len(report.inputs) for report in batches)
        group.made += sum(report.num_out for report in batches)

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


def _without_batches(delivery: Delivery) -> Delivery:
    """What another rank than the first has to say: its life, and what went wrong, which counts nothing."""
    news: list[BatchReport | WorkerReport] = []
    for report in delivery.reports:
        if isinstance(report, WorkerReport):
            news.append(report)
        elif report.error is not None:
            news.append(_as_retry(report))
    return delivery._replace(reports=tuple(news), outputs=None)


def _is_retry(report: BatchReport) -> bool:
    return bool(report.inputs) and report.inputs[0].kind == "retried"


def _as_retry(report: BatchReport) -> BatchReport:
    return report._replace(inputs=tuple(InputOutcome(outcome.task_id, "retried", 0) for outcome in report.inputs))


def start_coordinator(num_groups: int, fed: int) -> ActorHandle[Any]:
    """Start a run's coordinator on the driver's node. It lives as long as the driver holds the handle."""
    import ray  # noqa: PLC0415 - the actor itself does not need it
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    actor = ray.remote(Coordinator).options(num_cpus=0, max_concurrency=_MAX_WORKERS, scheduling_strategy=here)
    handle: Any = actor.remote(num_groups, fed)
    return handle  # type: ignore[no-any-return]
