# SPDX-License-Identifier: Apache-2.0
"""What a pipeline would do on a cluster that does not exist yet: workers, throughput, the limit, and hours.

The plan is made to fit the cluster as in a run, and Xenna's own autoscaler decides how many workers each group of
stages gets. The speeds of the stages come from a run on any machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from curator_core import ExecutorError, Plan, ResourcesError, StageSpeed
from curator_core.backends import is_amount, is_whole, unknown_name
from curator_xenna.config import XennaConfig
from curator_xenna.executor import XennaExecutor, preserved_environment

if TYPE_CHECKING:
    from curator_core.backends import CompiledStage
    from curator_xenna._placement.placement import Fit, Placement

__all__ = ["CapacityPlan", "ClusterSpec", "GroupCapacity", "LimitKind", "plan_capacity"]

LimitKind: TypeAlias = Literal["group", "turns", "source", "cores", "driver"]
"""What limits the throughput: the workers of one group; that the groups run one after the other; the source, which runs
before them; the cores of the cluster; or the driver."""

# Half of what was measured: 13 us of CPU time per batch, for 100,000 tasks in batches of one through three light stages
# on Xenna, with the outputs collected.
_DRIVER_BATCHES_PER_S = 40_000
_INSTANT = 1e9  # batches per second of a stage that takes no time
_HOUR_S = 3600
_DIGITS = 6  # of CPUs and GPUs; sums of fractions have rounding errors


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """Equal nodes of a cluster.

    Attributes:
        cpus: CPUs of each node. Xenna plans with 95% of them, rounded down: see ``cpu_allocation_percentage``.
        nodes: How many nodes.
        gpus: GPUs of each node.
        gpu: The model, such as ``"NVIDIA H100 80GB HBM3"``: needed if stages request codec engines.
        gpu_memory_gb: Memory of each GPU in GB (10**9 bytes): needed if stages request GPU memory.
        is_embedded: Whether this is the Ray that `XennaExecutor` starts on one machine: Xenna then plans with all of
            its CPUs, and it declares more of them if the stages do not fit.

    Raises:
        ExecutorError: A value is invalid.
    """

    cpus: int
    nodes: int = 1
    gpus: int = 0
    gpu: str = ""
    gpu_memory_gb: float = 0.0
    is_embedded: bool = False

    def __post_init__(self) -> None:
        for field, least in (("cpus", 1), ("nodes", 1), ("gpus", 0)):
            if not is_whole(getattr(self, field), least):
                raise _invalid(field, getattr(self, field), f"a whole number, {least} or more")
        if not isinstance(self.gpu, str):
            raise _invalid("gpu", self.gpu, "the name of a model")
        if not is_amount(self.gpu_memory_gb):
            raise _invalid("gpu_memory_gb", self.gpu_memory_gb, "a number of GB, 0 or more")
        if not isinstance(self.is_embedded, bool):
            raise _invalid("is_embedded", self.is_embedded, "True or False")
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
    """What a pipeline would do on a cluster, without the time to start. A source task is one that the source gives.

    Attributes:
        groups: The groups of stages, in order.
        tasks_per_s: Source tasks per second.
        limit_kind: What limits the throughput.
        limit: The name of the group or of the source that limits it; empty for other kinds of limits.
        idle_cpus: CPUs, of those that Xenna plans with, that no worker requests.
        idle_gpus: GPUs that no worker uses.
        driver_ratio: Load on the driver, as a share of the reports that it can take in: 1 if it is the limit.
        is_streaming: Whether all groups run at once. Otherwise they run one after the other.
    """

    groups: tuple[GroupCapacity, ...]
    tasks_per_s: float
    limit_kind: LimitKind
    limit: str
    idle_cpus: float
    idle_gpus: float
    driver_ratio: float
    is_streaming: bool = True

    def hours(self, tasks: int) -> float:
        """Return how many hours a number of source tasks takes.

        Raises:
            ExecutorError: The number is invalid.
        """
        if not is_amount(tasks):
            raise ExecutorError("invalid number of tasks", field="tasks", given=tasks, expected="0 or more")
        return _ratio(tasks, self.tasks_per_s) / _HOUR_S

    def __str__(self) -> str:
        width = max(len("group"), *(len(group.name) for group in self.groups))
        lines = [f"{'group':<{width}} {'workers':>8} {'cpus each':>10} {'gpus each':>10} {'tasks/s':>12} {'busy':>6}"]
        lines += [
            f"{group.name:<{width}} {group.workers:>8,} {group.cpus:>10g} {group.gpus:>10.3g} "
            f"{group.tasks_per_s:>12,.4g} {group.busy_ratio:>6.0%}"
            for group in self.groups
        ]
        limit = _LIMITS[self.limit_kind].format(self.limit)
        lines.append(f"{self.tasks_per_s:,.4g} source tasks per second, limited by {limit}")
        lines.append(f"idle: {self.idle_cpus:g} CPUs, {self.idle_gpus:g} GPUs; driver: {self.driver_ratio:.1%}")
        return "\n".join(lines)


_LIMITS: Mapping[LimitKind, str] = {
    "group": "'{}'",
    "turns": "the groups, which run one after the other",
    "source": "the source '{}', which runs before the other stages",
    "cores": "the cores of the cluster",
    "driver": "the driver",
}


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
    workers, all stages together are not faster than the cores, and the driver takes in 40,000 batches per second. A
    source runs to its end before the other stages begin, as `XennaExecutor` runs it. The model does not include
    transport, the time to start, or a scheduler of Xenna other than its default.

    Args:
        plan: The compiled pipeline.
        cluster: The nodes, or several kinds of nodes.
        speeds: The speed of each stage by name, such as `RunResult.speeds`. Those of stages on GPUs must be from the
            same model of GPU.
        config: The settings of the executor.

    Raises:
        ExecutorError: An argument is invalid; a speed is missing, invalid, or of an unknown stage; or this version of
            Xenna is not supported.
        StageDefinitionError: `XennaExecutor` would refuse a setting of a stage.
        ResourcesError: The stages do not fit the cluster. The error says what to change.
    """
    specs = _specs(cluster)
    _check_plan(plan)
    _check_speeds(plan, speeds)
    settings = XennaConfig.of(config)
    runs_source = plan.has_source and XennaExecutor(settings).runs_source(plan)
    stages = plan.stages[runs_source:]
    if not stages:
        raise ExecutorError("the pipeline has no stage after its source", field="plan", expected="at least one stage")
    with preserved_environment():
        return _planned(plan, stages, specs, speeds, settings)


def _planned(
    plan: Plan,
    stages: Sequence[CompiledStage],
    specs: Sequence[ClusterSpec],
    speeds: Mapping[str, StageSpeed],
    config: XennaConfig,
) -> CapacityPlan:
    from curator_xenna._session.specification import check_limits, check_options  # noqa: PLC0415 - loads Xenna

    check_options(stages)
    check_limits(stages, config)
    runs_source = len(stages) < len(plan.stages)
    has_source = plan.has_source and not runs_source
    demand = _Demand(stages, speeds, has_source=has_source)
    fitted = _fit(stages, specs, config, has_source=has_source)
    nodes = _nodes(specs, fitted, config)
    workers = _workers(fitted, nodes, demand)
    rates = [_ratio(count, demand.seconds(each)) for each, count in zip(fitted.placements, workers, strict=True)]
    names = [placement.group.name for placement in fitted.placements]
    limits: dict[tuple[LimitKind, str], float] = {}
    # A worker, too, returns the tasks of a source only when the source has ended.
    ends_first = has_source and len(names) > 1
    if fitted.streaming:
        limits = {("group", name): rate for name, rate in list(zip(names, rates, strict=True))[ends_first:]}
    else:
        limits["turns", ""] = _ratio(1, sum(1 / rate for rate in rates[ends_first:]))
    driver = _ratio(_DRIVER_BATCHES_PER_S, demand.batches)
    limits["cores", ""] = _ratio(sum(spec.nodes * spec.cpus for spec in specs), demand.cpu_seconds)
    limits["driver", ""] = driver
    kind, limit = min(limits, key=lambda each: limits[each])
    rate = limits[kind, limit]
    if runs_source or ends_first:
        source = plan.stages[0].name
        alone = _ratio(speeds[source].outputs, speeds[source].seconds) if runs_source else rates[0]
        if alone < rate:
            kind, limit = "source", source
        rate = _ratio(1, 1 / alone + 1 / rate)
    groups = tuple(
        GroupCapacity(name, count, each.share.cpus, each.share.gpus, own, rate / own)
        for name, count, each, own in zip(names, workers, fitted.placements, rates, strict=True)
    )
    return CapacityPlan(
        groups=groups,
        tasks_per_s=rate,
        limit_kind=kind,
        limit=limit,
        idle_cpus=_idle([cpus for cpus, _ in nodes], [group.workers * group.cpus for group in groups], fitted),
        idle_gpus=_idle([gpus for _, gpus in nodes], [group.workers * group.gpus for group in groups], fitted),
        driver_ratio=rate / driver,
        is_streaming=fitted.streaming,
    )


class _Demand:
    """The work that one source task makes.

    Args:
        stages: The stages that run on Xenna.
        speeds: Their speeds.
        has_source: Whether the first of them is a source: its one input makes all source tasks.

    Attributes:
        cpu_seconds: CPU time in all stages.
        batches: Batches in all stages.
    """

    def __init__(self, stages: Sequence[CompiledStage], speeds: Mapping[str, StageSpeed], *, has_source: bool) -> None:
        self._speeds = speeds
        self._inputs: dict[int, float] = {}
        reaching = _ratio(1, speeds[stages[0].name].outputs) if has_source else 1.0
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
        Node(f"{kind}-{number}", _planned_cpus(spec, config), (Gpu(spec.gpu, spec.gpu_memory_gb),) * spec.gpus)
        for kind, spec in enumerate(specs)
        for number in range(spec.nodes)
    ]
    is_embedded = specs[0].is_embedded
    return fit(
        stages,
        nodes,
        config,
        has_source=has_source,
        may_declare=is_embedded and config.num_cpus is None,
        cores=_declared_cpus(specs[0], config) if is_embedded else None,
    )


def _declared_cpus(spec: ClusterSpec, config: XennaConfig) -> int:
    return (config.num_cpus if spec.is_embedded else None) or spec.cpus


def _planned_cpus(spec: ClusterSpec, config: XennaConfig) -> int:
    return math.floor(_declared_cpus(spec, config) * config.cpu_share(is_embedded=spec.is_embedded))


def _nodes(specs: Sequence[ClusterSpec], fitted: Fit, config: XennaConfig) -> list[tuple[int, int]]:
    """Return the CPUs that Xenna plans with, and the GPUs, of each node."""
    return [(max(_planned_cpus(spec, config), fitted.cpus), spec.gpus) for spec in specs for _ in range(spec.nodes)]


def _workers(fitted: Fit, nodes: Sequence[tuple[int, int]], demand: _Demand) -> list[int]:
    """Return how many workers each group gets."""
    from curator_xenna.adapter import resources_of  # noqa: PLC0415 - loads Xenna
    from curator_xenna.compat import ToAllocate, allocated_workers  # noqa: PLC0415 - loads Xenna

    stages = [
        ToAllocate(resources_of(each.group.stages[0], each.share), each.workers, *demand.of_group(each))
        for each in fitted.placements
    ]
    at_once = [stages] if fitted.streaming else [[stage] for stage in stages]
    try:
        return [count for each in at_once for count in allocated_workers(each, nodes)]
    except (ImportError, AttributeError, TypeError) as exc:
        raise ExecutorError(
            "this version of cosmos-xenna is not supported: it cannot show how it allocates workers",
            expected="cosmos-xenna 0.2.0 to 0.5.12",
            hint="install one of these versions to plan",
        ) from exc
    except RuntimeError as exc:
        raise ResourcesError(
            f"Xenna cannot place one worker of each group: {exc}",
            field="resources",
            given={each.group.name: each.group.resources for each in fitted.placements},
            expected=f"nodes with room for all of them; given (CPUs, GPUs): {nodes}",
            hint="use larger nodes, or lower what the stages request",
        ) from exc


def _idle(has: Sequence[float], used: Sequence[float], fitted: Fit) -> float:
    return max(0.0, round(sum(has) - (sum(used) if fitted.streaming else max(used)), _DIGITS))


def _ratio(amount: float, per: float) -> float:
    return amount / per if per else math.inf


# --- checks ---------------------------------------------------------------------------------------------


def _specs(cluster: Any) -> tuple[ClusterSpec, ...]:
    specs = (cluster,) if isinstance(cluster, ClusterSpec) else tuple(cluster) if isinstance(cluster, Sequence) else ()
    if not specs or not all(isinstance(spec, ClusterSpec) for spec in specs):
        raise _invalid("cluster", cluster, "a ClusterSpec, or a list of them")
    if len(specs) > 1 and any(spec.is_embedded for spec in specs):
        raise _invalid("is_embedded", cluster, "one ClusterSpec, because an embedded Ray has one node")
    return specs


def _check_plan(plan: Any) -> None:
    if not isinstance(plan, Plan):
        raise ExecutorError(
            "the pipeline is not compiled",
            field="plan",
            given=plan,
            expected="a Plan",
            hint="pass pipeline.compile(fed=True), or fed=False if its first stage is a source",
        )


def _check_speeds(plan: Plan, speeds: Any) -> None:
    names = [compiled.name for compiled in plan.stages]
    if not isinstance(speeds, Mapping):
        raise ExecutorError("invalid speeds", field="speeds", given=speeds, expected="a dict of stage name: StageSpeed")
    for name in speeds:
        if name not in names:
            details = unknown_name("stage", str(name), names, "speeds")
            raise ExecutorError("speed of an unknown stage", given=name, **details)
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
        if not (isinstance(speeds[name], StageSpeed) and all(map(is_amount, speeds[name]))):
            raise ExecutorError(
                "the speed of a stage is invalid",
                stage=name,
                field="speeds",
                given=speeds[name],
                expected="StageSpeed(seconds, cpu_seconds, outputs), all of them 0 or more",
            )

    if plan.has_source and not speeds[names[0]].outputs:
        raise ExecutorError(
            "the source gave no tasks",
            stage=names[0],
            field="speeds",
            given=speeds[names[0]],
            expected="outputs above 0",
            hint="measure a run that has source tasks",
        )


def _invalid(field: str, given: Any, expected: str) -> ExecutorError:
    return ExecutorError("invalid cluster", field=field, given=given, expected=expected)
