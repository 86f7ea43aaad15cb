# SPDX-License-Identifier: Apache-2.0
"""The adapter that presents a stage, or a group of fused stages, to Xenna as one Xenna stage."""

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
from curator_xenna._convert.resources import share_of
from curator_xenna._convert.runtime_env import StageEnvironment
from curator_xenna._session.parcel import Parcel
from curator_xenna.compat import HAS_DESTROY, Resources, Stage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cosmos_xenna.pipelines import v1 as pipelines_v1

    from curator_core.backends import BundlePlan, CompiledStage, StageGroup
    from curator_xenna._convert.resources import Share
    from curator_xenna._session.inputs import InputQueue
    from curator_xenna._session.worker import WorkerLink

__all__ = ["Role", "XennaStageAdapter", "create_group_adapter", "create_named_xenna_stage_adapter"]

logger = logging.getLogger(__name__)

_EVERYTHING = 2**31 - 1
_OF_THIS_PROCESS = ("_busy", "_chain", "_inputs")  # attributes that are not sent to workers
_APART = ("state", "_following")  # attributes that are sent in a separate pickle
_FINISH_S = 10.0  # how long a teardown waits for the running batch; Xenna allows 45 s for the whole teardown


@dataclass(frozen=True, slots=True)
class Role:
    """The part that an adapter plays in a run.

    Attributes:
        context: The context of the run.
        link: The connection to the run's coordinator.
        share: The group's resources on this cluster.
        batch_size: How many items Xenna passes in one call: tasks, or bundles of tasks.
        bundles: How to bundle tasks for the next group; None if tasks travel individually.
        is_last: Whether the outputs are the pipeline's outputs. Those go to the driver with the reports
            and not to Xenna, which could not return them after an aborted run.
    """

    context: RunContext
    link: WorkerLink
    share: Share
    batch_size: int
    bundles: BundlePlan | None
    is_last: bool


class XennaStageAdapter(BaseStageAdapter, Stage[Any, Any]):
    """Runs a stage, and the stages that are fused with it, in a Xenna worker.

    On its own, the adapter works as a plain Xenna stage. `XennaExecutor` connects it to a run, so that its
    reports reach the driver, and adds the stages that follow in the same worker.

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

    def connect(self, stages: Sequence[CompiledStage], role: Role, inputs: InputQueue | None = None) -> None:
        """Connect the adapter to a run.

        Args:
            stages: The stages of the group, as compiled by the plan; the first is this adapter's stage.
            role: The adapter's part in the run.
            inputs: The queue of tasks for the first group; only set in the driver, and None for other groups.
        """
        self._role, self._share, self._inputs = role, role.share, inputs
        self._hold(self.processing_stage, stages)

    # --- interface that Xenna calls -----------------------------------------------------------------------

    @property
    def required_resources(self) -> Resources:
        """The stage's resources as Xenna `Resources`."""
        if self._share is None:  # Xenna's loop reads this 100 times a second, so translate only once
            self._share = share_of(self.compiled.resources, (), self.compiled.name)
        is_spmd = bool(self.compiled.engine_options.get("is_spmd"))
        return Resources(cpus=self._share.cpus, gpus=self._share.gpus, is_spmd=is_spmd)

    @property
    def stage_batch_size(self) -> int:
        """The stage's batch size, 1 if unset. In a run, how many items Xenna passes in one call."""
        if self._inputs is not None and self._inputs.is_empty:
            return _EVERYTHING  # all unused tickets go in one batch
        return self.compiled.batch_size if self._role is None else self._role.batch_size

    @property
    def env_info(self) -> pipelines_v1.RuntimeEnv | None:
        """The stage's runtime environment; None if it declares none."""
        declared = self.compiled.runtime_env
        return None if declared is None else StageEnvironment(declared)

    # Xenna passes its own types to the two setup methods and counts their parameters, so both override
    # the base adapter's methods, which take our types.
    def setup_on_node(  # type: ignore[override]
        self, node_info: pipelines_v1.NodeInfo, worker_metadata: pipelines_v1.WorkerMetadata
    ) -> None:
        """Prepare the node; Xenna calls this once for each node."""
        self._enter(worker_metadata)
        node, worker = NodeInfo(node_info.node_id), _to_ours(worker_metadata)
        try:
            with _exceptions_only(self.compiled.name):
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
            with _exceptions_only(self.compiled.name):
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
        """Run a batch of tasks or bundles; its reports reach the coordinator before its outputs are returned."""
        given, outputs = unbundled(tasks), list[Any]()
        if not given:
            return []
        role = self._role
        if role is not None:
            unit = role.link.begin(given)
            for adapter in self._chain.adapters:
                adapter.state.bundle_id = unit if isinstance(tasks[0], Bundle) else ""
        try:
            with self._busy, _exceptions_only(self.compiled.name):
                self._chain.run(given, outputs)
        except StageError:
            self._deliver(outputs, failed=True)
            raise
        if role is None:
            return outputs
        seconds_per_task = self._deliver(outputs)
        if role.is_last or not self._is_primary:  # in an SPMD group, Xenna uses only what rank 0 returns
            return []
        if role.bundles is None:
            return outputs
        return [Bundle(part) for part in split(outputs, role.bundles, seconds_per_task)]

    def destroy(self) -> None:
        """Tear down the stages. Xenna 0.4.1 and later calls this; on earlier versions the coordinator triggers it.

        The call comes from another thread. On a scale-down it can come in the middle of a batch, which is
        given time to finish.
        """
        if not self._busy.acquire(timeout=_FINISH_S):
            logger.warning("stage '%s' is still running and was not torn down", self.compiled.name)
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

    # --- internals ----------------------------------------------------------------------------------------

    def _hold(self, processing_stage: Any, stages: Sequence[CompiledStage]) -> None:
        """Become the adapter of these stages."""
        first, *rest = stages
        BaseStageAdapter.__init__(self, processing_stage, first)
        self.__dict__.pop("_chain", None)  # of the stages before
        self._following = tuple(BaseStageAdapter(compiled.stage, compiled) for compiled in rest)
        if (role := self._role) is not None:
            for adapter in (self, *self._following):
                adapter.bind(role.context, role.link.collect)

    def _own_and_following(self) -> list[Any]:
        """Return the base adapters of all stages: `super()` here, because this class overrides the setup methods."""
        return [super(), *self._following]

    @cached_property
    def _chain(self) -> Chain:
        return Chain([self, *self._following])

    def _deliver(self, outputs: list[Any], *, failed: bool = False) -> float | None:
        """Send the reports, with any pipeline outputs; return the seconds per task in the next group, if known."""
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
            error = _cannot_travel(culprits[0], exc, self._chain.adapters[-1].compiled.name)
            spoilt = role.link.mark_failed({task.stage_perf[-1].batch_id for task in culprits}, error)
            good = [task for task in outputs if task.stage_perf[-1].batch_id not in spoilt]
            role.link.send(good, is_primary=self._is_primary)
            if self.state.context.on_error == "raise" and not failed:
                raise error from exc
            return None

    def _enter(self, worker_metadata: pipelines_v1.WorkerMetadata) -> None:
        # In an SPMD group, every rank gets every batch, and Xenna uses only what rank 0 returns.
        self._is_primary = worker_metadata.rank in (None, 0)
        node_id = worker_metadata.allocation.node
        for adapter in self._chain.adapters:
            adapter.state.move_to(worker_metadata.worker_id, node_id)
        if self._role is not None:
            self._role.link.enter(worker_metadata.worker_id, node_id)

    def _send(self) -> None:
        if self._role is not None:
            self._role.link.send(None, is_primary=self._is_primary)

    def __deepcopy__(self, memo: dict[int, Any]) -> XennaStageAdapter:
        # Xenna copies a pipeline several times before sending it to workers, which get pickled copies anyway.
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # The named class exists only in this process; each other process creates its own.
        state = {name: value for name, value in self.__dict__.items() if name not in (*_OF_THIS_PROCESS, *_APART)}
        # User code goes through core's pickler, which knows what must not leave this process.
        stages = [self.compiled, *(adapter.compiled for adapter in self._following)]
        return _restore, (type(self).__name__, state, Parcel.of((self.processing_stage, stages)))


def create_named_xenna_stage_adapter(stage: Any) -> XennaStageAdapter:
    """Return an adapter whose class has the name of the stage's class, so that Xenna and Ray show that name.

    Args:
        stage: The stage.
    """
    return _named_class(type(stage).__name__)(stage)


def create_group_adapter(group: StageGroup) -> XennaStageAdapter:
    """Return an adapter for stages that share a worker; its class has their names, joined by ``+``.

    Args:
        group: The stages. A group of one gets the adapter that `create_named_xenna_stage_adapter` returns.
    """
    first = group.stages[0].stage
    return create_named_xenna_stage_adapter(first) if len(group.stages) == 1 else _named_class(group.name)(first)


@cache
def _named_class(name: str) -> type[XennaStageAdapter]:
    if name == XennaStageAdapter.__name__:
        return XennaStageAdapter
    return type(_in_ascii(name), (XennaStageAdapter,), {"__module__": __name__, "__doc__": XennaStageAdapter.__doc__})


def _in_ascii(name: str) -> str:
    """Transliterate a name to ASCII, the only encoding that Xenna and Ray accept. Reports keep the original."""
    plain = unicodedata.normalize("NFKD", name.replace("ß", "ss"))
    bare = "".join(letter for letter in plain if not unicodedata.combining(letter))
    return "".join(letter if letter.isascii() else "_" for letter in bare)


def _restore(class_name: str, state: dict[str, Any], parcel: Parcel) -> XennaStageAdapter:
    cls = _named_class(class_name)
    adapter = cls.__new__(cls)
    adapter.__dict__.update(state, _busy=threading.RLock(), _inputs=None)
    adapter._hold(*parcel.open())
    return adapter


@contextmanager
def _exceptions_only(stage: str) -> Iterator[None]:
    """Turn a `BaseException` that is not an `Exception` into a `StageError`: it would silently kill Xenna's threads."""
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
        expected="tasks that can be pickled",
        hint="keep locks, files, and connections in the stage, not in tasks",
    )


def _to_ours(metadata: pipelines_v1.WorkerMetadata) -> WorkerMetadata:
    return WorkerMetadata(worker_id=metadata.worker_id, allocation=metadata.allocation)
