# SPDX-License-Identifier: Apache-2.0
"""A compiled pipeline: its stages are expanded, checked, and read once. Executors see plans, never pipelines."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from curator_core._foreign import find_dialect
from curator_core._plan.compiled import LIMITS_OF_WORKERS, CompiledStage, Fields, compile_stage
from curator_core._plan.groups import FusionLevel, StageGroup, group_stages
from curator_core._plan.sendable import check_copied
from curator_core._transport.pickling import dumps
from curator_core.errors import PipelineError, unknown_name
from curator_core.stages import decompose
from curator_core.tasks import Task

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from curator_core._foreign import Dialect

__all__ = ["CompiledStage", "Fields", "FusionLevel", "Plan", "StageGroup", "compile_stage", "dumps"]


@dataclass(frozen=True, slots=True)
class Plan:
    """A compiled pipeline, as an executor runs it.

    Attributes:
        name: Name of the pipeline.
        stages: Its stages, in order, with composites expanded.
        has_source: Whether the first stage is a source.
        dialect: Translates the tasks of the run, if the stages are of another framework.
        left_out: Names of the stages before the first one, if the plan begins at a later stage of the pipeline.
    """

    name: str
    stages: tuple[CompiledStage, ...]
    has_source: bool = False
    dialect: Dialect | None = None
    left_out: tuple[str, ...] = ()

    @classmethod
    def from_stages(cls, stages: Iterable[Any], name: str = "pipeline", *, fed: bool | None = None) -> Plan:
        """Compile stages: expand composites, read each stage once, and check everything that can be checked.

        Args:
            stages: The stages.
            name: Name of the pipeline.
            fed: Whether the first stage receives initial tasks, whose columns are unknown here. With None, a first
                stage that may be a source counts as one.

        Raises:
            PipelineError: There are no stages, or two have the same name, or one needs a field that no earlier
                stage provides.
            StageDefinitionError: A stage cannot run as it is written.
        """
        stages = [*stages]
        dialect = find_dialect(stages)
        if dialect is not None:
            stages = dialect.wrap(stages, fed=bool(fed))
        leaves = [leaf for stage in stages for leaf in decompose(stage)]
        if not leaves:
            raise PipelineError(
                f"pipeline '{name}' has no stages",
                field="stages",
                given=leaves,
                expected="at least one stage",
                hint="call add_stage(…) before run()",
            )
        compiled = tuple(compile_stage(index, stage) for index, stage in enumerate(leaves))
        _check_names(compiled)
        _check_committed(compiled)
        has_source = fed is False or (fed is None and compiled[0].may_be_source)
        if has_source:
            _check_provided(compiled)
        check_copied(compiled)
        return cls(name=name, stages=compiled, has_source=has_source, dialect=dialect)

    def with_settings(self, settings: Mapping[str, Mapping[str, Any]]) -> Plan:
        """Return the plan with other settings of some of its stages.

        Args:
            settings: The settings by the names of stages, as for `ProcessingStage.with_`. Those of stages that the plan
                leaves out have no effect.

        Raises:
            PipelineError: The pipeline has no stage of a name, or two stages get the same name.
            StageDefinitionError: A setting is unknown or invalid, or must be set on the stage of another framework.
        """
        changed = {
            compiled.name: compile_stage(compiled.index, compiled.stage.with_(**settings[compiled.name]))
            for compiled in self.stages
            if compiled.name in settings
        }
        names = [*self.left_out, *(compiled.name for compiled in self.stages)]
        for name in settings:
            if name not in names:
                details = unknown_name("stage", name, names, "stages")
                raise PipelineError("settings for an unknown stage", given=name, **details)
        check_copied(changed.values())
        stages = tuple(changed.get(compiled.name, compiled) for compiled in self.stages)
        _check_names(stages)
        return replace(self, stages=stages)

    @property
    def groups(self) -> tuple[StageGroup, ...]:
        """The groups of stages that share a worker if everything fits the machine; executors may have to fuse more."""
        return group_stages(self.stages, has_source=self.has_source)

    def explain(self) -> str:
        """Explain which stages share a worker, and why each boundary is there."""
        groups = self.groups
        lines = [f"{self.name}: {_count(len(self.stages), 'stage')} in {_count(len(groups), 'group')}"]
        for group in groups:
            if group.boundary:
                lines.append(f"     | {group.boundary}")
            source = "  (source)" if self.has_source and group.index == 0 else ""
            lines.append(f"  {group.index:02d} {' + '.join(compiled.name for compiled in group.stages)}{source}")
        return "\n".join(lines)

    def describe(self) -> str:
        """Describe each stage on one line: its class, resources, and settings."""
        lines = [f"{self.name}: {_count(len(self.stages), 'stage')}"]
        width = max(len(compiled.name) for compiled in self.stages)
        lines += [f"  {compiled.index:02d} {compiled.name:<{width}}  {_describe(compiled)}" for compiled in self.stages]
        return "\n".join(lines)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _check_names(stages: Sequence[CompiledStage]) -> None:
    by_name: dict[str, CompiledStage] = {}
    for compiled in stages:
        other = by_name.setdefault(compiled.name, compiled)
        if other is not compiled:
            raise PipelineError(
                f"stages {other.index} and {compiled.index} have the same name",
                stage=compiled.name,
                field="name",
                given=compiled.name,
                expected="a unique name for each stage",
                hint=f'use with_(name="{compiled.name}_2") on one of them',
            )


def _check_committed(stages: Sequence[CompiledStage]) -> None:
    for compiled in stages[:-1]:
        if compiled.is_committed:
            raise PipelineError(
                "target_size publishes files only after the run has counted their tasks: no later stage can read them",
                stage=compiled.name,
                field="target_size",
                given=f"a stage after it: '{stages[compiled.index + 1].name}'",
                expected="a writer with target_size as the last stage of the pipeline",
                hint="read the files in a second run, with the outputs of this run as its initial tasks; or omit "
                "target_size",
            )


def _check_provided(stages: Sequence[CompiledStage]) -> None:
    """Check that each stage gets the fields that it needs from the stages above it, if those declare what they add."""
    everyone = {name for name in dir(Task) if not name.startswith("_")} | {"data", "dataset_name"}
    attributes, columns = set(everyone), set[str]()
    for compiled in stages:
        missing = _missing(compiled, attributes, columns)
        if missing:
            added = ", ".join(sorted((attributes - everyone) | columns)) or "none"
            raise PipelineError(
                f"needs {' and '.join(map(repr, missing))}, which no earlier stage provides",
                stage=compiled.name,
                field="inputs()",
                given=list(missing),
                expected=f"a field that earlier stages declare in outputs(): {added}",
                hint="add a stage that provides it before this one, or declare it in the outputs() of an earlier stage",
            )
        if compiled.adds is None:
            return  # this stage may add anything
        attributes |= set(compiled.adds.attributes)
        columns |= set(compiled.adds.columns)


def _missing(compiled: CompiledStage, attributes: set[str], columns: set[str]) -> list[str]:
    if compiled.needs is None:
        return []
    absent = [name for name in compiled.needs.attributes if name not in attributes]
    return absent + [name for name in compiled.needs.columns if name not in columns]


def _describe(compiled: CompiledStage) -> str:
    wants = [f"cpus={compiled.resources.cpus:g}"]
    for name in ("gpus", "gpu_memory_gb", "nvdecs", "nvencs", "entire_gpu"):
        amount = getattr(compiled.resources, name)
        if amount:
            wants.append(f"{name}={amount:g}" if amount is not True else name)
    wants.append(f"batch_size={compiled.batch_size}")
    numbers = {name: getattr(compiled, name) for name in ("num_workers", *LIMITS_OF_WORKERS)}
    wants += [f"{name}={number}" for name, number in numbers.items() if number is not None]
    if compiled.runtime_env is not None:
        wants.append(f"runtime_env={sorted(compiled.runtime_env)}")  # names only: values may be secrets
    return f"{compiled.class_name}({', '.join(wants)})"
