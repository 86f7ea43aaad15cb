# SPDX-License-Identifier: Apache-2.0
"""What a pipeline would do on a cluster that is not there: workers, throughput, the stage that limits it, and hours.

The plan is made to fit the cluster as in a run, and Xenna's own autoscaler decides how many workers each group of
stages gets. The speeds of the stages come from a run on any machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from curator_core import ExecutorError
from curator_core.backends import is_amount, is_whole, unknown_name
from curator_xenna.config import XennaConfig
from curator_xenna.executor import XennaExecutor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from curator_core import Plan, StageSpeed
    from curator_core.backends import CompiledStage
    from curator_xenna._placement.placement import Fit, Placement

__all__ = ["CapacityPlan", "ClusterSpec", "GroupCapacity", "plan_capacity"]

_SHARE_PLANNED = 0.95  # of the CPUs of a node, Xenna's default for a cluster that is joined
# Half of what was measured: 13 us of CPU time per batch, for 100,000 tasks in batches of one through three light stages.
_DRIVER_BATCHES_PER_S = 40_000
_INSTANT = 1e9  # batches per second of a stage that takes no time
_HOUR_S = 3600
_CORES, _DRIVER = "the cores of the cluster", "the driver"


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """Equal nodes of a cluster.

    Attributes:
        nodes: How many nodes.
        cpus: CPUs of each node.
        gpus: GPUs of each node.
        gpu: The model, such as ``"NVIDIA H100 80GB HBM3"``: needed if stages request codec engines.
        gpu_memory_gb: Memory of each GPU in GB (10**9 bytes): needed if stages request GPU memory.
        is_embedded: Whether this is the Ray that `XennaExecutor` starts on one machine: Xenna then plans with all of
            its CPUs, and it declares more of them if the stages do not fit.

    Raises:
        ExecutorError: A number is invalid.
    """

    nodes: int = 1
    cpus: int = 1
    gpus: int = 0
    gpu: str = ""
    gpu_memory_gb: float = 0.0
    is_embedded: bool = False

    def __post_init__(self) -> None:
        for field, least in (("nodes", 1), ("cpus", 1), ("gpus", 0)):
            if not is_whole(getattr(self, field), least):
                raise _invalid(field, getattr(self, field), f"a whole number, {least} or more")
        if not is_amount(self.gpu_memory_gb):
            raise _invalid("gpu_memory_gb", self.gpu_memory_gb, "a number of GB, 0 or more")
        if self.is_embedded and self.nodes != 1:
            raise _invalid("nodes", self.nodes, "1, because an embedded Ray has one node")


@dataclass(frozen=True, slots=True)
class GroupCapacity:
    """The workers of one group of stages.

    Attributes:
        name: The names of the stages, joined by ``+``.
        workers: How many workers run at once.
        cpus: CPUs that each of them requests.
        gpus: GPUs, or the share of one, that each of them uses.
        tasks_per_s: Source tasks per second that these workers could process if nothing else limited them.
        busy_ratio: Share of the time in which they work, 0 to 1.
    """

    name: str
    workers: int
    cpus: float
    gpus: float
    tasks_per_s: float
    busy_ratio: float


@dataclass(frozen=True, slots=True)
class CapacityPlan:
    """What a pipeline would do on a cluster, without the time to start.

    Attributes:
        groups: The groups of stages, in order.
        tasks_per_s: Source tasks per second.
        limit: What limits the throughput: the name of a group, of a source in the driver, or a part of the cluster.
        idle_cpus: CPUs, of those that Xenna plans with, that no worker requests.
        idle_gpus: GPUs that no worker uses.
        driver_ratio: Load on the driver, as a share of the reports that it can take in: 1 if it is the limit.
        is_streaming: Whether all groups run at once. Otherwise they run one after the other, because one worker of each
            does not fit.
    """

    groups: tuple[GroupCapacity, ...]
    tasks_per_s: float
    limit: str
    idle_cpus: float
    idle_gpus: float
    driver_ratio: float
    is_streaming: bool = True

    def hours(self, tasks: int) -> float:
        """Return how many hours a number of source tasks takes."""
        return tasks / self.tasks_per_s / _HOUR_S if self.tasks_per_s else math.inf

    def __str__(self) -> str:
        width = max(len("group"), *(len(group.name) for group in self.groups))
        lines = [f"{'group':<{width}} {'workers':>8} {'cpus each':>10} {'gpus each':>10} {'tasks/s':>12} {'busy':>6}"]
        lines += [
            f"{group.name:<{width}} {group.workers:>8,} {group.cpus:>10g} {group.gpus:>10.3g} "
            f"{group.tasks_per_s:>12,.4g} {group.busy_ratio:>6.0%}"
            for group in self.groups
        ]
        lines.append(f"{self.tasks_per_s:,.4g} source tasks per second, limited by {self.limit}")
        lines.append(f"idle: {self.idle_cpus:g} CPUs, {self.idle_gpus:.3g} GPUs; driver: {self.driver_ratio:.1%}")
        if not self.is_streaming:
            lines.append("the groups run one after the other: one worker of each does not fit")
        return "\n".join(lines)


def plan_capacity(
    plan: Plan,
    cluster: ClusterSpec | Sequence[ClusterSpec],
    speeds: Mapping[str, StageSpeed],
    config: XennaConfig | Mapping[str, Any] | None = None,
) -> CapacityPlan:
    """Plan a pipeline on a cluster that need not exist. Nothing is started, and no GPU is needed.

        small = pipeline.run("xenna", initial_tasks=tasks[:1000])
        plan = pipeline.compile(fed=True)
        print(plan_capacity(plan, ClusterSpec(nodes=64, cpus=96, gpus=8), small.speeds))

    The model: each worker processes one batch at a time, at the speed of the measured run; no group is faster than its
    workers, all stages together are not faster than the cores, and the driver takes in 40,000 batches per second.
    Transport is not part of it, nor is the time to start.

    Args:
        plan: The compiled pipeline.
        cluster: The nodes, or several kinds of nodes.
        speeds: The speed of each stage by name, such as `RunResult.speeds`. Those of stages on GPUs must be from the
            same model of GPU.
        config: The settings of the executor.

    Raises:
        ExecutorError: A speed is missing, invalid, or of an unknown stage; or this version of Xenna cannot be asked.
        ResourcesError: The stages do not fit the cluster. The error says what to change.
    """
    _check_speeds(plan, speeds)
    settings = XennaConfig.of(config)
    specs = (cluster,) if isinstance(cluster, ClusterSpec) else tuple(cluster)
    runs_source = plan.has_source and XennaExecutor(settings).runs_source(plan)
    stages = plan.stages[runs_source:]
    if not stages:
        raise ExecutorError("the pipeline has no stage after its source", field="plan", expected="at least one stage")
    demand = _Demand(stages, speeds)
    fitted = _fit(stages, specs, settings, has_source=plan.has_source and not runs_source)
    rates, workers = _rates_of_groups(fitted, specs, demand)
    limits = {placement.group.name: rate for placement, rate in zip(fitted.placements, rates, strict=True)}
    if not fitted.streaming:
        limits = {"the groups, which run one after the other": 1 / sum(1 / rate for rate in rates)}
    limits[_CORES] = _ratio(sum(spec.nodes * spec.cpus for spec in specs), demand.cpu_seconds)
    limits[_DRIVER] = _ratio(_DRIVER_BATCHES_PER_S, demand.batches)
    if runs_source:
        source = speeds[plan.stages[0].name]
        limits[f"the source '{plan.stages[0].name}'"] = _ratio(source.outputs, source.seconds)
    limit = min(limits, key=lambda name: limits[name])
    rate = limits[limit]
    groups = tuple(
        GroupCapacity(
            name=placement.group.name,
            workers=count,
            cpus=placement.share.cpus,
            gpus=placement.share.gpus,
            tasks_per_s=own,
            busy_ratio=rate / own,
        )
        for placement, count, own in zip(fitted.placements, workers, rates, strict=True)
    )
    nodes = _nodes(specs, fitted)
    return CapacityPlan(
        groups=groups,
        tasks_per_s=rate,
        limit=f"'{limit}'" if limit in {group.name for group in groups} else limit,
        idle_cpus=_idle([cpus for cpus, _ in nodes], [(group.workers, group.cpus) for group in groups], fitted),
        idle_gpus=_idle([gpus for _, gpus in nodes], [(group.workers, group.gpus) for group in groups], fitted),
        driver_ratio=rate / limits[_DRIVER],
        is_streaming=fitted.streaming,
    )


class _Demand:
    """The work that one source task makes.

    Args:
        stages: The stages that run on Xenna.
        speeds: Their speeds.

    Attributes:
        cpu_seconds: CPU time in all stages.
        batches: Batches in all stages.
    """

    def __init__(self, stages: Sequence[CompiledStage], speeds: Mapping[str, StageSpeed]) -> None:
        self._speeds = speeds
        self._inputs: dict[int, float] = {}
        reaching = 1.0
        for compiled in stages:
            self._inputs[compiled.index] = reaching
            reaching *= speeds[compiled.name].outputs
        self._outputs = reaching
        self.cpu_seconds = sum(self.inputs(each) * speeds[each.name].cpu_seconds for each in stages)
        self.batches = sum(self.inputs(each) / each.batch_size for each in stages)

    def inputs(self, compiled: CompiledStage) -> float:
        """Return how many tasks reach a stage."""
        return self._inputs[compiled.index]

    def seconds(self, placement: Placement) -> float:
        """Return how long the source task keeps a worker of a group busy."""
        return sum(self.inputs(each) * self._speeds[each.name].seconds for each in placement.group.stages)

    def of_group(self, placement: Placement) -> tuple[float, float]:
        """Return how many input tasks a worker of a group processes per second, and how many outputs each has."""
        came = self.inputs(placement.group.stages[0])
        left = self._inputs.get(placement.group.stages[-1].index + 1, self._outputs)
        return min(_ratio(came, self.seconds(placement)), _INSTANT), left / came if came else 0.0


def _fit(
    stages: Sequence[CompiledStage], specs: Sequence[ClusterSpec], config: XennaConfig, *, has_source: bool
) -> Fit:
    from curator_xenna._cluster.nodes import Node  # noqa: PLC0415 - loads Ray, which an import must not
    from curator_xenna._convert.resources import Gpu  # noqa: PLC0415 - for the line below
    from curator_xenna._placement.placement import fit  # noqa: PLC0415 - imports modules that load Ray

    nodes = [
        Node(f"{kind}-{number}", _planned(spec, spec.cpus), (Gpu(spec.gpu, spec.gpu_memory_gb),) * spec.gpus)
        for kind, spec in enumerate(specs)
        for number in range(spec.nodes)
    ]
    is_embedded = any(spec.is_embedded for spec in specs)
    cores = specs[0].cpus if is_embedded else None
    return fit(stages, nodes, config, has_source=has_source, may_declare=is_embedded, cores=cores)


def _planned(spec: ClusterSpec, cpus: int) -> int:
    return cpus if spec.is_embedded else math.floor(cpus * _SHARE_PLANNED)


def _nodes(specs: Sequence[ClusterSpec], fitted: Fit) -> list[tuple[int, int]]:
    """Return the CPUs that Xenna plans with, and the GPUs, of each node."""
    return [(_planned(spec, max(spec.cpus, fitted.cpus)), spec.gpus) for spec in specs for _ in range(spec.nodes)]


def _rates_of_groups(fitted: Fit, specs: Sequence[ClusterSpec], demand: _Demand) -> tuple[list[float], list[int]]:
    """Return, for each group, how many source tasks per second its workers process, and how many workers it has."""
    from curator_xenna.adapter import resources_of  # noqa: PLC0415 - loads Xenna
    from curator_xenna.compat import ToAllocate, allocated_workers  # noqa: PLC0415 - loads Xenna

    nodes = _nodes(specs, fitted)
    stages = [
        ToAllocate(resources_of(each.group.stages[0], each.share), each.workers, *demand.of_group(each))
        for each in fitted.placements
    ]
    together = [stages] if fitted.streaming else [[stage] for stage in stages]
    try:
        workers = [count for each in together for count in allocated_workers(each, nodes)]
    except (ImportError, AttributeError) as exc:
        raise ExecutorError(
            "this version of cosmos-xenna does not tell how it would allocate workers",
            expected="cosmos-xenna 0.2.0 to 0.5.12",
            hint="install one of these versions to plan",
        ) from exc
    rates = [_ratio(count, demand.seconds(each)) for each, count in zip(fitted.placements, workers, strict=True)]
    return rates, workers


def _idle(has: Sequence[float], used: Sequence[tuple[int, float]], fitted: Fit) -> float:
    taken = [count * each for count, each in used]
    return sum(has) - (sum(taken) if fitted.streaming else max(taken))


def _ratio(amount: float, per: float) -> float:
    return amount / per if per else math.inf


def _check_speeds(plan: Plan, speeds: Mapping[str, StageSpeed]) -> None:
    names = [compiled.name for compiled in plan.stages]
    for name in speeds:
        if name not in names:
            raise ExecutorError("speed of an unknown stage", given=name, **unknown_name("stage", name, names, "speeds"))
    for name in names:
        if name not in speeds:
            raise ExecutorError(
                "the speed of a stage is missing",
                stage=name,
                field="speeds",
                given=sorted(speeds),
                expected="a StageSpeed for each stage",
                hint="measure with more tasks, so that some reach this stage, or add StageSpeed(seconds=…)",
            )
        if not all(map(is_amount, speeds[name])):
            raise ExecutorError(
                "the speed of a stage is invalid",
                stage=name,
                field="speeds",
                given=speeds[name],
                expected="StageSpeed(seconds, cpu_seconds, outputs), all of them 0 or more",
            )


def _invalid(field: str, given: Any, expected: str) -> ExecutorError:
    return ExecutorError("invalid cluster", field=field, given=given, expected=expected)
