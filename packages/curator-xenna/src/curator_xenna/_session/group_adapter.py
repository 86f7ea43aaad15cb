# SPDX-License-Identifier: Apache-2.0
"""The stages that share a worker, as the one Xenna stage that Xenna sees in a run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from curator_core import StageError
from curator_core.backends import Bundle, Chain, SentStages, pickles, split, unbundled, unsendable
from curator_xenna import adapter as stage_adapter
from curator_xenna._session.packing import pack, unpack
from curator_xenna.adapter import Lifetime, XennaStageAdapter, named_class, resources_of
from curator_xenna.compat import HAS_DESTROY, Resources, Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cosmos_xenna.pipelines import v1 as pipelines_v1

    from curator_core.backends import BundlePlan, CompiledStage, Packed, RunContext, StageGroup
    from curator_xenna._convert.resources import Share
    from curator_xenna._session.inputs import InputQueue
    from curator_xenna._session.worker import WorkerLink

__all__ = ["GroupAdapter", "Role", "create_group_adapter"]

_EVERYTHING = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Role:
    """The part that a group plays in a run.

    Attributes:
        context: The context of the run.
        link: The connection to the run's coordinator.
        share: The group's resources on this cluster.
        batch_size: How many items Xenna passes in one call: tasks, or bundles of tasks.
        bundles: How to bundle tasks for the next group; None if tasks travel individually.
        is_last: Whether the outputs are the pipeline's outputs. Those go to the driver with the reports
            and not to Xenna, which could not return them after an aborted run.
        inputs: For the first group, in the driver: the queue whose tickets Xenna has. Otherwise None.
    """

    context: RunContext
    link: WorkerLink
    share: Share
    batch_size: int
    bundles: BundlePlan | None
    is_last: bool
    inputs: InputQueue | None = None


class GroupAdapter(Stage[Any, Any]):
    """Runs a group of stages in a Xenna worker, and sends their reports to the driver.

    Args:
        adapters: The adapters of the stages, in order.
        role: The group's part in the run.
    """

    def __init__(self, adapters: Sequence[XennaStageAdapter], role: Role) -> None:
        first = adapters[0].compiled
        self._adapters = adapters
        self._role = role
        self._required = resources_of(first, role.share)  # Xenna's loop reads this 100 times a second
        self._lifetime = Lifetime(first.name)
        self._is_primary = True
        for adapter in adapters:
            adapter.bind(role.context, role.link.collect)

    # --- interface that Xenna calls -----------------------------------------------------------------------

    @property
    def required_resources(self) -> Resources:
        """The group's resources as Xenna `Resources`."""
        return self._required

    @property
    def stage_batch_size(self) -> int:
        """How many items Xenna passes in one call."""
        inputs = self._role.inputs
        # When the last task is sent, all unused tickets go in one batch.
        return _EVERYTHING if inputs is not None and inputs.is_empty else self._role.batch_size

    @property
    def env_info(self) -> pipelines_v1.RuntimeEnv | None:
        """The runtime environment, which all stages of a group have in common."""
        return self._adapters[0].env_info

    def setup_on_node(self, node_info: pipelines_v1.NodeInfo, worker_metadata: pipelines_v1.WorkerMetadata) -> None:
        """Prepare the node; Xenna calls this once for each node."""
        self._enter(worker_metadata)
        try:
            for adapter in self._adapters:
                adapter.setup_on_node(node_info, worker_metadata)
        except StageError:
            self._send()
            raise

    def setup(self, worker_metadata: pipelines_v1.WorkerMetadata) -> None:
        """Prepare the worker."""
        self._enter(worker_metadata)
        try:
            with self._lifetime.setting_up():
                self._chain.set_up(None, worker_metadata)  # type: ignore[arg-type]  # the adapters take Xenna's
        finally:
            self._send()
        if not HAS_DESTROY:
            self._role.link.tear_down_when_told(self.destroy)

    def process_data(self, tasks: list[Any]) -> list[Any]:
        """Run a batch of tasks or bundles; its reports reach the coordinator before its outputs are returned."""
        given, outputs, role = unbundled(tasks), list[Any](), self._role
        if not given:
            return []
        unit = role.link.begin(given)
        for adapter in self._adapters:
            adapter.state.bundle_id = unit if isinstance(tasks[0], Bundle) else ""
        try:
            with self._lifetime.working():
                self._chain.run(given, outputs)
        except StageError:
            self._deliver(outputs, failed=True)
            raise
        seconds_per_task = self._deliver(outputs)
        if role.is_last or not self._is_primary:  # in an SPMD group, Xenna uses only what rank 0 returns
            return []
        if role.bundles is None:
            return outputs
        return [Bundle(part) for part in split(outputs, role.bundles, seconds_per_task)]

    def destroy(self) -> None:
        """Tear down the stages. Xenna 0.4.1 and later calls this; on earlier versions the coordinator triggers it."""
        self._lifetime.end(self._tear_down)

    # --- internals ----------------------------------------------------------------------------------------

    @cached_property
    def _chain(self) -> Chain:
        return Chain(self._adapters)

    def _tear_down(self) -> None:
        self._chain.tear_down()
        self._send()

    def _enter(self, worker_metadata: pipelines_v1.WorkerMetadata) -> None:
        # In an SPMD group, every rank gets every batch, and Xenna uses only what rank 0 returns.
        self._is_primary = worker_metadata.rank in (None, 0)
        self._role.link.enter(worker_metadata.worker_id, worker_metadata.allocation.node)

    def _send(self) -> None:
        self._role.link.send(None, is_primary=self._is_primary)

    def _deliver(self, outputs: list[Any], *, failed: bool = False) -> float | None:
        """Send the reports, with any pipeline outputs; return the seconds per task in the next group, if known."""
        role = self._role
        payload = outputs if role.is_last and role.context.collect else None
        try:
            return role.link.send(payload, is_primary=self._is_primary)
        except BaseException as exc:
            culprit = next((task for task in payload or () if not pickles(task)), None)
            if culprit is None:
                raise
            error = unsendable(culprit, exc, "the driver", self._adapters[-1].compiled.name)
            good = role.link.fail_unsendable(outputs, error)
            role.link.send(good, is_primary=self._is_primary)
            if role.context.on_error == "raise" and not failed:
                raise error from exc
            return None

    def __deepcopy__(self, memo: dict[int, Any]) -> GroupAdapter:
        # Xenna copies a pipeline several times before sending it to workers, which get pickled copies anyway.
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # As for a single adapter, but with all stages in one pickle: what they share here, they share there.
        stages = [adapter.compiled for adapter in self._adapters]
        return _restore, (type(self).__name__, pack(SentStages(stages)), replace(self._role, inputs=None))


def create_group_adapter(group: StageGroup, role: Role) -> GroupAdapter:
    """Return an adapter for stages that share a worker.

    Its class, whose name Xenna and Ray show, has the names of the stages, joined by ``+``; a stage that stands alone
    keeps the name of its class.

    Args:
        group: The stages.
        role: The group's part in the run.
    """
    adapters = [_adapter_of(compiled) for compiled in group.stages]
    name = group.name if len(adapters) > 1 else type(adapters[0]).__name__
    return named_class(GroupAdapter, name)(adapters, role)


def _adapter_of(compiled: CompiledStage) -> XennaStageAdapter:
    made = stage_adapter.create_named_xenna_stage_adapter(compiled.stage)
    made.state.compiled = compiled  # as the plan read it, with its position
    return made


def _restore(class_name: str, packed: Packed, role: Role) -> GroupAdapter:
    sent: SentStages = unpack(packed)
    return named_class(GroupAdapter, class_name)(sent.adapters(XennaStageAdapter), role)
