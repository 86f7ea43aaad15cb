# SPDX-License-Identifier: Apache-2.0
"""A stage as Xenna sees it."""

from __future__ import annotations

import logging
import threading
import unicodedata
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from curator_core import BaseStageAdapter, ContractError, NodeInfo, StageError, WorkerMetadata
from curator_core.backends import (
    Bundle,
    Chain,
    RunContext,
    find_unpicklable,
    message_of,
    pickles,
    split,
    stage_error,
    unbundled,
)
from curator_xenna.compat import HAS_DESTROY, Resources, Stage
from curator_xenna.environment import StageEnvironment
from curator_xenna.parcel import Parcel
from curator_xenna.resources import share_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cosmos_xenna.pipelines import v1 as pipelines_v1

    from curator_core.backends import BundlePlan, Group, StageView
    from curator_xenna.inputs import InputQueue
    from curator_xenna.resources import Share
    from curator_xenna.worker import WorkerLink

__all__ = ["Role", "XennaStageAdapter", "create_group_adapter", "create_named_xenna_stage_adapter"]

logger = logging.getLogger(__name__)

_EVERYTHING = 2**31 - 1
_OF_THIS_PROCESS = ("_busy", "_chain", "_inputs")  # what does not travel to a worker
_APART = ("processing_stage", "view", "_following")  # what does so in a pickle of its own
_FINISH_S = 10.0  # for a batch to end before its worker is torn down; Xenna waits 45 s for the whole of it


@dataclass(frozen=True, slots=True)
class Role:
    """What an adapter is to do in a run.

    Attributes:
        context: The run.
        link: The way to its coordinator.
        share: The group's resources on this cluster.
        batch_size: How many items Xenna is to hand over at once: tasks, or bundles of them.
        bundles: What bundles for the next group are to be like; None where tasks travel alone.
        is_last: Whether the outputs are those of the pipeline: they go to the driver with the report
            and not to Xenna, which could not give them back after an abort.
    """

    context: RunContext
    link: WorkerLink
    share: Share
    batch_size: int
    bundles: BundlePlan | None
    is_last: bool


class XennaStageAdapter(BaseStageAdapter, Stage[Any, Any]):
    """Runs a stage in a Xenna worker, and those that are fused with it.

    On its own it works as a plain Xenna stage. `XennaExecutor` connects it to a run, so that its reports
    reach the driver, and gives it the stages that follow in the same worker.

    Args:
        processing_stage: The stage to run.
    """

    def __init__(self, processing_stage: Any) -> None:
        super().__init__(processing_stage)
        self._share: Share | None = None
        self._role: Role | None = None
        self._following: tuple[BaseStageAdapter, ...] = ()
        self._inputs: InputQueue | None = None
        self._is_primary = True
        self._is_set_up = False
        self._busy = threading.RLock()  # held while the stage's code runs

    def connect(self, views: Sequence[StageView], role: Role, inputs: InputQueue | None = None) -> None:
        """Make it part of a run.

        Args:
            views: The stages of the group, as the plan read them; the first is this adapter's.
            role: What it is to do.
            inputs: In the driver, the tasks that it will be handed, if it is the first.
        """
        self._role, self._share, self._inputs = role, role.share, inputs
        self._hold(views)

    # --- what Xenna asks ----------------------------------------------------------------------------------

    @property
    def required_resources(self) -> Resources:
        """The stage's resources, as Xenna's."""
        if self._share is None:  # read in Xenna's 100 Hz loop, so translated once
            self._share = share_of(self.view.resources, (), self.view.name)
        is_spmd = bool(self.view.engine_options.get("is_spmd"))
        return Resources(cpus=self._share.cpus, gpus=self._share.gpus, is_spmd=is_spmd)

    @property
    def stage_batch_size(self) -> int:
        """The stage's batch size; 1 where it is unset. In a run, how many items Xenna is to hand over at once."""
        if self._inputs is not None and self._inputs.is_empty:
            return _EVERYTHING  # tickets that are not needed go in one batch
        return self.view.batch_size if self._role is None else self._role.batch_size

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
        node, worker = NodeInfo(node_info.node_id), _to_ours(worker_metadata)
        try:
            with _exceptions_only(self.view.name):
                for adapter in self._own_and_following():
                    adapter.setup_on_node(node, worker)
        except StageError:
            self._send()
            raise

    def setup(self, worker_metadata: pipelines_v1.WorkerMetadata) -> None:  # type: ignore[override]
        """Prepare the worker."""
        self._enter(worker_metadata)
        worker, ready = _to_ours(worker_metadata), list[Any]()
        try:
            with _exceptions_only(self.view.name):
                for adapter in self._own_and_following():
                    adapter.setup(worker)
                    ready.append(adapter)
            self._is_set_up = True
        except StageError:
            for adapter in reversed(ready):
                adapter.teardown()
            raise
        finally:
            self._send()
        if self._role is not None and not HAS_DESTROY:
            self._role.link.tear_down_when_told(self.destroy)

    def process_data(self, tasks: list[Any]) -> list[Any]:
        """Run a batch, or bundles of tasks; its reports reach the driver before its outputs can move on."""
        given, outputs = unbundled(tasks), list[Any]()
        if not given:
            return []
        role = self._role
        if role is not None:
            unit = role.link.begin(given)
            for adapter in self._chain.adapters:
                adapter.bundle_id = unit if isinstance(tasks[0], Bundle) else ""
        try:
            with self._busy, _exceptions_only(self.view.name):
                self._chain.run(given, outputs)
        except StageError:
            self._deliver(outputs, failed=True)
            raise
        if role is None:
            return outputs
        seconds_per_task = self._deliver(outputs)
        if role.is_last or not self._is_primary:  # of an SPMD group Xenna takes what rank 0 returns
            return []
        if role.bundles is None:
            return outputs
        return [Bundle(part) for part in split(outputs, role.bundles, seconds_per_task)]

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
            for adapter in reversed(self._own_and_following()):
                adapter.teardown()
        finally:
            self._busy.release()
        self._send()

    # --- plumbing -----------------------------------------------------------------------------------------

    def _hold(self, views: Sequence[StageView]) -> None:
        """Be the adapter of these stages."""
        self.view, *rest = views
        self._following = tuple(BaseStageAdapter(view.stage, view) for view in rest)
        if (role := self._role) is not None:
            for adapter in (self, *self._following):
                adapter.bind(role.context, role.link.collect)

    def _own_and_following(self) -> list[Any]:
        """The base adapters of all stages: Xenna calls this one's set-up, which is not the base's."""
        return [super(), *self._following]

    @cached_property
    def _chain(self) -> Chain:
        return Chain([self, *self._following])

    def _deliver(self, outputs: list[Any], *, failed: bool = False) -> float | None:
        """Send the reports, and the pipeline's outputs with them; seconds a task in the next group, where known."""
        role = self._role
        if role is None:
            return None
        payload = outputs if role.is_last and role.context.collect else None
        try:
            return role.link.send(payload, is_primary=self._is_primary)
        except BaseException as exc:
            culprits = [task for task in outputs if not pickles(task)] if payload else []
            if not culprits:
                raise
            error = _cannot_travel(culprits[0], exc, self._chain.adapters[-1].view.name)
            spoilt = role.link.mark_failed({task.stage_perf[-1].batch_id for task in culprits}, error)
            good = [task for task in outputs if task.stage_perf[-1].batch_id not in spoilt]
            role.link.send(good, is_primary=self._is_primary)
            if self.context.on_error == "raise" and not failed:
                raise error from exc
            return None

    def _enter(self, worker_metadata: pipelines_v1.WorkerMetadata) -> None:
        # In an SPMD group every rank is given every batch, and Xenna uses what rank 0 returns.
        self._is_primary = worker_metadata.rank in (None, 0)
        node_id = worker_metadata.allocation.node
        for adapter in self._chain.adapters:
            adapter.move_to(worker_metadata.worker_id, node_id)
        if self._role is not None:
            self._role.link.enter(worker_metadata.worker_id, node_id)

    def _send(self) -> None:
        if self._role is not None:
            self._role.link.send(None, is_primary=self._is_primary)

    def __deepcopy__(self, memo: dict[int, Any]) -> XennaStageAdapter:
        # Xenna copies a pipeline several times over before it sends it to workers, which get copies anyway.
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # The named class exists in this process only; any other makes its own.
        state = {name: value for name, value in self.__dict__.items() if name not in (*_OF_THIS_PROCESS, *_APART)}
        # What has code of users goes through core's pickler, which knows what stays at home.
        views = [self.view, *(adapter.view for adapter in self._following)]
        return _restore, (type(self).__name__, state, Parcel.of((self.processing_stage, views)))


def create_named_xenna_stage_adapter(stage: Any) -> XennaStageAdapter:
    """An adapter whose class has the name of the stage's class, which is what Xenna and Ray show.

    Args:
        stage: The stage.
    """
    return _named_class(type(stage).__name__)(stage)


def create_group_adapter(group: Group) -> XennaStageAdapter:
    """An adapter for stages that share a worker; its class has their names, joined by ``+``.

    Args:
        group: The stages. One that stands alone gets what `create_named_xenna_stage_adapter` makes of it.
    """
    first = group.stages[0].stage
    return create_named_xenna_stage_adapter(first) if len(group.stages) == 1 else _named_class(group.name)(first)


@cache
def _named_class(name: str) -> type[XennaStageAdapter]:
    if name == XennaStageAdapter.__name__:
        return XennaStageAdapter
    return type(_in_ascii(name), (XennaStageAdapter,), {"__module__": __name__, "__doc__": XennaStageAdapter.__doc__})


def _in_ascii(name: str) -> str:
    """A name as Xenna and Ray can take it: both encode it as ASCII. Reports have the true one."""
    plain = unicodedata.normalize("NFKD", name.replace("ß", "ss"))
    bare = "".join(letter for letter in plain if not unicodedata.combining(letter))
    return "".join(letter if letter.isascii() else "_" for letter in bare)


def _restore(class_name: str, state: dict[str, Any], stages: Parcel) -> XennaStageAdapter:
    cls = _named_class(class_name)
    adapter = cls.__new__(cls)
    adapter.__dict__.update(state, _busy=threading.RLock(), _inputs=None)
    adapter.processing_stage, views = stages.open()
    adapter._hold(views)
    return adapter


@contextmanager
def _exceptions_only(stage: str) -> Iterator[None]:
    """Raise a `StageError` for what is not an `Exception`: Xenna's threads die of it, and nobody notices."""
    try:
        yield
    except Exception:
        raise
    except BaseException as exc:
        raise stage_error(exc, stage) from exc


def _cannot_travel(task: Any, exc: BaseException, stage: str) -> ContractError:
    where, culprit = find_unpicklable(task, f"task '{task.task_id}'")
    return ContractError(
        f"an output cannot be sent to the driver: {message_of(exc)}",
        stage=stage,
        field=where,
        given=culprit,
        expected="tasks that pickle",
        hint="keep locks, files and connections in the stage, out of tasks",
    )


def _to_ours(metadata: pipelines_v1.WorkerMetadata) -> WorkerMetadata:
    return WorkerMetadata(worker_id=metadata.worker_id, allocation=metadata.allocation)
