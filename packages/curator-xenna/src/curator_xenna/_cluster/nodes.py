# SPDX-License-Identifier: Apache-2.0
"""The nodes of a Ray cluster; each node is asked for its GPUs."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from curator_core import ClusterError
from curator_xenna._convert.resources import Gpu

__all__ = ["Node", "probed_nodes"]

logger = logging.getLogger(__name__)

_PROBE_TIMEOUT_S = 120.0  # Ray takes up to 65 s to notice that a silent node is dead
_LOOK_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the cluster, with the resources that Xenna plans with.

    Attributes:
        node_id: Ray's id of the node.
        cpus: The CPUs that Ray declares, minus the share that Xenna leaves free, rounded down like Xenna does.
        gpus: Its GPUs.
    """

    node_id: str
    cpus: int
    gpus: tuple[Gpu, ...]


def probed_nodes(cpu_share: float) -> list[Node]:
    """Return the nodes that are alive, with their GPUs. Waits until Ray has noticed any node that was just lost.

    Args:
        cpu_share: The share of each node's CPUs that Xenna plans with.

    Raises:
        ClusterError: A node that Ray reports as alive does not answer, or answers with an error.
    """
    alive, found = _answers()
    return [_as_planned(node, gpus, cpu_share) for node, gpus in zip(alive, found, strict=True)]


def _as_planned(node: dict[str, Any], gpus: list[Gpu], cpu_share: float) -> Node:
    declared = node["Resources"]
    limit = declared.get("GPU")  # Xenna uses no more GPUs than Ray declares, if Ray declares any
    cpus = math.floor(int(declared.get("CPU", 0)) * cpu_share)
    return Node(node["NodeID"], cpus, tuple(gpus if limit is None else gpus[: int(limit)]))


def _answers() -> tuple[list[dict[str, Any]], list[list[Gpu]]]:
    """Return Ray's nodes, and the GPUs that each of them reports.

    Waits for a node that does not answer until Ray reports it as dead, because Xenna would place workers on it.
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
            del asked[each]  # to ask it again if it is still alive
        time.sleep(_LOOK_AGAIN_S if failed else 0)  # if none failed, ray.wait has already waited


def _answer(asked: Any) -> Any:
    """Return a node's answer, or the error if it did not answer."""
    try:
        return ray.get(asked, timeout=0)
    except ray.exceptions.RayError as exc:
        return exc


def _shown(node: dict[str, Any]) -> str:
    return f"{node['NodeID'][:8]} at {node['NodeManagerAddress']}"


def _cannot_work(node: dict[str, Any], error: Any) -> ClusterError:
    return ClusterError(
        f"node {_shown(node)} cannot run stages: {error.cause!r}",
        field="nodes",
        expected="nodes with the same Python environment as the driver's",
        hint="install the same Python environment on all nodes",
    )


def _silent(nodes: str) -> ClusterError:
    return ClusterError(
        f"nodes that Ray reports as alive did not answer: {nodes}",
        field="nodes",
        expected=f"an answer within {_PROBE_TIMEOUT_S:.0f} s",
        hint="free or restart these machines, or stop Ray there with `ray stop --force`: runs do not use nodes that "
        "Ray reports as dead",
    )


def _on(node_id: str, function: Any) -> Any:
    strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(function).options(num_cpus=0, scheduling_strategy=strategy)


def _gpus_of_this_node() -> list[Gpu]:
    """Return this node's GPUs: the devices that Xenna finds, with their memory as NVML reports it."""
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
