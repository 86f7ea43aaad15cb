# SPDX-License-Identifier: Apache-2.0
"""The adapter that presents a stage to Xenna; docs/contract.md lists what it promises."""

from __future__ import annotations

import logging
import threading
import unicodedata
from contextlib import contextmanager
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from curator_core import BaseStageAdapter, NodeInfo, WorkerMetadata
from curator_core.backends import stage_error
from curator_xenna._convert.resources import share_of
from curator_xenna._convert.runtime_env import StageEnvironment
from curator_xenna._session.packing import pack, unpack
from curator_xenna.compat import Resources, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cosmos_xenna.pipelines import v1 as pipelines_v1

    from curator_core.backends import CompiledStage, Packed
    from curator_xenna._convert.resources import Share

__all__ = ["Lifetime", "XennaStageAdapter", "create_named_xenna_stage_adapter", "named_class", "resources_of"]

logger = logging.getLogger(__name__)

Adapter = TypeVar("Adapter", bound="Stage[Any, Any]")

_FINISH_S = 10.0  # how long a teardown waits for the running batch; Xenna allows 45 s for the whole teardown


class Lifetime:
    """The time between setup and teardown of a worker. Xenna calls the teardown from another thread than batches.

    Args:
        name: The name of the stage, for a message.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._is_set_up = False
        self._busy = threading.RLock()  # held while the stage's code runs

    @contextmanager
    def setting_up(self) -> Iterator[None]:
        """Run setup; if it succeeds, `end` tears down."""
        with self.exceptions_only():
            yield
        self._is_set_up = True

    @contextmanager
    def working(self) -> Iterator[None]:
        """Run the stage's code: a teardown waits for it."""
        with self._busy, self.exceptions_only():
            yield

    def end(self, tear_down: Callable[[], None]) -> None:
        """Tear down once, if setup has succeeded.

        On a scale-down, the call can come in the middle of a batch, which is given time to finish.
        """
        if not self._busy.acquire(timeout=_FINISH_S):
            logger.warning("stage '%s' is still running and was not torn down", self._name)
            return
        try:
            if self._is_set_up:
                self._is_set_up = False
                tear_down()
        finally:
            self._busy.release()

    @contextmanager
    def exceptions_only(self) -> Iterator[None]:
        """Turn a `BaseException` that is not an `Exception` into a `StageError`: it would silently kill a thread."""
        try:
            yield
        except Exception:
            raise
        except BaseException as exc:
            raise stage_error(exc, self._name) from exc


class XennaStageAdapter(BaseStageAdapter, Stage[Any, Any]):
    """Runs a stage in a Xenna worker.

    It works as a stage of any Xenna pipeline. In a run of `XennaExecutor`, it is part of the group of stages that
    share a worker.

    Args:
        processing_stage: The stage to run.
        compiled: The stage as the plan read it; None to read it now.
    """

    def __init__(self, processing_stage: Any, compiled: CompiledStage | None = None) -> None:
        super().__init__(processing_stage, compiled)
        self._lifetime = Lifetime(self.compiled.name)

    @property
    def required_resources(self) -> Resources:
        """The stage's resources as Xenna `Resources`."""
        return resources_of(self.compiled, self._share)

    @cached_property
    def _share(self) -> Share:
        return share_of(self.compiled.resources, (), self.compiled.name)

    @property
    def stage_batch_size(self) -> int:
        """The stage's batch size, 1 if unset."""
        return self.compiled.batch_size

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
        with self._lifetime.exceptions_only():
            super().setup_on_node(NodeInfo(node_info.node_id), _to_ours(worker_metadata))

    def setup(self, worker_metadata: pipelines_v1.WorkerMetadata) -> None:  # type: ignore[override]
        """Prepare the worker."""
        self.state.move_to(worker_metadata.worker_id, worker_metadata.allocation.node)
        with self._lifetime.setting_up():
            super().setup(_to_ours(worker_metadata))

    def process_data(self, tasks: list[Any]) -> list[Any]:
        """Run a batch of tasks."""
        with self._lifetime.working():
            return self.process_batch(tasks)

    def destroy(self) -> None:
        """Tear the stage down. Xenna 0.4.1 and later calls this, from another thread."""
        self._lifetime.end(self.teardown)

    def __deepcopy__(self, memo: dict[int, Any]) -> XennaStageAdapter:
        # Xenna copies a pipeline several times before sending it to workers, which get pickled copies anyway.
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # The named class exists only in this process; each other process creates its own. User code goes through core's
        # pickler, which knows what must not leave this process.
        return _restore, (type(self).__name__, pack((self.processing_stage, self.compiled)))


def create_named_xenna_stage_adapter(stage: Any) -> XennaStageAdapter:
    """Return an adapter whose class has the name of the stage's class, so that Xenna and Ray show that name.

    Args:
        stage: The stage.
    """
    return named_class(XennaStageAdapter, type(stage).__name__)(stage)


def named_class(base: type[Adapter], name: str) -> type[Adapter]:
    """Return a class of adapters with a name, in letters that Xenna and Ray accept; the same one for the same name."""
    named: type[Adapter] = base if name == base.__name__ else _subclass(base, _in_ascii(name))
    return named


@cache
def _subclass(base: type, name: str) -> Any:
    return type(name, (base,), {"__module__": base.__module__, "__doc__": base.__doc__})


def _restore(class_name: str, stage: Packed) -> XennaStageAdapter:
    return named_class(XennaStageAdapter, class_name)(*unpack(stage))


def resources_of(compiled: CompiledStage, share: Share) -> Resources:
    """Return a share of a node as Xenna `Resources`, for a stage or for the first stage of a group."""
    return Resources(cpus=share.cpus, gpus=share.gpus, is_spmd=bool(compiled.engine_options.get("is_spmd")))


def _in_ascii(name: str) -> str:
    """Transliterate a name to ASCII, the only encoding that Xenna and Ray accept. Reports keep the original."""
    plain = unicodedata.normalize("NFKD", name.replace("ß", "ss"))
    bare = "".join(letter for letter in plain if not unicodedata.combining(letter))
    return "".join(letter if letter.isascii() else "_" for letter in bare)


def _to_ours(metadata: pipelines_v1.WorkerMetadata) -> WorkerMetadata:
    return WorkerMetadata(worker_id=metadata.worker_id, allocation=metadata.allocation)
