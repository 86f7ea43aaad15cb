# SPDX-License-Identifier: Apache-2.0
"""One session of a run on a cluster: passes the plan's stages to Xenna, and the reports back to the run."""

from __future__ import annotations

import traceback
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ray
from cosmos_xenna.pipelines import v1 as pipelines_v1

from curator_core import StageDefinitionError
from curator_core.backends import BundlePlan
from curator_xenna._cluster.cleanup import actors_of_this_job, end_workers
from curator_xenna._placement.placement import fit
from curator_xenna._session.clocks import NodeClocks
from curator_xenna._session.coordinator import CoordinatorLink
from curator_xenna._session.deaths import DeathNotices
from curator_xenna._session.diagnose import explain, explain_loss
from curator_xenna._session.group_adapter import Role, create_group_adapter
from curator_xenna._session.inputs import InputQueue, Inputs, Tickets
from curator_xenna._session.report_reader import ReportReader
from curator_xenna._session.specification import pipeline_spec
from curator_xenna._session.worker import WorkerLink
from curator_xenna.compat import hear_raylet, quiet_xenna, with_uploaded_directories

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from curator_core.backends import CompiledStage, Run
    from curator_xenna._cluster.nodes import Node
    from curator_xenna._cluster.ray_cluster import Cluster
    from curator_xenna._placement.placement import Fit, Placement
    from curator_xenna._session.coordinator import WorkerEntry
    from curator_xenna._session.group_adapter import GroupAdapter
    from curator_xenna.config import XennaConfig

__all__ = ["Session", "nodes_for"]

_CALL_TIMEOUT_S = 30.0
_SLOTS_PER_WORKER = 2  # Xenna's default
_INTERVAL_S = 180.0  # Xenna's default
_INTERVAL_EMBEDDED_S = 5.0


def nodes_for(stages: Sequence[CompiledStage], cluster: Cluster) -> list[Node]:
    """Return the nodes that a cluster has for stages; opens the cluster unless they are known before it starts."""
    if cluster.is_embedded and not any(compiled.resources.requires_gpu for compiled in stages):
        return [cluster.machine()]
    cluster.open()
    return cluster.nodes()


class Session:
    """One session of a run on a cluster; each restart of Xenna is a new session.

    Args:
        cluster: The cluster; opened here, closed by the caller.
        run: The run.
        stages: The stages that run on Xenna.
        config: The executor's settings.
        inputs: The tasks for the first stage; the list is emptied.
        has_source: Whether the first stage is a source, which gets only one task.
    """

    def __init__(
        self,
        cluster: Cluster,
        run: Run,
        *,
        stages: Sequence[CompiledStage],
        config: XennaConfig,
        inputs: list[Any],
        has_source: bool,
    ) -> None:
        self._config = config
        self._cluster = cluster
        self._run = run
        self._stages = stages
        self._inputs = inputs
        self._has_source = has_source

    def run(self) -> None:
        """Run the session to its end.

        Raises:
            RunError: See `BaseExecutor.execute`.
            ResourcesError: The stages do not fit the cluster.
        """
        fitted = self._open()
        is_first, self._cluster.is_fresh = self._cluster.is_fresh, False
        earlier = actors_of_this_job()
        bundled = self._inputs if self._config.bundle else []
        queue = InputQueue(bundled, self._bundle_plan(fitted.placements[0]))
        coordinator = CoordinatorLink(len(fitted.placements), len(self._inputs))
        if not is_first:
            coordinator.get()
        adapters = self._adapters(coordinator, fitted, queue)
        spec = pipeline_spec(
            adapters,
            fitted.placements,
            self._items(queue, streaming=fitted.streaming),
            self._config,
            streaming=fitted.streaming,
            cpu_share=self._cluster.cpu_share,
            autoscale_interval_s=self._autoscale_interval_s(),
        )
        self._inputs.clear()  # in place, so that no reference to the list keeps tasks that the queue has sent
        home = ray.get_runtime_context().get_node_id()  # also the coordinator's node
        shows_output = self._config.shows_worker_output
        feed = ReportReader(coordinator, self._run, queue.pace, NodeClocks(home), shows_output=shows_output)
        groups = [placement.group for placement in fitted.placements]
        notices = DeathNotices(groups, lambda: _ask_workers(coordinator), is_ours=self._cluster.is_ours)
        broken: Exception | None = None
        workers: list[WorkerEntry] = []
        try:
            if not self._config.verbose:
                hear_raylet(notices.hear)
            with feed, quiet_xenna(quiet=not self._config.verbose):
                try:
                    pipelines_v1.run_pipeline(spec)
                except Exception as exc:  # noqa: BLE001 - explained, and raised below without Xenna's frames
                    broken = exc
                    # The frames refer to Xenna's actors, and Ray ends an actor once nothing refers to it.
                    traceback.clear_frames(exc.__traceback__)
                finally:
                    # Also after Ctrl-C, and after a successful run, which workers outlive on 0.2 and 0.3. The feed
                    # still runs, so that it receives the last reports of the workers.
                    workers = _ask_workers(coordinator)
                    notices.close(workers)
                    end_workers(workers, earlier)
        finally:
            if coordinator.started is not None:
                ray.kill(coordinator.started)
        if broken is not None or feed.error is not None:
            raise explain(broken, feed, workers, groups)
        lost = self._run.lost() if self._run.context.on_error == "raise" else []
        if lost and (died := explain_loss(lost, workers, groups)):
            raise died

    def _open(self) -> Fit:
        """Decide how to fit the stages, and open the cluster with the CPUs that they need."""
        cluster = self._cluster
        fitted = fit(
            self._stages,
            nodes_for(self._stages, cluster),
            self._config,
            has_source=self._has_source,
            may_declare=cluster.may_declare,
            cores=cluster.cores,
        )
        cluster.open(fitted.cpus)
        return fitted

    def _adapters(self, coordinator: CoordinatorLink, fitted: Fit, queue: InputQueue) -> list[GroupAdapter]:
        adapters = []
        placements = fitted.placements
        for number, placement in enumerate(placements):
            group, is_last = placement.group, number == len(placements) - 1
            role = Role(
                context=self._run.context._replace(group=number),
                link=WorkerLink(coordinator, number, group.stages[0].index, group.stages[-1].index),
                share=placement.share,
                batch_size=1 if self._comes_in_bundles(placement) else group.stages[0].batch_size,
                bundles=None if is_last else self._bundles_for(placements[number + 1]),
                is_last=is_last,
                # In batch mode, all bundles are taken before the run, so there are no unused tickets.
                inputs=queue if number == 0 and self._config.bundle and fitted.streaming else None,
            )
            first, *following = group.stages  # all with the same environment, so it is uploaded only once
            stages = (replace(first, runtime_env=_portable(first)), *following)
            adapters.append(create_group_adapter(replace(group, stages=stages), role))
        return adapters

    def _comes_in_bundles(self, placement: Placement) -> bool:
        # Bundles from the driver are full batches already. Xenna makes full batches of tasks that travel individually.
        return self._config.bundle and (placement.group.index == 0 or not placement.group.full_batches)

    def _bundles_for(self, placement: Placement) -> BundlePlan | None:
        return self._bundle_plan(placement) if self._comes_in_bundles(placement) else None

    def _bundle_plan(self, placement: Placement) -> BundlePlan:
        workers = placement.workers or max(1, int(self._cluster.total_cpus() / placement.share.cpus))
        own = placement.group.engine_options.get("slots_per_actor")
        slots = own or self._config.slots_per_actor or _SLOTS_PER_WORKER
        return BundlePlan.of(placement.group, workers * slots, self._config.max_bundle_bytes)

    def _items(self, queue: InputQueue, *, streaming: bool) -> Inputs:
        if not self._config.bundle:
            return Inputs(self._inputs)
        # In batch mode, Xenna sends everything at the start, so there are no measurements to wait for.
        return Tickets(queue) if streaming else Inputs(queue.bundles())

    def _autoscale_interval_s(self) -> float:
        asked = self._config.autoscale_interval_s
        if asked is not None:
            return asked
        return _INTERVAL_EMBEDDED_S if self._cluster.is_ours else _INTERVAL_S


def _portable(compiled: CompiledStage) -> Mapping[str, Any] | None:
    if compiled.runtime_env is None:
        return None
    try:
        return with_uploaded_directories(compiled.runtime_env)
    except Exception as exc:
        raise StageDefinitionError(
            f"the runtime environment cannot be sent to the workers: {exc}",
            stage=compiled.name,
            field="runtime_env",
            given=sorted(compiled.runtime_env),  # names only: values may be secrets
            expected="a Ray runtime environment whose directories exist",
            hint="correct working_dir or py_modules",
        ) from exc


def _ask_workers(coordinator: CoordinatorLink) -> list[WorkerEntry]:
    if coordinator.started is None:
        return []
    try:
        workers: list[WorkerEntry] = ray.get(coordinator.started.workers.remote(), timeout=_CALL_TIMEOUT_S)
    except ray.exceptions.RayError:
        return []
    return workers
