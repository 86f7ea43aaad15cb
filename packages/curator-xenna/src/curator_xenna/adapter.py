# SPDX-License-Identifier: Apache-2.0
"""A stage as Xenna sees it."""

from __future__ import annotations

import logging
import threading
from functools import cache
from typing import TYPE_CHECKING, Any

from cosmos_xenna.pipelines import v1 as pipelines_v1

from curator_core.adapter import BaseStageAdapter, NodeInfo, RunContext, WorkerMetadata
from curator_core.errors import ContractError, StageError
from curator_core.failure import error_info
from curator_core.pickling import check_pickles, find_unpicklable
from curator_core.report import InputOutcome
from curator_xenna.compat import HAS_DESTROY
from curator_xenna.environment import StageEnvironment
from curator_xenna.resources import share_of

if TYPE_CHECKING:
    from curator_core.plan import StageView
    from curator_xenna.resources import Share
    from curator_xenna.worker import WorkerLink

__all__ = ["XennaStageAdapter", "create_named_xenna_stage_adapter"]

logger = logging.getLogger(__name__)

_FINISH_S = 10.0  # for a batch to end before its worker is torn down; Xenna waits 45 s for the whole of it


class XennaStageAdapter(BaseStageAdapter, pipelines_v1.Stage[Any, Any]):
    """Runs a stage in a Xenna worker.

    On its own it works as a plain Xenna stage. `XennaExecutor` connects it to a run, so that its reports
    reach the driver.

    Args:
        processing_stage: The stage to run.
    """

    def __init__(self, processing_stage: Any) -> None:
        super().__init__(processing_stage)
        self._share: Share | None = None
        self._is_spmd = False
        self._is_last = False
        self._is_primary = True
        self._link: WorkerLink | None = None
        self._is_set_up = False
        self._busy = threading.RLock()  # held while the stage's code runs

    def connect(self, view: StageView, context: RunContext, link: WorkerLink, share: Share, *, is_last: bool) -> None:
        """Make it part of a run.

        Args:
            view: The stage, as the plan read it.
            context: The run.
            link: The way to the run's coordinator.
            share: The stage's resources on this cluster.
            is_last: Whether its outputs are those of the pipeline: they go to the driver with the report
                and not to Xenna, which could not give them back after an abort.
        """
        self.view = view
        self.bind(context, link.collect)
        self._link, self._share, self._is_last = link, share, is_last
        self._is_spmd = bool(view.engine_options.get("is_spmd"))

    # --- what Xenna asks ----------------------------------------------------------------------------------

    @property
    def required_resources(self) -> pipelines_v1.Resources:
        """The stage's resources, as Xenna's."""
        if self._share is None:  # read in Xenna's 100 Hz loop, so translated once
            self._share = share_of(self.view.resources, (), self.view.name)
        return pipelines_v1.Resources(cpus=self._share.cpus, gpus=self._share.gpus, is_spmd=self._is_spmd)

    @property
    def stage_batch_size(self) -> int:
        """The stage's batch size; 1 where it is unset."""
        return self.view.batch_size

    @property
    def env_info(self) -> pipelines_v1.RuntimeEnv | None:
        """The stage's runtime environment; None where it declares none."""
        declared = self.view.runtime_env
        return None if declared is None else StageEnvironment(declared)

    # Xenna hands its own values to the two set-ups, and counts their parameters: the base adapter's are ours.
    def setup_on_node(  # type: ignore[override]
        self, node_info: pipelines_v1.NodeInfo, worker_metadata: pipelines_v1.WorkerMetadata
    ) -> None:
        """Prepare the node; Xenna calls it once for each node."""
        self._enter(worker_metadata)
        try:
            super().setup_on_node(NodeInfo(node_info.node_id), _to_ours(worker_metadata))
        except StageError:
            self._send()
            raise

    def setup(self, worker_metadata: pipelines_v1.WorkerMetadata) -> None:  # type: ignore[override]
        """Prepare the worker."""
        self._enter(worker_metadata)
        self.node_id = worker_metadata.allocation.node
        try:
            super().setup(_to_ours(worker_metadata))
            self._is_set_up = True
        finally:
            self._send()
        if self._link is not None and not HAS_DESTROY:
            self._link.tear_down_when_told(self.destroy)

    def process_data(self, tasks: list[Any]) -> list[Any]:
        """Run a batch; its reports reach the driver before its outputs can move on."""
        try:
            with self._busy:
                outputs = self.process_batch(tasks)
        except StageError:
            self._send()
            raise
        if self._link is None:
            return outputs
        if not self._is_last:
            self._send()
            return outputs if self._is_primary else []  # Xenna takes those of rank 0
        try:
            self._send(outputs)
        except Exception as exc:
            if not self._cannot_travel(outputs, exc):
                raise
        return []  # the outputs of the pipeline are with the driver

    def destroy(self) -> None:
        """Tear down; called by Xenna from 0.4.1 on. On earlier versions the coordinator says when.

        It comes in a thread of its own, on a scale-down also in the middle of a batch: that is let finish.
        """
        if not self._busy.acquire(timeout=_FINISH_S):
            logger.warning("stage '%s' is still at work and is not torn down", self.view.name)
            return
        try:
            if not self._is_set_up:
                return
            self._is_set_up = False
            self.teardown()
        finally:
            self._busy.release()
        self._send()

    # --- plumbing -----------------------------------------------------------------------------------------

    def _cannot_travel(self, outputs: list[Any], exc: Exception) -> bool:
        """Report outputs that do not pickle as failed; whether that is what went wrong."""
        for task in outputs:
            try:
                check_pickles(task)
            except Exception:  # noqa: BLE001 - pickling runs code of users
                where, culprit = find_unpicklable(task, f"task '{task.task_id}'")
                break
        else:
            return False
        error = ContractError(
            f"an output cannot be sent to the driver: {exc}",
            stage=self.view.name,
            field=where,
            given=culprit,
            expected="tasks that pickle",
            hint="keep locks, files and connections in the stage, out of tasks",
        )
        report = self._link.take_back() if self._link else None
        if self._link is not None and report is not None:
            inputs = tuple(InputOutcome(outcome.task_id, "failed", 0) for outcome in report.inputs)
            self._link.collect(report._replace(inputs=inputs, error=error_info(error)))
        self._send()
        if self.context.on_error == "raise":
            raise error
        return True

    def _enter(self, worker_metadata: pipelines_v1.WorkerMetadata) -> None:
        # In an SPMD group every rank is given every batch, and Xenna uses what rank 0 returns.
        self._is_primary = worker_metadata.rank in (None, 0)
        if self._link is not None:
            self._link.enter(worker_metadata.worker_id, worker_metadata.allocation.node)

    def _send(self, outputs: list[Any] | None = None) -> None:
        if self._link is not None:
            self._link.send(outputs, is_primary=self._is_primary)

    def __deepcopy__(self, memo: dict[int, Any]) -> XennaStageAdapter:
        # Xenna copies a pipeline several times over before it sends it to workers, which get copies anyway.
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # The named class exists in this process only; any other makes its own.
        state = {name: value for name, value in self.__dict__.items() if name != "_busy"}
        return _restore, (type(self).__name__, state)


def create_named_xenna_stage_adapter(stage: Any) -> XennaStageAdapter:
    """An adapter whose class has the name of the stage's class, which is what Xenna and Ray show.

    Args:
        stage: The stage.
    """
    return _named_class(type(stage).__name__)(stage)


@cache
def _named_class(name: str) -> type[XennaStageAdapter]:
    if name == XennaStageAdapter.__name__:
        return XennaStageAdapter
    return type(name, (XennaStageAdapter,), {"__module__": __name__, "__doc__": XennaStageAdapter.__doc__})


def _restore(class_name: str, state: dict[str, Any]) -> XennaStageAdapter:
    cls = _named_class(class_name)
    adapter = cls.__new__(cls)
    adapter.__dict__.update(state, _busy=threading.RLock())
    return adapter


def _to_ours(metadata: pipelines_v1.WorkerMetadata) -> WorkerMetadata:
    return WorkerMetadata(worker_id=metadata.worker_id, allocation=metadata.allocation)
