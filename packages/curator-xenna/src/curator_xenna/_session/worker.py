# SPDX-License-Identifier: Apache-2.0
"""The worker's side of the connection to the coordinator."""

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
    fail_unsendable,
    mark_records,
    pack_reports,
    relay_records,
    use_cloudpickle,
)
from curator_xenna._session.coordinator import CoordinatorLink, Delivery, Work, WorkerEntry
from curator_xenna._session.packing import pack
from curator_xenna._session.worker_logs import log_buffer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ray.actor import ActorHandle

    from curator_core.observers import WorkerReport

__all__ = ["WorkerLink"]

logger = logging.getLogger(__name__)

_LARGE = 256 * 1024  # bytes of outputs
_watched = threading.Lock()  # taken once per process: the first worker in it starts the watch


class WorkerLink:
    """Collects the reports of one worker, and sends them in one delivery for each call from Xenna.

    Args:
        coordinator: The run's coordinator; in the driver, one that starts when this link is sent to a worker.
        group: The index of the worker's group of stages.
        first: The index of the group's first stage.
        last: The index of the group's last stage.
    """

    def __init__(self, coordinator: ActorHandle[Any] | CoordinatorLink, group: int, first: int, last: int) -> None:
        self._coordinator: Any = coordinator
        self._group, self._first, self._last = group, first, last
        self._waiting: list[BatchReport | WorkerReport] = []
        self._worker_id = self._node_id = ""
        self._unit = ""
        self._round_trip_ns = 0
        self._logs = log_buffer()
        self._lock = threading.Lock()  # Xenna calls teardown in another thread than batches

    def __reduce__(self) -> tuple[Any, ...]:
        coordinator = self._coordinator
        if isinstance(coordinator, CoordinatorLink):
            coordinator = coordinator.get()
        return WorkerLink, (coordinator, self._group, self._first, self._last)

    def enter(self, worker_id: str, node_id: str) -> None:
        """Sign in, so that the driver can end this worker however the run ends."""
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
        """Note that work on these tasks begins; return a name for them, which is the same if Xenna repeats the call."""
        ids = "\0".join([task.task_id for task in tasks])
        self._unit = digest(ids, 8)
        return self._unit

    def send(self, outputs: list[Any] | None, *, is_primary: bool) -> float | None:
        """Send the collected reports, and wait until the coordinator has them.

        Args:
            outputs: Outputs of the pipeline to send with the reports.
            is_primary: Whether this worker's batches count. The other ranks of an SPMD group run the same batches,
                so only their failures matter.

        Returns:
            The seconds per task in the next group; None if unknown.
        """
        sent = outputs if is_primary else None
        payload = pack(sent) if sent else None  # first, so that nothing is lost if it raises
        with self._lock:
            reports, self._waiting = self._waiting, []
        unit, self._unit = self._unit, ""
        if not reports:
            return None
        work = _work_of(reports, self._first, self._last)
        # Large outputs stay here until the driver has fetched them: the coordinator would copy them twice.
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

    def fail_unsendable(self, outputs: Sequence[Any], error: BaseException) -> list[Any]:
        """Mark batches as failed whose outputs cannot be pickled, and return the outputs of the others."""
        with self._lock:
            return fail_unsendable(self._waiting, outputs, error)

    def tear_down_when_told(self, tear_down: Callable[[], None]) -> None:
        """Wait in a thread until the coordinator reports that the group's work is done, then tear down.

        This runs ``teardown()`` on versions of Xenna that do not call it themselves.
        """
        threading.Thread(target=self._await_end, args=(tear_down,), name="curator-teardown", daemon=True).start()

    def _await_end(self, tear_down: Callable[[], None]) -> None:
        try:
            ray.get(self._coordinator.group_ended.remote(self._worker_id, self._group))
            tear_down()
            ray.get(self._coordinator.torn_down.remote(self._worker_id))
        except ray.exceptions.RayError:
            logger.debug("the run ended before the worker was asked to tear down", exc_info=True)


def _work_of(reports: Sequence[BatchReport | WorkerReport], first: int, last: int) -> Work:
    """Add up the reports of one call, for the whole group."""
    done = made = 0
    nanoseconds = 0
    for report in reports:
        if not isinstance(report, BatchReport):
            continue
        nanoseconds += report.duration_ns
        if report.is_retried:
            continue
        if report.stage_index == first:
            done += report.num_in
        if report.stage_index == last:
            made += report.num_out
    return Work(done, made, nanoseconds / 1e9)


def _exit_with_main_thread() -> None:
    """End this process when Ray ends its main thread.

    Xenna's worker threads are not daemons: without this, they keep a killed worker's process alive for hours.
    """
    if not _watched.acquire(blocking=False):
        return

    def watch() -> None:
        threading.main_thread().join()
        os._exit(0)

    threading.Thread(target=watch, name="curator-exit-with-main", daemon=True).start()
