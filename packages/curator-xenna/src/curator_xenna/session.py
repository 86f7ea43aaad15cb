# SPDX-License-Identifier: Apache-2.0
"""One run on a cluster: from the plan's stages to Xenna, and the reports back."""

from __future__ import annotations

import traceback
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ray
from cosmos_xenna.pipelines import v1 as pipelines_v1

from curator_core.errors import StageDefinitionError
from curator_xenna.adapter import create_named_xenna_stage_adapter
from curator_xenna.cluster import machine_cpus
from curator_xenna.compat import quiet_xenna, with_uploaded_directories
from curator_xenna.coordinator import start_coordinator
from curator_xenna.feed import ReportFeed
from curator_xenna.outcome import explain
from curator_xenna.reaper import actors_of_this_job, end_workers
from curator_xenna.translate import asked_workers, pipeline_spec, place
from curator_xenna.worker import WorkerLink

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ray.actor import ActorHandle

    from curator_core.executor import Run
    from curator_core.plan import StageView
    from curator_xenna.adapter import XennaStageAdapter
    from curator_xenna.cluster import Cluster
    from curator_xenna.config import XennaConfig
    from curator_xenna.coordinator import WorkerEntry
    from curator_xenna.translate import Placement

__all__ = ["Session"]

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
        earlier = actors_of_this_job()
        coordinator = start_coordinator(len(self._views), len(self._inputs))
        adapters = self._adapters(coordinator, placements)
        spec = pipeline_spec(adapters, placements, self._inputs, self._config, self._cluster.cpu_share)
        feed = ReportFeed(coordinator, self._run)
        broken: Exception | None = None
        workers: list[WorkerEntry] = []
        try:
            with feed, quiet_xenna(quiet=not self._config.verbose):
                try:
                    pipelines_v1.run_pipeline(spec)
                except Exception as exc:  # noqa: BLE001 - explained, and raised below without Xenna's frames
                    broken = exc
                    # They hold Xenna's actors, and Ray ends those that nobody holds.
                    traceback.clear_frames(exc.__traceback__)
                finally:
                    # Also after Ctrl-C, and after a good run: on 0.2 and 0.3 workers outlive that as well. The
                    # feed still listens: what a worker said before its end is heard.
                    workers = _ask_workers(coordinator)
                    end_workers(workers, earlier)
        finally:
            ray.kill(coordinator)
        if broken is not None or feed.error is not None:
            raise explain(broken, feed, workers, self._views)

    def _adapters(self, coordinator: ActorHandle[Any], placements: Sequence[Placement]) -> list[XennaStageAdapter]:
        adapters = []
        for group, placement in enumerate(placements):
            adapter = create_named_xenna_stage_adapter(placement.view.stage)
            adapter.connect(
                replace(placement.view, runtime_env=_portable(placement.view)),
                replace(self._run.context, group=group),
                WorkerLink(coordinator, group),
                placement.share,
                is_last=group == len(placements) - 1,
            )
            adapters.append(adapter)
        return adapters


def _cpus_at_once(views: Sequence[StageView], config: XennaConfig) -> float:
    """CPUs of all workers that must run at once; 0 where declaring more than there are would not be honest.

    Stages that each fit the machine may share its cores. One that does not fit by itself must fail.
    """
    each = []
    for view in views:
        workers = asked_workers(view, num_nodes=1) or 1
        each.append(view.resources.cpus * min(workers, config.max_workers_per_stage or workers))
    if max(each) > machine_cpus():
        return 0.0
    return sum(each) if config.execution_mode == "streaming" else max(each)


def _portable(view: StageView) -> Mapping[str, Any] | None:
    if view.runtime_env is None:
        return None
    try:
        return with_uploaded_directories(view.runtime_env)
    except Exception as exc:
        raise StageDefinitionError(
            f"the runtime environment cannot be sent to the workers: {exc}",
            stage=view.name,
            field="runtime_env",
            given=sorted(view.runtime_env),  # names only: values may be secrets
            expected="a Ray runtime environment whose directories exist",
            hint="mend working_dir or py_modules",
        ) from exc


def _ask_workers(coordinator: ActorHandle[Any]) -> list[WorkerEntry]:
    try:
        workers: list[WorkerEntry] = ray.get(coordinator.workers.remote(), timeout=_CALL_TIMEOUT_S)
    except ray.exceptions.RayError:
        return []
    return workers
