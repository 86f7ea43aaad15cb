# SPDX-License-Identifier: Apache-2.0
"""Whether a plan fits the cluster, by Xenna's own rules, and what to do if not. Pure: nothing here touches Ray.

Xenna's streaming mode runs all stages at once and refuses to start if one worker of each does not fit. To prevent that,
first more stages share a worker; then an embedded Ray declares more CPUs than the machine has, so that its stages share
the cores; as a last resort, the stages run one after the other.
"""

from __future__ import annotations

import logging
import math
from bisect import bisect_left
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING

from curator_core import ResourcesError
from curator_core.backends import FusionLevel, group_stages
from curator_xenna._convert.resources import Share, share_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from curator_core.backends import CompiledStage, StageGroup
    from curator_xenna._cluster.nodes import Node
    from curator_xenna.config import XennaConfig

__all__ = ["Fit", "Placement", "check_fit", "fit"]

logger = logging.getLogger(__name__)

_ROUNDING = 1e-6  # tolerance for sums of fractions such as thirds and sevenths
_PLENTY = 1_000_000  # CPUs
_STEPS = {
    FusionLevel.UNEQUAL_CPUS: "stages that request different numbers of CPUs share workers",
    FusionLevel.FAN_OUTS: "stages share workers even across stages that fan out",
}


@dataclass(frozen=True, slots=True)
class Placement:
    """The resources of the cluster that a group of stages uses.

    Attributes:
        group: The stages.
        share: The resources of one worker.
        workers: The number of workers; None leaves it to Xenna's autoscaler.
    """

    group: StageGroup
    share: Share
    workers: int | None

    @property
    def least_workers(self) -> int:
        """The number of workers that must run at once."""
        return self.workers or self.group.min_workers or 1

    @property
    def least_cpus(self) -> float:
        """The number of CPUs of the workers that must run at once."""
        return self.share.cpus * self.least_workers


@dataclass(frozen=True, slots=True)
class Fit:
    """How to run a plan on a cluster.

    Attributes:
        placements: Its groups of stages and their resources.
        streaming: Whether all groups run at once and not one after the other.
        cpus: The number of CPUs that an embedded Ray must declare if the machine has fewer; otherwise 0.
    """

    placements: tuple[Placement, ...]
    streaming: bool = True
    cpus: int = 0


def fit(
    stages: Sequence[CompiledStage],
    nodes: Sequence[Node],
    config: XennaConfig,
    *,
    has_source: bool,
    may_declare: bool,
    cores: int | None = None,
) -> Fit:
    """Find a way to run stages on a cluster.

    Args:
        stages: The stages that run on Xenna.
        nodes: The nodes of the cluster.
        config: The executor's settings.
        has_source: Whether the first stage is a source, which gets only one task.
        may_declare: Whether Ray can declare more CPUs than exist, because it is embedded in this machine.
        cores: The number of cores of the machine if Ray is embedded. A group that requests less than one core for each
            worker, and no number of workers, gets at most this many workers: starting a process takes a core one to
            two seconds.

    Raises:
        ResourcesError: The stages do not fit. The error has a table of what each stage requests and what the cluster
            has.
    """
    chosen = _choose(stages, nodes, config, has_source, may_declare, cores)
    for placement in chosen.placements:
        asked = asked_workers(placement.group, len(nodes)) or placement.group.min_workers
        if asked is not None and placement.workers is not None and placement.workers < asked:
            logger.info(
                "stage '%s' gets %s workers, not the %d that it requests: limited by max_workers_per_stage",
                placement.group.name,
                placement.workers,
                asked,
            )
    return chosen


def _choose(
    stages: Sequence[CompiledStage],
    nodes: Sequence[Node],
    config: XennaConfig,
    has_source: bool,
    may_declare: bool,
    cores: int | None,
) -> Fit:
    levels = _levels(config)

    def place(level: FusionLevel, *, streaming: bool = True) -> tuple[Placement, ...]:
        return _place(stages, nodes, config, level, has_source=has_source, cores=cores, streaming=streaming)

    one_by_one = place(levels[0], streaming=False)
    _check_each(one_by_one, nodes)  # a group that does not fit alone does not fit at all
    if config.execution_mode == "batch":
        return Fit(one_by_one, streaming=False)
    tried = []
    for level in levels:
        placements = place(level)
        tried.append(placements)
        if _fits_together(placements, nodes):
            _tell_fusion(levels, tried)
            return Fit(placements)
    if may_declare and _fits_together(placements, [replace(node, cpus=_PLENTY) for node in nodes]):
        _tell_fusion(levels, tried)
        cpus = math.ceil(sum(placement.least_cpus for placement in placements) - _ROUNDING)
        logger.info("streaming does not fit: Ray declares %d CPUs for stages that share %d", cpus, nodes[0].cpus)
        return Fit(placements, cpus=cpus)
    logger.warning("streaming does not fit: the stages run one after the other, with all tasks in memory in between")
    return Fit(one_by_one, streaming=False)


def _tell_fusion(levels: Sequence[FusionLevel], tried: Sequence[Sequence[Placement]]) -> None:
    """Log which fusion levels, up to the last one tried, reduced the number of groups."""
    for level, before, after in zip(levels[1:], tried, tried[1:], strict=False):
        if len(after) < len(before):
            logger.info("streaming does not fit: %s", _STEPS[level])


def check_fit(stages: Sequence[CompiledStage], nodes: Sequence[Node], config: XennaConfig, *, has_source: bool) -> None:
    """Raise the error that `fit` would raise, without deciding anything: a check before slow work, such as a source.

    Raises:
        ResourcesError: A stage does not fit even if it has the cluster to itself.
    """
    level = _levels(config)[0]
    placements = _place(stages, nodes, config, level, has_source=has_source, cores=None, streaming=False)
    _check_each(placements, nodes)


def _levels(config: XennaConfig) -> list[FusionLevel]:
    """Return the permitted fusion levels, the normal one first."""
    return [FusionLevel.EQUAL, FusionLevel.UNEQUAL_CPUS, FusionLevel.FAN_OUTS] if config.fuse else [FusionLevel.OFF]


def _place(
    stages: Sequence[CompiledStage],
    nodes: Sequence[Node],
    config: XennaConfig,
    level: FusionLevel,
    *,
    has_source: bool,
    cores: int | None,
    streaming: bool,
) -> tuple[Placement, ...]:
    """Place the groups at a fusion level, with numbers of workers within their limits."""
    placements = _placements(group_stages(stages, level, has_source=has_source), nodes, config, has_source)
    limits = [_limit(placement, config) or (cores if _is_small(placement) else None) for placement in placements]
    return _limited(placements, nodes, limits, streaming)


def _limit(placement: Placement, config: XennaConfig) -> int | None:
    """Return the maximum number of workers that the group or the executor sets: the smaller one."""
    return min(filter(None, (placement.group.max_workers, config.max_workers_per_stage)), default=None)


def _placements(
    groups: Sequence[StageGroup], nodes: Sequence[Node], config: XennaConfig, has_source: bool
) -> tuple[Placement, ...]:
    gpus = [gpu for node in nodes for gpu in node.gpus]
    placements = []
    for group in groups:
        share = share_of(group.resources, gpus, group.name, config.codec_engines)
        workers = asked_workers(group, len(nodes))
        if workers is None and has_source and group.index == 0:
            workers = group.min_workers or 1  # the autoscaler would start several for its single task
        placements.append(Placement(group, share, workers))
    return tuple(placements)


def asked_workers(group: StageGroup, num_nodes: int) -> int | None:
    """Return the number of workers that a group requests; None if it leaves that to the autoscaler."""
    per_node = group.engine_options.get("num_workers_per_node")
    return group.num_workers if per_node is None else math.ceil(per_node * num_nodes)


def _is_small(placement: Placement) -> bool:
    return placement.workers is None and placement.share.cpus < 1 and not placement.share.gpus


def _limited(
    placements: tuple[Placement, ...], nodes: Sequence[Node], limits: Sequence[int | None], streaming: bool
) -> tuple[Placement, ...]:
    """Distribute workers evenly, up to the limit of each group: Xenna's autoscaler has no upper bound.

    Groups without a limit take part, so that the groups with one leave room for what the autoscaler gives to them.
    """
    counts = [min(p.least_workers, limit or p.least_workers) for p, limit in zip(placements, limits, strict=True)]
    growing = [number for number, placement in enumerate(placements) if placement.workers is None]

    def is_possible(added: int, numbers: Sequence[int]) -> bool:
        tried = [replace(p, workers=count) for p, count in zip(placements, counts, strict=True)]
        for number in numbers:
            tried[number] = replace(tried[number], workers=counts[number] + added)
        return _fits_together(tried, nodes) if streaming else all(_fits_together([tried[n]], nodes) for n in numbers)

    while room := [limit - counts[number] for number in growing if (limit := limits[number])]:
        # One more for each, as often as that is possible, and then one by one: at least one group has reached its end.
        rounds = bisect_left(range(1, min(room) + 1), True, key=lambda added: not is_possible(added, growing))
        for number in growing:
            counts[number] += rounds
        for number in tuple(growing):
            if counts[number] < (limits[number] or math.inf) and is_possible(1, [number]):
                counts[number] += 1
            else:
                growing.remove(number)
    return tuple(
        placement if limit is None else replace(placement, workers=count)
        for placement, limit, count in zip(placements, limits, counts, strict=True)
    )


def _check_each(placements: Sequence[Placement], nodes: Sequence[Node]) -> None:
    """Raise a `ResourcesError` if the workers of a group do not fit even if they have the cluster to themselves."""
    for placement in placements:
        if not _fits_together([replace(placement, workers=1)], nodes):
            hint = f"lower the resources of '{placement.group.name}' to fit {_largest(nodes, placement)}"
            raise _does_not_fit(placement, placements, nodes, "one worker is larger than any node", hint)
        if not _fits_together([placement], nodes):
            most = _most_workers(placement, nodes)
            hint = f"lower the number of workers of '{placement.group.name}' to {most} or fewer"
            raise _does_not_fit(placement, placements, nodes, "its workers do not fit together", hint)


def _most_workers(placement: Placement, nodes: Sequence[Node]) -> int:
    """Return how many of the group's workers can be placed."""
    free = _free(nodes)
    fits = (all(_take(piece, free) for piece in _pieces(placement)) for _ in range(placement.least_workers))
    return sum(takewhile(bool, fits))


def _largest(nodes: Sequence[Node], placement: Placement) -> str:
    """Describe the largest node: by GPUs if the group needs any, then by CPUs."""
    node = max(nodes, key=lambda node: (len(node.gpus) if placement.share.gpus else 0, node.cpus))
    return f"a node with {node.cpus} CPUs and {len(node.gpus)} GPUs"


def _fits_together(placements: Sequence[Placement], nodes: Sequence[Node]) -> bool:
    """Whether all workers can be placed, the largest first, each on the fullest node that has room."""
    free = _free(nodes)
    for placement in sorted(placements, key=lambda p: (p.share.gpus, p.share.cpus), reverse=True):
        pieces = _pieces(placement)
        for _ in range(placement.least_workers):
            for piece in pieces:
                if not _take(piece, free):
                    return False
    return True


def _free(nodes: Sequence[Node]) -> list[tuple[float, list[float]]]:
    """Return the CPUs and GPU shares of each node before anything is placed."""
    return [(float(node.cpus), [1.0] * len(node.gpus)) for node in nodes]


def _pieces(placement: Placement) -> list[Share]:
    """Return shares that must each fit on one node: a worker, or each rank of an SPMD group, which can span nodes."""
    share = placement.share
    if not placement.group.engine_options.get("is_spmd"):
        return [share]
    ranks = max(1, round(share.gpus))
    return [Share(share.cpus / ranks, share.gpus / ranks)] * ranks


def _take(share: Share, free: list[tuple[float, list[float]]]) -> bool:
    """Take a share from the node with the fewest free CPUs that has room; return False if no node has."""
    for number in sorted(range(len(free)), key=lambda index: free[index][0]):
        cpus, gpus = free[number]
        if share.cpus > cpus + _ROUNDING:
            continue
        if share.gpus <= 1:
            fits = [index for index, left in enumerate(gpus) if share.gpus <= left + _ROUNDING]
            chosen = fits[:1] if share.gpus else []
            enough = bool(chosen) or not share.gpus
        else:
            chosen = [index for index, left in enumerate(gpus) if left > 1 - _ROUNDING][: round(share.gpus)]
            enough = len(chosen) == round(share.gpus)
        if enough:
            for index in chosen:
                gpus[index] -= min(share.gpus, 1.0)
            free[number] = (cpus - share.cpus, gpus)
            return True
    return False


def _does_not_fit(
    placement: Placement, placements: Sequence[Placement], nodes: Sequence[Node], why: str, hint: str
) -> ResourcesError:
    rows = [f"{'stage':<24} {'workers':>7} {'cpus each':>10} {'gpus each':>10}"]
    rows += [f"{p.group.name:<24} {p.least_workers:>7} {p.share.cpus:>10g} {p.share.gpus:>10.3g}" for p in placements]
    has = ", ".join(f"{node.cpus} CPUs and {len(node.gpus)} GPUs" for node in nodes)
    table = "\n    ".join([*rows, f"available on each node: {has}"])
    return ResourcesError(
        f"does not fit the cluster: {why}",
        stage=placement.group.name,
        field="resources",
        given=placement.group.resources,
        expected=f"at most what is available:\n    {table}",
        hint=f"{hint}, or run on a larger cluster",
    )
