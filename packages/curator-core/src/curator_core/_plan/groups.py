# SPDX-License-Identifier: Apache-2.0
"""Groups of stages that share a worker: neighbors with the same needs, up to a stage whose outputs must spread out."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from curator_core._plan.compiled import StageView
    from curator_core.resources import Resources

__all__ = ["Fusion", "Group", "group_stages"]


class Fusion(enum.IntEnum):
    """How far stages are fused. Each level includes the ones before it."""

    OFF = 0
    """Each stage runs separately."""
    EQUAL = 1
    """Neighbors with equal needs share a worker. The default."""
    UNEQUAL_CPUS = 2
    """Neighbors may also ask for different numbers of CPUs; the group asks for the largest."""
    FAN_OUTS = 3
    """A group may also continue after a stage that makes many tasks from one."""


@dataclass(frozen=True, slots=True)
class Group:
    """Stages that run in the same worker, one after the other.

    Attributes:
        index: Position among the groups of a run, from 0.
        stages: Its stages, in order.
        boundary: Why it is separate from the group before it; empty for the first.
    """

    index: int
    stages: tuple[StageView, ...]
    boundary: str = ""

    @property
    def name(self) -> str:
        """The names of its stages, joined by ``+``."""
        return "+".join(view.name for view in self.stages)

    @property
    def resources(self) -> Resources:
        """The resources that one worker needs: those of each stage, with the largest number of CPUs."""
        return replace(self.stages[0].resources, cpus=max(view.resources.cpus for view in self.stages))

    @property
    def num_workers(self) -> int | None:
        """Number of workers that its stages ask for."""
        return self.stages[0].num_workers

    @property
    def runtime_env(self) -> Mapping[str, Any] | None:
        """The runtime environment of its workers."""
        return self.stages[0].runtime_env

    @property
    def engine_options(self) -> Mapping[str, Any]:
        """The options that its stages return from ``xenna_stage_spec()``."""
        return self.stages[0].engine_options

    @property
    def batch_size(self) -> int:
        """Its largest batch size: the number of tasks passed to a worker at once should be a multiple of it."""
        return max(view.batch_size for view in self.stages)

    @property
    def full_batches(self) -> bool:
        """Whether its batches must be full, filled with tasks from any worker."""
        return self.stages[0].full_batches


def group_stages(
    views: Sequence[StageView], fusion: Fusion = Fusion.EQUAL, *, has_source: bool = False
) -> tuple[Group, ...]:
    """Group neighbors as far as they may share a worker.

    Args:
        views: The stages.
        fusion: How far stages are fused.
        has_source: Whether the first stage is a source, which forms its own group because it has only one task.
    """
    groups: list[Group] = []
    for number, view in enumerate(views):
        if not groups:
            groups.append(Group(0, (view,)))
            continue
        before = groups[-1]
        reason = f"'{before.name}' is a source" if has_source and number == 1 else _apart(before.stages, view, fusion)
        if reason:
            groups.append(Group(len(groups), (view,), reason))
        else:
            groups[-1] = replace(before, stages=(*before.stages, view))
    return tuple(groups)


def _apart(group: Sequence[StageView], view: StageView, fusion: Fusion) -> str:
    """Return why a stage cannot join the group before it; empty if it can."""
    last = group[-1]
    if fusion is Fusion.OFF:
        return "fusion is off"
    for stage in (last, view):
        if stage.fusible is False:
            return f"'{stage.name}' sets fusible=False"
    return _different_needs(last, view, fusion) or _spreads(last, view, fusion)


def _different_needs(last: StageView, view: StageView, fusion: Fusion) -> str:
    for field in ("gpus", "gpu_memory_gb", "nvdecs", "nvencs", "entire_gpu", "cpus"):
        asks, asked = getattr(view.resources, field), getattr(last.resources, field)
        if asks != asked and not (field == "cpus" and fusion >= Fusion.UNEQUAL_CPUS):
            return f"'{view.name}' asks for {field}={asks:g}, '{last.name}' for {asked:g}"
    for stage in (last, view):
        if stage.resources.requires_gpu and not stage.fusible:
            return f"'{stage.name}' asks for a GPU and does not set fusible=True"
    for field in ("num_workers", "runtime_env", "engine_options"):
        if getattr(view, field) != getattr(last, field):
            return f"'{view.name}' and '{last.name}' differ in {field}"  # no values: they may be secrets
    return ""


def _spreads(last: StageView, view: StageView, fusion: Fusion) -> str:
    if last.fans_out and fusion < Fusion.FAN_OUTS:
        return f"'{last.name}' fans out, so its outputs are redistributed"
    if view.full_batches:
        return f"'{view.name}' needs full batches, filled with tasks from any worker"
    return ""
