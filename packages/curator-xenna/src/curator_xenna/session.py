# SPDX-License-Identifier: Apache-2.0
"""One run on a cluster: from the plan's stages to Xenna, and the reports back."""

from __future__ import annotations

import logging
import pickle
import threading
import traceback
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ray
from cosmos_xenna.pipelines import v1 as pipelines_v1

from curator_core.errors import ClusterError, RunError, WorkerDiedError
from curator_core.failure import rebuild_error
from curator_core.report import BatchReport, WorkerReport
from curator_xenna.adapter import create_named_xenna_stage_adapter
from curator_xenna.cluster import machine_cpus
from curator_xenna.compat import quiet_xenna, with_uploaded_directories
from curator_xenna.coordinator import start_coordinator
from curator_xenna.reaper import end_workers
from curator_xenna.translate import pipeline_spec, place
from curator_xenna.worker import WorkerLink

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ray.actor import ActorHandle

    from curator_core.executor import Run
    from curator_core.plan import StageView
    from curator_xenna.adapter import XennaStageAdapter
    from curator_xenna.cluster import Cluster
    from curator_xenna.config import XennaConfig
    from curator_xenna.coordinator import Delivery, WorkerEntry
    from curator_xenna.translate import Placement

__all__ = ["Session"]

logger = logging.getLogger(__name__)

_PULL_S = 0.5
_CALL_TIMEOUT_S = 30.0


class Session:
    """One run on a cluster.

    Args:
        config: The executor's settings.
        cluster: Where to run; opened here, closed by the caller.
        run: The run.
        views: The stages that run on Xenna.
        inputs: Tasks for the first of them.
    """

    def __init__(
        self, config: XennaConfig, cluster: Cluster, run: Run, views: Sequence[StageView], inputs: list[Any]
    ) -> None:
        self._config = config
        self._cluster = cluster
        self._run = run
        self._views = views
        self._inputs = inputs

    def run(self) -> None:
        """Run to the end.

        Raises:
            RunError: See `BaseExecutor.execute`.
            ResourcesError: The stages do not fit the cluster.
        """
        self._cluster.open(_cpus_at_once(self._views, self._config))
        placements = place(self._views, self._cluster.nodes(), self._config)
        coordinator = start_coordinator(len(self._views), len(self._inputs))
        adapters = self._adapters(coordinator, placements)
        spec = pipeline_spec(adapters, placements, self._inputs, self._config, self._cluster.cpu_share)
        feed = _ReportFeed(coordinator, self._run)
        failure: RunError | None = None
        try:
            with quiet_xenna(quiet=not self._config.verbose), feed:
                pipelines_v1.run_pipeline(spec)
        except Exception as exc:  # noqa: BLE001 - explained, and raised below without Xenna's frames
            failure = _explain(exc, feed, _ask_workers(coordinator), self._views)
            traceback.clear_frames(exc.__traceback__)  # they hold Xenna's actors, and Ray ends those that nobody holds
        finally:
            # Also after Ctrl-C, and after a good run: on 0.2 and 0.3 workers outlive that as well.
            end_workers(_ask_workers(coordinator))
            ray.kill(coordinator)
        if failure is None and feed.error is not None:
            failure = _coordinator_died(feed.error)
        if failure is not None:
            raise failure

    def _adapters(self, coordinator: ActorHandle[Any], placements: Sequence[Placement]) -> list[XennaStageAdapter]:
        adapters = []
        for group, placement in enumerate(placements):
            adapter = create_named_xenna_stage_adapter(placement.view.stage)
            env = placement.view.runtime_env
            adapter.connect(
                replace(placement.view, runtime_env=env and with_uploaded_directories(env)),
                replace(self._run.context, group=group),
                WorkerLink(coordinator, group),
                placement.share,
                is_last=group == len(placements) - 1,
            )
            adapters.append(adapter)
        return adapters


class _ReportFeed:
    """Brings reports and outputs from the coordinator to the run while Xenna holds the main thread."""

    def __init__(self, coordinator: ActorHandle[Any], run: Run) -> None:
        self._coordinator = coordinator
        self._run = run
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="curator-reports", daemon=True)
        self.error: Exception | None = None
        self.failures: list[BatchReport | WorkerReport] = []

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _follow(self) -> None:
        try:
            while True:
                last = self._over.is_set()  # read first: what came before it was set is pulled below
                news: list[Delivery] = ray.get(self._coordinator.pull.remote(0.0 if last else _PULL_S))
                for delivery in news:
                    self._enter(delivery)
                if last and not news:
                    return
        except Exception as exc:  # noqa: BLE001 - shown by the main thread, as the reason why the run failed
            self.error = exc

    def _enter(self, delivery: Delivery) -> None:
        for report in delivery.reports:
            self._run.report(report)
            if report.error is not None and _is_final(report):
                self.failures.append(report)
        if delivery.outputs is not None:
            self._run.outputs += pickle.loads(delivery.outputs)  # noqa: S301 - from our own worker


def _is_final(report: BatchReport | WorkerReport) -> bool:
    if isinstance(report, WorkerReport):
        return report.event == "setup_failed"
    return any(outcome.kind == "failed" for outcome in report.inputs)


def _cpus_at_once(views: Sequence[StageView], config: XennaConfig) -> float:
    """CPUs of all workers that must run at once; 0 where declaring more than there are would not be honest.

    Stages that each fit the machine may share its cores. One that does not fit by itself must fail.
    """
    limit = config.max_workers_per_stage
    each = [view.resources.cpus * min(view.num_workers or 1, limit or view.num_workers or 1) for view in views]
    if max(each) > machine_cpus():
        return 0.0
    return sum(each) if config.execution_mode == "streaming" else max(each)


def _ask_workers(coordinator: ActorHandle[Any]) -> list[WorkerEntry]:
    try:
        workers: list[WorkerEntry] = ray.get(coordinator.workers.remote(), timeout=_CALL_TIMEOUT_S)
    except ray.exceptions.RayError:
        return []
    return workers


def _explain(exc: Exception, feed: _ReportFeed, workers: Sequence[WorkerEntry], views: Sequence[StageView]) -> RunError:
    """What went wrong, in our terms: the stage's own error where there is one, and who died otherwise."""
    if feed.failures:
        report = feed.failures[0]
        assert report.error is not None  # noqa: S101 - that is what makes it a failure
        doing = "in set-up" if isinstance(report, WorkerReport) else ""
        return rebuild_error(report.error, report.stage_name, doing)
    if feed.error is not None:
        return _coordinator_died(feed.error)
    causes = list(_causes(exc))
    if any(isinstance(cause, ray.exceptions.RayActorError) for cause in causes):
        error: RunError = _worker_died(causes, workers, views)
    else:
        error = ClusterError(
            f"Xenna gave up: {type(exc).__name__}: {exc}",
            expected="a run to its end",
            hint="run with verbose=True to see Xenna's log",
        )
    error.__cause__ = exc
    return error


def _causes(exc: BaseException | None) -> Any:
    while exc is not None:
        yield exc
        if isinstance(exc, ray.exceptions.RayTaskError) and isinstance(exc.cause, BaseException):
            yield exc.cause
        exc = exc.__cause__ or exc.__context__


def _worker_died(
    causes: Sequence[BaseException], workers: Sequence[WorkerEntry], views: Sequence[StageView]
) -> WorkerDiedError:
    text = " ".join(str(cause) for cause in causes)
    dead = next((worker for worker in workers if worker.actor_id in text), None)
    stage = views[dead.group].name if dead else None
    who = f"worker {dead.worker_id} (process {dead.pid} on node {dead.node_id[:8]}) died" if dead else "a worker died"
    return WorkerDiedError(
        f"{who} while it had work",
        stage=stage,
        expected="workers that live until their work is done",
        hint="look for a crash in native code or the system's out-of-memory killer (dmesg), "
        "or give the stage more memory; on Python 3.12 and later Xenna replaces dead workers",
    )


def _coordinator_died(exc: Exception) -> ClusterError:
    error = ClusterError(
        f"the run's coordinator is gone: {type(exc).__name__}",
        expected="the actor that takes the reports to live as long as the run",
        hint="look at the log of the driver's node: was it out of memory?",
    )
    error.__cause__ = exc
    return error
