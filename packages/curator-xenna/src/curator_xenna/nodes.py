# SPDX-License-Identifier: Apache-2.0
"""The nodes of a Ray cluster, which are asked themselves what they have."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from curator_core import ClusterError
from curator_xenna.resources import Gpu

__all__ = ["Node", "probed_nodes"]

logger = logging.getLogger(__name__)

_PROBE_TIMEOUT_S = 120.0  # Ray takes up to 65 s to find out that a silent node is dead
_LOOK_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the cluster, as Xenna plans with it.

    Attributes:
        node_id: Ray's id.
        cpus: CPUs that Ray declares, less the share that Xenna leaves free, rounded down as Xenna does.
        gpus: Its GPUs.
    """

    node_id: str
    cpus: int
    gpus: tuple[Gpu, ...]


def probed_nodes(cpu_share: float) -> list[Node]:
    """The nodes that are alive, with their GPUs. Waits for Ray to find out about one that has just been lost.

    Args:
        cpu_share: The share of each node's CPUs that Xenna is to plan with.

    Raises:
        ClusterError: A node that Ray calls alive does not answer, or answers with an error.
    """
    alive, found = _answers()
    return [_as_planned(node, gpus, cpu_share) for node, gpus in zip(alive, found, strict=True)]


def _as_planned(node: dict[str, Any], gpus: list[Gpu], cpu_share: float) -> Node:
    declared = node["Resources"]
    limit = declared.get("GPU")  # Xenna uses no more of them than Ray declares, where Ray declares any
    cpus = math.floor(int(declared.get("CPU", 0)) * cpu_share)
    return Node(node["NodeID"], cpus, tuple(gpus if limit is None else gpus[: int(limit)]))


def _answers() -> tuple[list[dict[str, Any]], list[list[Gpu]]]:
    """Ray's nodes, and the GPUs of each, as it says itself.

    One that does not answer is waited for until Ray calls it dead: Xenna would place workers on it.
    """
    deadline = time.monotonic() + _PROBE_TIMEOUT_S
    asked: dict[str, Any] = {}
    while True:
        alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]
        asked = {each: asked[each] if each in asked else _on(each, _gpus_of_this_node).remote() for each in alive}
        ray.wait([*asked.values()], num_returns=len(asked), timeout=_LOOK_AGAIN_S)
        answers = {each: _answer(ref) for each, ref in asked.items()}
        errors = {each: answer for each, answer in answers.items() if isinstance(answer, Exception)}
        if not errors:
            return [*alive.values()], [*answers.values()]
        for each, error in errors.items():
            if isinstance(error, ray.exceptions.RayTaskError):
                raise _cannot_work(alive[each], error) from error
        silent = ", ".join(f"{_shown(alive[each])} ({type(error).__name__})" for each, error in errors.items())
        if time.monotonic() >= deadline:
            raise _silent(silent) from next(iter(errors.values()))
        logger.info("waiting for nodes that do not answer: %s", silent)
        failed = [each for each, error in errors.items() if not isinstance(error, ray.exceptions.GetTimeoutError)]
        for each in failed:
            del asked[each]  # it is asked again, if it is alive then
        time.sleep(_LOOK_AGAIN_S if failed else 0)  # the others were waited for


def _answer(asked: Any) -> Any:
    """What a node says, or why it says nothing."""
    try:
        return ray.get(asked, timeout=0)
    except ray.exceptions.RayError as exc:
        return exc


def _shown(node: dict[str, Any]) -> str:
    return f"{node['NodeID'][:8]} at {node['NodeManagerAddress']}"


def _cannot_work(node: dict[str, Any], error: Any) -> ClusterError:
    return ClusterError(
        f"node {_shown(node)} cannot work: {error.cause!r}",
        field="nodes",
        expected="nodes that can do what this one can",
        hint="install the same Python environment on all nodes",
    )


def _silent(nodes: str) -> ClusterError:
    return ClusterError(
        f"nodes that Ray calls alive do not answer: {nodes}",
        field="nodes",
        expected=f"an answer within {_PROBE_TIMEOUT_S:.0f} s",
        hint="free or restart these machines, or end Ray there with `ray stop --force`: runs do without a node that "
        "Ray calls dead",
    )


def _on(node_id: str, function: Any) -> Any:
    strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(function).options(num_cpus=0, scheduling_strategy=strategy)


def _gpus_of_this_node() -> list[Gpu]:
    """What NVML says; the same devices that Xenna finds, with their memory."""
    from cosmos_xenna.pipelines.v1 import get_local_gpu_info  # noqa: PLC0415 - runs on the node

    found = get_local_gpu_info()
    if not found:
        return []
    import pynvml  # noqa: PLC0415 - Xenna has just used it

    pynvml.nvmlInit()
    try:
        memory = [pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(gpu.index)).total for gpu in found]
    finally:
        pynvml.nvmlShutdown()
    return [Gpu(gpu.name, size / 1e9) for gpu, size in zip(found, memory, strict=True)]
