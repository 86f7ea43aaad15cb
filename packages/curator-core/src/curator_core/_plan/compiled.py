# SPDX-License-Identifier: Apache-2.0
"""A stage, read once and checked: nothing else reads the settings of a stage."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, get_args, get_origin

from curator_core._foreign import WrappedStage
from curator_core._plan.fan_out import is_asynchronous, says_fan_out
from curator_core._settings import SETTINGS, as_tuple, invalid_setting
from curator_core._transport.pickling import copied
from curator_core.errors import StageDefinitionError
from curator_core.resources import Resources
from curator_core.stages import ProcessingStage
from curator_core.tasks import EmptyTask

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LIMITS_OF_WORKERS", "CompiledStage", "Fields", "compile_stage"]


_CONCURRENCY = 32  # concurrent calls of an asynchronous stage by default
LIMITS_OF_WORKERS = ("min_workers", "initial_workers", "max_workers")  # none is above the next one


class Fields(NamedTuple):
    """Task attributes and data columns that a stage needs or adds."""

    attributes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CompiledStage:
    """A stage as it was read when the plan was made.

    The fields that are not listed here are the checked settings of the stage: see the attributes of `ProcessingStage`.

    Attributes:
        index: Position in the plan.
        class_name: Name of its class, which engines show.
        stage: The user's stage, or what wraps it. Executors run copies of it: see `fresh_stage`.
        definition: The user's stage: the same, unless it is of another framework.
        batched: Whether it implements ``process_batch``.
        batch_size: How many tasks a batch has at most. A batch of an asynchronous stage has as many tasks as are
            processed concurrently.
        call_size: How many of them a call of ``process_batch`` receives at most.
        concurrency: How many calls of an asynchronous stage may be in flight at once; 0 for other stages.
        fans_out: Whether it makes many tasks from one, as declared or as its return annotation says.
        full_batches: Whether its batches must be full, wherever the tasks come from.
        needs: The fields that ``inputs()`` declares; None if it declares nothing.
        adds: The fields that ``outputs()`` declares; None if it declares nothing.
        num_workers: The fixed number of workers: also if the stage sets equal limits, which then are None here.
        engine_options: The options that ``xenna_stage_spec()`` returns.
        is_committed: Whether the driver publishes the stage's files.
        skips_failures: Whether failures of the stage never end the run.
    """

    index: int
    name: str
    class_name: str
    stage: ProcessingStage[Any, Any]
    definition: Any
    batched: bool
    batch_size: int
    call_size: int
    concurrency: int
    resources: Resources
    runtime_env: Mapping[str, Any] | None = field(repr=False)  # its values may be secrets
    fusible: bool | None
    fans_out: bool
    full_batches: bool
    max_attempts: int
    retry_on: tuple[type[BaseException], ...]
    retry_delay_s: float
    timeout_s: float | None
    setup_timeout_s: float | None
    isolated: bool | None
    min_workers: int | None
    max_workers: int | None
    initial_workers: int | None
    num_workers: int | None
    needs: Fields | None
    adds: Fields | None
    engine_options: Mapping[str, Any]
    is_committed: bool
    skips_failures: bool

    def fresh_stage(self) -> ProcessingStage[Any, Any]:
        """Return a copy to set up and run, so that the user's stage stays a definition."""
        try:
            return copy.deepcopy(self.stage)
        except Exception:  # noqa: BLE001 - part of it cannot be copied, such as a module: that is shared
            return copied(self.stage)  # type: ignore[no-any-return]  # as untyped as pickle

    @property
    def limit_by_process(self) -> str | None:
        """The name of the time limit that requires a separate process; None if it has no such limit."""
        if self.timeout_s is not None and not self.concurrency:  # a coroutine can be canceled
            return "timeout_s"
        return "setup_timeout_s" if self.setup_timeout_s is not None else None

    @property
    def wants_a_worker(self) -> bool:
        """Whether it requests its own place to run, so that the driver must not run it."""
        asks = (self.runtime_env is not None, self.num_workers is not None, bool(self.engine_options))
        return self.resources != Resources() or any(asks)

    @property
    def may_be_source(self) -> bool:
        """Whether its declarations allow it to begin a pipeline without initial tasks."""
        declared = _declared_input(type(self.stage))
        if declared is not None:
            return declared is EmptyTask
        return self.needs is None or self.needs == Fields()


def compile_stage(index: int, stage: Any) -> CompiledStage:
    """Read a stage once, and check each value.

    Raises:
        StageDefinitionError: The object is not a stage, or one of its settings is invalid.
    """
    definition = stage.definition if isinstance(stage, WrappedStage) else stage
    if not isinstance(stage, ProcessingStage):
        raise StageDefinitionError(
            f"stage {index} is not a ProcessingStage",
            field=f"stages[{index}]",
            given=stage,
            expected="an instance of a subclass of ProcessingStage",
            hint="call the class" if isinstance(stage, type) else "decorate a function with @processing_stage()",
        )
    if type(stage).metrics is not ProcessingStage.metrics:
        raise invalid_setting(stage, "metrics", type(stage).metrics, "the property of ProcessingStage", "rename it")
    values = {setting.field: setting.read(stage) for setting in SETTINGS.values()}
    batched, call_size = _implements(stage, "process_batch"), values["batch_size"] or 1
    concurrency = _concurrency(stage, values["concurrency"], batched=batched)
    # A batch has as many tasks as can be processed concurrently; its report covers all of them.
    batch_size = call_size * (concurrency or 1) if batched else max(call_size, concurrency)
    fans_out, full = values["fans_out"], values["full_batches"]
    values |= {
        "batch_size": batch_size,
        "concurrency": concurrency,
        "fans_out": says_fan_out(stage, batched=batched) if fans_out is None else fans_out,
        "full_batches": batch_size > 1 and (batched and values["resources"].requires_gpu if full is None else full),
        "retry_on": as_tuple(values["retry_on"]),
        "engine_options": values["engine_options"] or {},
    } | _numbers_of_workers(stage, values)
    compiled = CompiledStage(
        index=index,
        class_name=type(definition).__name__,
        stage=stage,
        definition=definition,
        batched=batched,
        call_size=call_size,
        needs=_read_fields(stage, "inputs"),
        adds=_read_fields(stage, "outputs"),
        is_committed=stage._is_committed,
        skips_failures=isinstance(stage, WrappedStage) and stage.skips_failures,
        **values,
    )
    if not compiled.batched and not _implements(stage, "process"):
        raise StageDefinitionError(
            "the stage has neither process() nor process_batch()",
            stage=compiled.name,
            field="process",
            given=f"class {compiled.class_name} with neither method",
            expected="process(self, task) or process_batch(self, tasks)",
            hint=f"write one of the two in class {compiled.class_name}",
        )
    if compiled.isolated is False and (limit := compiled.limit_by_process):
        hint = f"leave isolated unset, or remove {limit}"
        raise invalid_setting(stage, "isolated", False, f"None or True, because {limit} kills a hanging process", hint)
    return compiled


def _implements(stage: Any, method: str) -> bool:
    """Whether a stage overrides a method; a method set to None does not count, as with ``__hash__``."""
    is_own = getattr(type(stage), method) is not getattr(ProcessingStage, method)
    return is_own and getattr(stage, method) is not None


def _concurrency(stage: Any, asked: int | None, *, batched: bool) -> int:
    """Return how many calls may be in flight at once; 0 if the stage is not asynchronous."""
    if is_asynchronous(stage, batched=batched):
        return asked or _CONCURRENCY
    if asked is not None:
        method = "process_batch" if batched else "process"
        hint = f"write async def {method}, or leave concurrency unset"
        raise invalid_setting(stage, "concurrency", asked, "None for a stage whose calls are not coroutines", hint)
    return 0


def _numbers_of_workers(stage: Any, values: Mapping[str, Any]) -> dict[str, int | None]:
    """Return the number of workers and its limits, without the limits if they fix the number."""
    limits = {name: values[name] for name in LIMITS_OF_WORKERS if values[name] is not None}
    fixed = values["num_workers"]
    if fixed is not None and limits:
        names = ["num_workers", *limits]
        expected, hint = "either a fixed number or limits", f"drop num_workers(), or set {' and '.join(limits)} to None"
        raise invalid_setting(stage, ", ".join(names), (fixed, *limits.values()), expected, hint)
    if [*limits.values()] != sorted(limits.values()):
        raise invalid_setting(stage, ", ".join(limits), (*limits.values(),), " <= ".join(limits), "change one of them")
    if values["max_workers"] is not None and values["max_workers"] == values["min_workers"]:
        return dict.fromkeys(LIMITS_OF_WORKERS) | {"num_workers": values["max_workers"]}
    return {}


def _declared_input(stage_class: type) -> Any:
    """Return the class of tasks in ``ProcessingStage[X, Y]``; None if the stage does not declare it."""
    for base in stage_class.__mro__:
        for parent in vars(base).get("__orig_bases__", ()):
            origin, arguments = get_origin(parent), get_args(parent)
            if isinstance(origin, type) and issubclass(origin, ProcessingStage) and len(arguments) > 1:
                taken = get_origin(arguments[0]) or arguments[0]
                return None if taken is Any or isinstance(taken, TypeVar) else taken
    return None


def _read_fields(stage: Any, method: str) -> Fields | None:
    declared = getattr(stage, method)()
    if declared is None:
        return None
    if isinstance(declared, tuple | list) and len(declared) == 2 and all(map(_are_names, declared)):
        attributes, columns = declared
        return Fields(tuple(attributes), tuple(columns))
    raise StageDefinitionError(
        f"invalid return value of {method}()",
        stage=stage.name,
        field=f"{method}()",
        given=declared,
        expected="a pair of lists of names: task attributes, data columns",
        hint='return a pair such as (["data"], ["text"])',
    )


def _are_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)
