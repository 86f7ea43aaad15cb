# SPDX-License-Identifier: Apache-2.0
"""A pipeline, compiled: decomposed, checked, and read once. Executors see plans, never pipelines."""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from curator_core.composite import decompose
from curator_core.errors import PipelineError, StageDefinitionError
from curator_core.resources import Resources
from curator_core.stage import ProcessingStage
from curator_core.task import Task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


__all__ = ["Fields", "Plan", "StageView", "dumps", "read_stage"]

_NO_OPTIONS: Mapping[str, Any] = {}


def dumps(value: Any) -> bytes:
    """Pickle for another process; everything that crosses one goes through here."""
    import cloudpickle  # noqa: PLC0415 - 8 ms that a reader of files or a type checker need not pay

    return cloudpickle.dumps(value)  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Fields:
    """Task attributes and data columns that a stage needs or adds."""

    attributes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StageView:
    """A stage as it was read when the plan was made. Nothing else asks a stage about itself.

    Attributes:
        index: Position in the plan.
        name: Its name.
        class_name: Its class's name; engines show it.
        stage: The user's stage. Executors run copies of it: see `fresh_stage`.
        batched: Whether it implements ``process_batch``.
        needs: What ``inputs()`` says; None where it says nothing.
        adds: What ``outputs()`` says; None where it says nothing.
        engine_options: What ``xenna_stage_spec()`` says.
    """

    index: int
    name: str
    class_name: str
    stage: ProcessingStage[Any, Any]
    batched: bool
    batch_size: int
    resources: Resources
    runtime_env: Mapping[str, Any] | None
    fusible: bool
    max_attempts: int
    num_workers: int | None
    needs: Fields | None
    adds: Fields | None
    engine_options: Mapping[str, Any]

    def fresh_stage(self) -> ProcessingStage[Any, Any]:
        """A copy to set up and run, so that the user's stage stays a definition."""
        return copy.deepcopy(self.stage)

    @property
    def wants_a_worker(self) -> bool:
        """Whether it asks for a place of its own to run, so that the driver must not run it."""
        return self.resources != Resources() or self.runtime_env is not None or self.num_workers is not None


@dataclass(frozen=True, slots=True)
class Plan:
    """What an executor runs.

    Attributes:
        name: Name of the pipeline.
        stages: Its stages, in order; composites are expanded.
    """

    name: str
    stages: tuple[StageView, ...]

    @classmethod
    def from_stages(cls, stages: Iterable[Any], name: str = "pipeline") -> Plan:
        """Compile stages: expand composites, read each stage once, and check all that can be checked.

        Raises:
            PipelineError: There are no stages, or two have the same name, or one needs what no earlier
                stage provides.
            StageDefinitionError: A stage that cannot run as it is written.
        """
        leaves = [leaf for stage in stages for leaf in decompose(stage)]
        if not leaves:
            raise PipelineError(
                f"pipeline '{name}' has no stages",
                field="stages",
                expected="at least one stage",
                hint="add_stage(…) before run()",
            )
        views = tuple(read_stage(index, stage) for index, stage in enumerate(leaves))
        _check_names(views)
        _check_provided(views)
        for view in views:
            _check_pickles(view)
        return cls(name=name, stages=views)

    def describe(self) -> str:
        """One line a stage: what it is, what it needs."""
        lines = [f"{self.name}: {len(self.stages)} stage{'s' * (len(self.stages) > 1)}"]
        width = max(len(view.name) for view in self.stages)
        for view in self.stages:
            lines.append(f"  {view.index:02d} {view.name:<{width}}  {_describe_view(view)}")
        return "\n".join(lines)


def read_stage(index: int, stage: Any) -> StageView:
    """Read a stage once, checking each value.

    Raises:
        StageDefinitionError: It is no stage, or one of its settings makes no sense.
    """
    if not isinstance(stage, ProcessingStage):
        raise StageDefinitionError(
            f"stage {index} is no ProcessingStage",
            field=f"stages[{index}]",
            given=stage,
            expected="an instance of a subclass of ProcessingStage",
            hint="call the class" if isinstance(stage, type) else "decorate a function with @processing_stage()",
        )
    view = StageView(
        index=index,
        name=_setting(stage, "name", _is_name, "a text that is not empty"),
        class_name=type(stage).__name__,
        stage=stage,
        batched=_implements(stage, "process_batch"),
        batch_size=_setting(stage, "batch_size", _is_count, "a whole number, 1 or more") or 1,
        resources=_setting(stage, "resources", lambda v: isinstance(v, Resources), "a Resources"),
        runtime_env=_setting(stage, "runtime_env", _is_env, "None, or a dict with text keys"),
        fusible=_setting(stage, "fusible", lambda v: isinstance(v, bool), "True or False"),
        max_attempts=_setting(stage, "max_attempts", _is_positive, "a whole number, 1 or more"),
        num_workers=_setting(stage, "num_workers", _is_count, "None, or a whole number, 1 or more"),
        needs=_fields(stage, "inputs"),
        adds=_fields(stage, "outputs"),
        engine_options=_setting(stage, "xenna_stage_spec", _is_env, "a dict with text keys") or _NO_OPTIONS,
    )
    if not view.batched and not _implements(stage, "process"):
        raise StageDefinitionError(
            "the stage does nothing",
            stage=view.name,
            field="process",
            expected="process(self, task) or process_batch(self, tasks)",
            hint=f"write one of the two in class {view.class_name}",
        )
    return view


def _implements(stage: Any, method: str) -> bool:
    return getattr(type(stage), method) is not getattr(ProcessingStage, method)


def _setting(stage: Any, field: str, valid: Callable[[Any], bool], expected: str) -> Any:
    value = getattr(stage, field)
    if callable(value):  # num_workers and xenna_stage_spec are methods, so that they can be computed
        value = value()
    if valid(value):
        return value
    raise StageDefinitionError(
        "this setting makes no sense",
        stage=getattr(stage, "name", None) or type(stage).__name__,
        field=field,
        given=value,
        expected=expected,
        hint=f"mend it in class {type(stage).__name__}, or use with_({field}=…)",
    )


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_count(value: Any) -> bool:
    return value is None or _is_positive(value)


def _is_env(value: Any) -> bool:
    return value is None or (isinstance(value, Mapping) and all(isinstance(key, str) for key in value))


def _fields(stage: Any, method: str) -> Fields | None:
    declared = getattr(stage, method)()
    if declared is None:
        return None
    pair_of_name_lists = (
        isinstance(declared, tuple)
        and len(declared) == 2  # noqa: PLR2004 - attributes, columns
        and all(isinstance(names, list | tuple) and all(isinstance(n, str) for n in names) for names in declared)
    )
    if pair_of_name_lists:
        return Fields(tuple(declared[0]), tuple(declared[1]))
    raise StageDefinitionError(
        f"{method}() does not say which fields",
        stage=stage.name,
        field=f"{method}()",
        given=declared,
        expected="a pair of lists of names: task attributes, data columns",
        hint='for example (["data"], ["text"])',
    )


def _check_names(views: Sequence[StageView]) -> None:
    by_name: dict[str, StageView] = {}
    for view in views:
        other = by_name.setdefault(view.name, view)
        if other is not view:
            raise PipelineError(
                f"stages {other.index} and {view.index} have the same name",
                stage=view.name,
                field="name",
                expected="a name of its own for each stage",
                hint=f'with_(name="{view.name}_2") on one of them',
            )


def _check_provided(views: Sequence[StageView]) -> None:
    """What a stage needs must come from a stage above it, as far as those above say what they add."""
    first = views[0]
    if first.needs is not None or first.adds is None:
        return  # fed by the caller, or by a source that does not say what it gives: nothing to hold it against
    task_attributes = {name for name in dir(Task) if not name.startswith("_")} | {"data", "dataset_name"}
    attributes, columns = task_attributes | set(first.adds.attributes), set(first.adds.columns)
    for view in views[1:]:
        missing = _missing(view, attributes, columns)
        if missing:
            raise PipelineError(
                f"needs {missing}, which no earlier stage provides",
                stage=view.name,
                field="inputs()",
                given=", ".join(missing),
                expected=f"of attributes: {sorted(attributes - task_attributes)}; of columns: {sorted(columns)}",
                hint="put a stage that adds it before this one, or declare it in that stage's outputs()",
            )
        if view.adds is None:
            return  # from here on anything may be there
        attributes |= set(view.adds.attributes)
        columns |= set(view.adds.columns)


def _missing(view: StageView, attributes: set[str], columns: set[str]) -> list[str]:
    if view.needs is None:
        return []
    absent = [name for name in view.needs.attributes if name not in attributes]
    return absent + [name for name in view.needs.columns if name not in columns]


def _check_pickles(view: StageView) -> None:
    try:
        dumps(view.stage)
    except Exception as exc:
        path, culprit = _culprit(view.stage, "stage")
        raise StageDefinitionError(
            f"the stage cannot be sent to a worker: {exc}",
            stage=view.name,
            field=path,
            given=culprit,
            expected="configuration that pickles: text, numbers, paths, functions",
            hint="make it in setup(), which runs on the worker",
        ) from exc


def _culprit(value: Any, path: str) -> tuple[str, Any]:
    """The innermost part of a value that does not pickle, and the path to it."""
    if isinstance(value, io.IOBase):
        return path, value
    parts: list[tuple[str, Any]] = []
    if isinstance(value, Mapping):
        parts = [(f"{path}[{key!r}]", item) for key, item in value.items()]
    elif isinstance(value, list | tuple | set | frozenset):
        parts = [(f"{path}[{number}]", item) for number, item in enumerate(value)]
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        parts = [(f"{path}.{name}", item) for name, item in vars(value).items()]
    for part_path, part in parts:
        try:
            dumps(part)
        except Exception:  # noqa: BLE001 - whatever pickling raises, this is the part
            return _culprit(part, part_path)
    return path, value


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
