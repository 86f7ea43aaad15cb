# SPDX-License-Identifier: Apache-2.0
"""Pipelines of other frameworks: their tasks travel in tasks of ours, and their stages are wrapped in stages of ours.

A `Dialect` does both for one framework. It is found through the entry points ``curator.dialects``, whose names are the
qualified names of the frameworks' base classes of stages. Nothing here imports a framework.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from curator_core.errors import ExecutorError, PipelineError, StageDefinitionError
from curator_core.stages import ProcessingStage
from curator_core.tasks import Task

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Self

__all__ = ["BoxedTask", "Dialect", "WrappedStage", "find_dialect"]


@dataclass
class BoxedTask(Task[Any]):
    """A task of another framework as the data of one of ours, which has our state.

    Attributes:
        data: The task.
    """

    @property
    @abstractmethod
    def content(self) -> Any:
        """What the id of a source task is made of, so that it is the same in every run."""

    @property
    @abstractmethod
    def written_paths(self) -> list[str] | None:
        """The files that the task names, if it names files."""


class WrappedStage(ProcessingStage[Any, Any]):
    """A stage of another framework as one of ours.

    Attributes:
        definition: The stage, as the user wrote it.
        skips_failures: Whether failures of the stage never end the run.
        not_compared: The names of its attributes that do not affect its outputs.
        set_on_definition: The settings that must be set on the stage itself, each with the way to do that.
    """

    definition: Any
    skips_failures: bool = False
    not_compared: frozenset[str] = frozenset()
    set_on_definition: Mapping[str, str] = {}  # shared and never written to

    def with_(self, **settings: Any) -> Self:
        """See `ProcessingStage.with_`.

        Raises:
            StageDefinitionError: Also for a setting that must be set on the stage itself.
        """
        for setting in sorted(self.set_on_definition.keys() & settings.keys()):
            raise StageDefinitionError(
                f"{setting} must be set on the stage itself",
                stage=self.name,
                field=setting,
                given=settings[setting],
                expected="a setting that only stages of curator_core have, such as timeout_s",
                hint=f"use {self.set_on_definition[setting]} of {type(self.definition).__name__}",
            )
        return super().with_(**settings)


class Dialect(Protocol):
    """Translates the stages and tasks of one framework."""

    name: str
    """The name of the framework."""

    def wrap(self, stages: Sequence[Any], *, fed: bool) -> list[WrappedStage]:
        """Wrap the stages of a pipeline, with composites expanded. The stages are not modified.

        Args:
            stages: The stages.
            fed: Whether the first stage receives initial tasks.

        Raises:
            StageDefinitionError: A stage cannot run on our executors.
        """

    def box(self, tasks: Iterable[Any], *, copies: bool) -> list[Task[Any]]:
        """Box initial tasks. Those that are boxed already are returned as they are.

        Args:
            tasks: The tasks.
            copies: Whether the stages must get copies, because they run in this process and may work in place.
        """

    def unbox(self, outputs: Iterable[Task[Any]]) -> list[Any]:
        """Return the outputs of a run as tasks of the framework."""

    def initial(self, tasks: Any) -> Any:
        """Return the initial tasks that the framework passes to an executor; None if they mean a source."""

    def name_of_run(self) -> str | None:
        """Return the name of the framework's pipeline that calls the executor; None if something else does."""

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings that the framework's call of an executor implies, by the arguments of ``execute``.

        Args:
            given: The settings that the user has given us.

        Raises:
            ConfigurationError: A given setting conflicts with one of the framework.
        """

    def gave_up(self, error_type: str) -> None:
        """Take note, in the driver, of a failure that ends no run.

        Args:
            error_type: The qualified name of the error's class.
        """


def find_dialect(stages: Sequence[Any]) -> Dialect | None:
    """Return the dialect of a pipeline's stages; None if none of them is of another framework.

    Raises:
        PipelineError: The stages are of several frameworks.
        ExecutorError: A dialect cannot be imported.
    """
    foreign = [stage for stage in stages if not isinstance(stage, ProcessingStage)]
    if not foreign:
        return None
    found = {dialect.name: dialect for dialect in _dialects_of({type(stage) for stage in foreign})}
    if not found:
        return None  # these are not stages at all: the plan says so
    if len(found) == 1 and len(foreign) == len(stages):
        return next(iter(found.values()))
    raise PipelineError(
        "a pipeline mixes stages of several frameworks",
        field="stages",
        given=[f"{type(stage).__module__}.{type(stage).__qualname__}" for stage in stages],
        expected=f"only stages of {' or only stages of '.join(['curator_core', *found])}",
        hint="run two pipelines, one after the other, and pass files from one to the next",
    )


def _dialects_of(stage_classes: Iterable[type]) -> list[Dialect]:
    from importlib.metadata import entry_points  # noqa: PLC0415 - 20 ms, needed only for other frameworks

    names = {f"{base.__module__}.{base.__qualname__}" for each in stage_classes for base in each.__mro__}
    return [_loaded(entry) for entry in entry_points(group="curator.dialects") if entry.name in names]


def _loaded(entry: Any) -> Dialect:
    try:
        dialect: Dialect = entry.load()
    except (ImportError, AttributeError) as exc:
        raise ExecutorError(
            f"stages of class {entry.name} cannot be run: {exc}",
            field=entry.name,
            given=entry.value,
            expected="a package that works in this environment",
            hint="see the traceback above this one, and reinstall what is missing",
        ) from exc
    return dialect
