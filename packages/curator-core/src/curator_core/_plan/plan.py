# SPDX-License-Identifier: Apache-2.0
"""A compiled pipeline: its stages are expanded, checked, and read once. Executors see plans, never pipelines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from curator_core._plan.compiled import Fields, StageView, read_stage
from curator_core._plan.groups import Fusion, Group, group_stages
from curator_core._plan.sendable import check_copied
from curator_core._transport.pickling import dumps
from curator_core.errors import PipelineError
from curator_core.stages import decompose
from curator_core.tasks import Task

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Fields", "Fusion", "Group", "Plan", "StageView", "dumps", "read_stage"]


@dataclass(frozen=True, slots=True)
class Plan:
    """A compiled pipeline, as an executor runs it.

    Attributes:
        name: Name of the pipeline.
        stages: Its stages, in order, with composites expanded.
        has_source: Whether the first stage is a source.
    """

    name: str
    stages: tuple[StageView, ...]
    has_source: bool = False

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
        leaves = [leaf for stage in stages for leaf in decompose(stage)]
        if not leaves:
            raise PipelineError(
                f"pipeline '{name}' has no stages",
                field="stages",
                given=leaves,
                expected="at least one stage",
                hint="call add_stage(…) before run()",
            )
        views = tuple(read_stage(index, stage) for index, stage in enumerate(leaves))
        _check_names(views)
        _check_committed(views)
        has_source = fed is False or (fed is None and views[0].may_be_source)
        if has_source:
            _check_provided(views)
        check_copied(views)
        return cls(name=name, stages=views, has_source=has_source)

    @property
    def groups(self) -> tuple[Group, ...]:
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
            lines.append(f"  {group.index:02d} {' + '.join(view.name for view in group.stages)}{source}")
        return "\n".join(lines)

    def describe(self) -> str:
        """Describe each stage on one line: its class, resources, and settings."""
        lines = [f"{self.name}: {_count(len(self.stages), 'stage')}"]
        width = max(len(view.name) for view in self.stages)
        lines += [f"  {view.index:02d} {view.name:<{width}}  {_describe_view(view)}" for view in self.stages]
        return "\n".join(lines)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _check_names(views: Sequence[StageView]) -> None:
    by_name: dict[str, StageView] = {}
    for view in views:
        other = by_name.setdefault(view.name, view)
        if other is not view:
            raise PipelineError(
                f"stages {other.index} and {view.index} have the same name",
                stage=view.name,
                field="name",
                given=view.name,
                expected="a unique name for each stage",
                hint=f'use with_(name="{view.name}_2") on one of them',
            )


def _check_committed(views: Sequence[StageView]) -> None:
    for view in views[:-1]:
        if view.is_committed:
            raise PipelineError(
                "target_size publishes files only after the run has counted their tasks: no later stage can read them",
                stage=view.name,
                field="target_size",
                given=f"a stage after it: '{views[view.index + 1].name}'",
                expected="a writer with target_size as the last stage of the pipeline",
                hint="read the files in a second run, with the outputs of this run as its initial tasks; or omit "
                "target_size",
            )


def _check_provided(views: Sequence[StageView]) -> None:
    """Check that each stage gets the fields that it needs from the stages above it, if those declare what they add."""
    everyone = {name for name in dir(Task) if not name.startswith("_")} | {"data", "dataset_name"}
    attributes, columns = set(everyone), set[str]()
    for view in views:
        missing = _missing(view, attributes, columns)
        if missing:
            added = ", ".join(sorted((attributes - everyone) | columns)) or "none"
            raise PipelineError(
                f"needs {' and '.join(map(repr, missing))}, which no earlier stage provides",
                stage=view.name,
                field="inputs()",
                given=list(missing),
                expected=f"a field that earlier stages declare in outputs(): {added}",
                hint="add a stage that provides it before this one, or declare it in the outputs() of an earlier stage",
            )
        if view.adds is None:
            return  # this stage may add anything
        attributes |= set(view.adds.attributes)
        columns |= set(view.adds.columns)


def _missing(view: StageView, attributes: set[str], columns: set[str]) -> list[str]:
    if view.needs is None:
        return []
    absent = [name for name in view.needs.attributes if name not in attributes]
    return absent + [name for name in view.needs.columns if name not in columns]


def _describe_view(view: StageView) -> str:
    wants = [f"cpus={view.resources.cpus:g}"]
    for name in ("gpus", "gpu_memory_gb", "nvdecs", "nvencs", "entire_gpu"):
        amount = getattr(view.resources, name)
        if amount:
            wants.append(f"{name}={amount:g}" if amount is not True else name)
    wants.append(f"batch_size={view.batch_size}")
    if view.num_workers is not None:
        wants.append(f"num_workers={view.num_workers}")
    if view.runtime_env is not None:
        wants.append(f"runtime_env={sorted(view.runtime_env)}")  # names only: values may be secrets
    return f"{view.class_name}({', '.join(wants)})"
