# SPDX-License-Identifier: Apache-2.0
"""The worker's end of the line to the coordinator."""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import TYPE_CHECKING, Any

import ray

from curator_core import BatchReport
from curator_core.backends import (
    become_worker,
    digest,
    fail_batches,
    mark_records,
    pack_reports,
    relay_records,
    use_cloudpickle,
)
from curator_xenna.coordinator import Delivery, LateCoordinator, Work, WorkerEntry
from curator_xenna.parcel import Parcel
from curator_xenna.worker_logs import log_buffer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ray.actor import ActorHandle

    from curator_core.observers import WorkerReport

__all__ = ["WorkerLink"]

logger = logging.getLogger(__name__)

_LARGE = 256 * 1024  # bytes of outputs
_watched = threading.Lock()  # taken once a process: the first worker in it starts the watch


class WorkerLink:
    """Gathers the reports of one worker, and sends them in one call for each of Xenna's.

    Args:
        coordinator: The run's coordinator; in the driver, one that is started when this is sent to a worker.
        group: Which of the run's groups of stages the worker belongs to.
        first: Index of the group's first stage.
        last: Index of its last.
    """

    def __init__(self, coordinator: ActorHandle[Any] | LateCoordinator, group: int, first: int, last: int) -> None:
        self._coordinator: Any = coordinator
        self._group, self._first, self._last = group, first, last
        self._waiting: list[BatchReport | WorkerReport] = []
        self._worker_id = self._node_id = ""
        self._unit = ""
        self._round_trip_ns = 0
        self._logs = log_buffer()
        self._lock = threading.Lock()  # Xenna tears down in another thread than it works in

    def __reduce__(self) -> tuple[Any, ...]:
        coordinator = self._coordinator
        if isinstance(coordinator, LateCoordinator):
            coordinator = coordinator.get()
        return WorkerLink, (coordinator, self._group, self._first, self._last)

    def enter(self, worker_id: str, node_id: str) -> None:
        """Sign in, so that the driver can end this worker whatever becomes of the run."""
        if self._worker_id:
            return
        self._worker_id, self._node_id = worker_id, node_id
        use_cloudpickle(ray.cloudpickle)  # Ray unpickled the stage and its tasks with it
        _exit_with_main_thread()
        become_worker()
        mark_records()
        logging.getLogger().addHandler(self._logs)
        relay_records(self._logs)
        context = ray.get_runtime_context()
        entry = WorkerEntry(
            worker_id=worker_id,
            node_id=node_id,
            group=self._group,
            pid=os.getpid(),
            actor_id=context.get_actor_id() or "",
            handle=context.current_actor,
        )
        ray.get(self._coordinator.sign_in.remote(entry))

    def collect(self, report: BatchReport | WorkerReport) -> None:
        """Keep a report for the next `send`."""
        self._waiting.append(report)

    def begin(self, tasks: Sequence[Any]) -> str:
        """Work on these tasks begins; the name of what Xenna handed over, the same when it hands that over again."""
        ids = "\0".join([task.task_id for task in tasks])
        self._unit = digest(ids, 8)
        return self._unit

    def send(self, outputs: list[Any] | None, *, is_primary: bool) -> float | None:
        """Send what was gathered, and wait until the coordinator has it.

        Args:
            outputs: Outputs of the pipeline to go with it.
            is_primary: Whether this worker's batches count: those of the other ranks of an SPMD group are
                the same ones, and only their failures are news.

        Returns:
            What a task takes in the next group, in seconds; None where that is not known.
        """
        sent = outputs if is_primary else None
        payload = Parcel.of(sent) if sent else None  # first: where it raises, nothing is lost
        with self._lock:
            reports, self._waiting = self._waiting, []
        unit, self._unit = self._unit, ""
        if not reports:
            return None
        work = _work_of(reports, self._first, self._last)
        # What is large stays here until the driver has fetched it: by way of the coordinator it would be copied twice.
        outputs_ref = ray.put(payload) if payload is not None and payload.nbytes > _LARGE else None
        delivery = Delivery(
            self._worker_id,
            self._node_id,
            self._group,
            unit,
            work,
            pack_reports(reports),
            payload if outputs_ref is None else None,
            outputs_ref,
            is_primary,
            sent_unix_ns=time.time_ns(),
            logs=tuple(self._logs.take()),
            round_trip_ns=self._round_trip_ns,
        )
        start = time.perf_counter_ns()
        pace: float | None = ray.get(self._coordinator.deliver.remote(delivery))
        self._round_trip_ns = time.perf_counter_ns() - start
        return pace

    def mark_failed(self, batch_ids: set[str], error: BaseException) -> set[str]:
        """Make failures of batches that have ended and are not sent yet: their outputs cannot travel.

        Returns:
            The batches of which that is true.
        """
        with self._lock:
            return fail_batches(self._waiting, batch_ids, error)

    def tear_down_when_told(self, tear_down: Callable[[], None]) -> None:
        """Wait in a thread until the coordinator says that the group's work is done, then tear down.

        This is how ``teardown()`` runs on versions of Xenna that do not call it themselves.
        """
        threading.Thread(target=self._await_end, args=(tear_down,), name="curator-teardown", daemon=True).start()

    def _await_end(self, tear_down: Callable[[], None]) -> None:
        try:
            ray.get(self._coordinator.group_ended.remote(self._worker_id, self._group))
            tear_down()
            ray.get(self._coordinator.torn_down.remote(self._worker_id))
        except ray.exceptions.RayError:
            logger.debug("the run was over before the worker was told to tear down", exc_info=True)


def _work_of(reports: Sequence[BatchReport | WorkerReport], first: int, last: int) -> Work:
    """What the reports of one call come to, for the whole group."""
    done = made = 0
    nanoseconds = 0
    for report in reports:
        if not isinstance(report, BatchReport):
            continue
        nanoseconds += report.duration_ns
        if report.is_retried:
            continue
        if report.stage_index == first:
            done += len(report.inputs)
        if report.stage_index == last:
            made += report.num_out
    return Work(done, made, nanoseconds / 1e9)


def _exit_with_main_thread() -> None:
    """End this process when Ray ends its main thread.

    Xenna's worker threads are no daemons: without this they keep a killed worker's process alive, for hours.
    """
    if not _watched.acquire(blocking=False):
        return

    def watch() -> None:
        threading.main_thread().join()
        os._exit(0)

    threading.Thread(target=watch, name="curator-exit-with-main", daemon=True).start()
