# SPDX-License-Identifier: Apache-2.0
"""The driver's side of the connection to the coordinator."""

from __future__ import annotations

import logging
import threading
from queue import Queue
from typing import TYPE_CHECKING, Any

import ray

from curator_core import BatchReport, ClusterError, DataError
from curator_core.backends import ReportColumns, message_of, unpack_reports
from curator_core.observers import WorkerReport
from curator_xenna._session.packing import unpack
from curator_xenna._session.worker_logs import WorkerLogs

if TYPE_CHECKING:
    from ray.actor import ActorHandle

    from curator_core.backends import AnyReport, Pace, Packed, Run
    from curator_xenna._session.clocks import NodeClocks
    from curator_xenna._session.coordinator import CoordinatorLink, Delivery

__all__ = ["ReportReader"]

logger = logging.getLogger(__name__)

_PULL_S = 0.5
_MAX_WAITING = 8  # deliveries that were fetched but not yet entered; their outputs are still in Ray's memory


class ReportReader:
    """Passes reports and outputs from the coordinator to the run while Xenna occupies the main thread.

    One thread fetches the deliveries, so that workers wait no longer than necessary. Another thread enters them into
    the run, which copies the outputs out of Ray's memory.

    Args:
        coordinator: The run's coordinator.
        run: The run.
        pace: Observes how long tasks take in the first group.
        clocks: Observes every delivery, and corrects the times in reports before they are passed on.
        shows_output: Whether Ray shows what workers print, including log records.

    Attributes:
        error: The reason why no more deliveries can be entered, which ends the run; None if there is none.
        failed_batch: The batch whose failure ends the run; None if there is none, or if failures are skipped.
        failed_setups: Failed setups that no later setup of the same worker made up for, by worker.
    """

    def __init__(
        self, coordinator: CoordinatorLink, run: Run, pace: Pace, clocks: NodeClocks, *, shows_output: bool = False
    ) -> None:
        self._coordinator = coordinator
        self._run = run
        self._pace = pace
        self._clocks = clocks
        self._over = threading.Event()
        self._fetched: Queue[tuple[Delivery, Packed | None] | None] = Queue(_MAX_WAITING)
        self._threads = [
            threading.Thread(target=work, name=name, daemon=True)
            for work, name in ((self._fetch_all, "curator-fetch"), (self._enter_all, "curator-reports"))
        ]
        self.error: BaseException | None = None
        self._logs = WorkerLogs(is_shown_already=shows_output)
        self.failed_batch: BatchReport | None = None
        self.failed_setups: dict[str, WorkerReport] = {}

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        if self._coordinator.started is not None:
            self._coordinator.started.wake.remote()
        for thread in self._threads:
            thread.join()
        self._logs.close()
        self._run.clock_offsets |= self._clocks.corrections

    def _fetch_all(self) -> None:
        try:
            while (coordinator := self._coordinator.wait(_PULL_S)) is None:
                if self._over.is_set():
                    return
            while True:
                last = self._over.is_set()  # read first, so that all earlier deliveries are pulled below
                news: list[Delivery] = ray.get(coordinator.pull.remote(0.0 if last else _PULL_S))
                for delivery in news:
                    self._fetched.put((delivery, self._fetch(delivery, coordinator)))
                if last and not news:
                    return
        except ray.exceptions.RayError as exc:
            self.error = self.error or _coordinator_died(exc)  # the other thread's error may have ended it
        except BaseException as exc:  # noqa: BLE001 - as in the other thread
            self._give_up(exc)
        finally:
            self._fetched.put(None)

    def _fetch(self, delivery: Delivery, coordinator: ActorHandle[Any]) -> Packed | None:
        """Return the outputs of a delivery; None if it has none, or if they were lost with their worker."""
        if delivery.outputs_ref is None:
            return delivery.outputs
        try:
            packed: Packed = ray.get(delivery.outputs_ref)
        except ray.exceptions.RayError:
            logger.warning("worker %s ended before its last outputs were fetched", delivery.worker_id)
            return None
        coordinator.fetched.remote(delivery.worker_id)  # the packed keeps the memory in use from here on
        return packed

    def _enter_all(self) -> None:
        has_failed = False
        while (fetched := self._fetched.get()) is not None:
            delivery, packed = fetched
            del fetched
            if has_failed:
                continue  # keep emptying the queue, so that the other thread does not block
            # Without its outputs, the work counts as if it had never been done.
            is_gone = delivery.outputs_ref is not None and packed is None
            try:
                outputs = [] if packed is None else _opened(packed, delivery.worker_id)
                packed = None  # it keeps Ray's memory in use
                self.enter(delivery, outputs, is_gone=is_gone)
            except BaseException as exc:  # noqa: BLE001 - shown by the main thread, as the reason why the run failed
                has_failed = True
                self._give_up(exc)

    def _give_up(self, error: BaseException) -> None:
        """End the run: without a coordinator, the next worker that reports fails, and Xenna with it."""
        self.error = error
        if self._coordinator.started is not None:
            ray.kill(self._coordinator.started)

    def enter(self, delivery: Delivery, outputs: list[Any], *, is_gone: bool = False) -> None:
        """Enter a delivery into the run.

        Args:
            delivery: The delivery.
            outputs: The outputs that came with it.
            is_gone: Whether the delivery had outputs that were lost.
        """
        self._logs.show(delivery.logs, delivery.worker_id)
        counts = delivery.is_primary and not delivery.is_repeated and not is_gone
        self._clocks.observe(delivery.node_id, delivery.sent_unix_ns, delivery.received_unix_ns, delivery.round_trip_ns)
        entered: list[AnyReport] = []
        for report in map(self._clocks.corrected, unpack_reports(delivery.reports)):
            if isinstance(report, WorkerReport):
                self._note_setup(report)
                entered.append(report)
                continue
            if isinstance(report, BatchReport):
                self._note_failure(report, delivery)
            if counts:
                entered.append(report)
            elif delivery.is_primary or report.error is not None:  # other ranks only report errors
                rows = report if isinstance(report, ReportColumns) else (report,)
                entered += [each.all_as("retried") for each in rows]
        try:
            self._run.report_all(entered)
        finally:
            self._run.collect(outputs)
        if counts and delivery.group == 0:
            self._pace.observe(delivery.work.done, delivery.work.seconds)

    def _note_failure(self, report: BatchReport, delivery: Delivery) -> None:
        if report.error is None or self.failed_batch is not None or self._run.context.on_error != "raise":
            return
        if not report.error.ends_run:
            return
        if report.is_retried and delivery.is_primary:
            return  # there are attempts left
        self.failed_batch = report

    def _note_setup(self, report: WorkerReport) -> None:
        if report.event == "setup_failed":
            self.failed_setups[report.worker_id] = report
        else:
            self.failed_setups.pop(report.worker_id, None)


def _opened(packed: Packed, worker_id: str) -> list[Any]:
    try:
        outputs: list[Any] = unpack(packed)
    except BaseException as exc:
        raise DataError(
            f"an output of worker {worker_id} cannot be read by the driver: {type(exc).__name__}: {message_of(exc)}",
            expected="classes that can be imported in the driver as well as on the workers",
            hint="install the same packages for the driver as on the nodes",
        ) from exc
    return outputs


def _coordinator_died(exc: Exception) -> ClusterError:
    error = ClusterError(
        f"the run's coordinator died: {type(exc).__name__}",
        expected="a coordinator actor that lives as long as the run",
        hint="check the logs of the driver's node, for example for a lack of memory",
    )
    error.__cause__ = exc
    return error
