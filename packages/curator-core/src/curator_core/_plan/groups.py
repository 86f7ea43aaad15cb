# SPDX-License-Identifier: Apache-2.0
"""Groups of stages that share a worker: neighbors with the same needs, up to a stage whose outputs must spread out."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from curator_core._settings import SETTINGS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from curator_core._plan.compiled import CompiledStage
    from curator_core.resources import Resources

__all__ = ["FusionLevel", "StageGroup", "group_stages"]

_OF_WORKER = [setting.field for setting in SETTINGS.values() if setting.is_of_worker]


class FusionLevel(enum.IntEnum):
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
class StageGroup:
    """Stages that run in the same worker, one after the other.

    Attributes:
        index: Position among the groups of a run, from 0.
        stages: Its stages, in order.
        boundary: Why it is separate from the group before it; empty for the first.
    """

    index: int
    stages: tuple[CompiledStage, ...]
    boundary: str = ""

    @property
    def name(self) -> str:
        """The names of its stages, joined by ``+``."""
        return "+".join(compiled.name for compiled in self.stages)

    @property
    def resources(self) -> Resources:
        """The resources that one worker needs: those of each stage, with the largest number of CPUs."""
        return replace(self.stages[0].resources, cpus=max(compiled.resources.cpus for compiled in self.stages))

    @property
    def num_workers(self) -> int | None:
        """The fixed number of workers that its stages ask for."""
        return self.stages[0].num_workers

    @property
    def min_workers(self) -> int | None:
        """The minimum number of its workers."""
        return self.stages[0].min_workers

    @property
    def max_workers(self) -> int | None:
        """The maximum number of its workers."""
        return self.stages[0].max_workers

    @property
    def initial_workers(self) -> int | None:
        """The number of workers that it starts with."""
        return self.stages[0].initial_workers

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
        return max(compiled.batch_size for compiled in self.stages)

    @property
    def full_batches(self) -> bool:
        """Whether its batches must be full, filled with tasks from any worker."""
        return self.stages[0].full_batches


def group_stages(
    stages: Sequence[CompiledStage], fusion: FusionLevel = FusionLevel.EQUAL, *, has_source: bool = False
) -> tuple[StageGroup, ...]:
    """Group neighbors as far as they may share a worker.

    Args:
        stages: The stages.
        fusion: How far stages are fused.
        has_source: Whether the first stage is a source, which forms its own group because it has only one task.
    """
    groups: list[StageGroup] = []
    for number, compiled in enumerate(stages):
        if not groups:
            groups.append(StageGroup(0, (compiled,)))
            continue
        before = groups[-1]
        reason = (
            f"'{before.name}' is a source" if has_source and number == 1 else _apart(before.stages, compiled, fusion)
        )
        if reason:
            groups.append(StageGroup(len(groups), (compiled,), reason))
        else:
            groups[-1] = replace(before, stages=(*before.stages, compiled))
    return tuple(groups)


def _apart(group: Sequence[CompiledStage], compiled: CompiledStage, fusion: FusionLevel) -> str:
    """Return why a stage cannot join the group before it; empty if it can."""
    last = group[-1]
    if fusion is FusionLevel.OFF:
        return "fusion is off"
    for stage in (last, compiled):
        if stage.fusible is False:
            return f"'{stage.name}' sets fusible=False"
    return _different_needs(last, compiled, fusion) or _spreads(last, compiled, fusion)


def _different_needs(last: CompiledStage, compiled: CompiledStage, fusion: FusionLevel) -> str:
    for field in ("gpus", "gpu_memory_gb", "nvdecs", "nvencs", "entire_gpu", "cpus"):
        asks, asked = getattr(compiled.resources, field), getattr(last.resources, field)
        if asks != asked and not (field == "cpus" and fusion >= FusionLevel.UNEQUAL_CPUS):
            return f"'{compiled.name}' asks for {field}={asks:g}, '{last.name}' for {asked:g}"
    for stage in (last, compiled):
        if stage.resources.requires_gpu and not stage.fusible:
            return f"'{stage.name}' asks for a GPU and does not set fusible=True"
    for field in _OF_WORKER:
        if getattr(compiled, field) != getattr(last, field):
            return f"'{compiled.name}' and '{last.name}' differ in {field}"  # no values: they may be secrets
    return ""


def _spreads(last: CompiledStage, compiled: CompiledStage, fusion: FusionLevel) -> str:
    if last.fans_out and fusion < FusionLevel.FAN_OUTS:
        return f"'{last.name}' fans out, so its outputs are redistributed"
    if compiled.full_batches:
        return f"'{compiled.name}' needs full batches, filled with tasks from any worker"
    return ""
