# SPDX-License-Identifier: Apache-2.0
"""Stages, which users write: a stage turns tasks into tasks."""

from __future__ import annotations

import copy
import copyreg
import importlib
import inspect
import sys
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from curator_core._performance import StageMetrics
from curator_core._settings import SETTINGS
from curator_core.errors import StageDefinitionError, unknown_name
from curator_core.resources import Resources
from curator_core.tasks import Task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Self


__all__ = [
    "CompositeStage",
    "FunctionStage",
    "NodeInfo",
    "ProcessingStage",
    "WorkerMetadata",
    "decompose",
    "processing_stage",
]


X = TypeVar("X", bound=Task[Any])
Y = TypeVar("Y", bound=Task[Any])


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """The machine that a worker runs on.

    Attributes:
        node_id: The engine's id for the node.
    """

    node_id: str = "local"


@dataclass(frozen=True, slots=True)
class WorkerMetadata:
    """The worker that a stage runs in.

    Attributes:
        worker_id: The engine's id for the worker.
        allocation: The resources that the engine allocated to the worker, as the engine describes them; None if it
            allocates none.
    """

    worker_id: str = "local"
    allocation: Any = None


class _ClassName:
    """The default name of a stage: that of its class."""

    def __get__(self, stage: object, stage_class: type) -> str:
        return stage_class.__name__


class ProcessingStage(Generic[X, Y]):
    """A step of a pipeline. Write ``process``, or ``process_batch`` if tasks are best processed together.

        class Upper(ProcessingStage[Task[str], Task[str]]):
            def process(self, task):
                return Task(data=task.data.upper())

    A stage is a definition: it is set up, run, and torn down on copies of itself, on any number of workers.
    Open files, load models, and connect in ``setup``, not in ``__init__``.

    Attributes:
        name: Unique in a pipeline. The default is the name of the class.
        resources: The resources that one worker requests.
        batch_size: How many tasks ``process_batch`` receives at most.
        concurrency: How many calls of ``async def process`` or ``process_batch`` a worker has in flight at once. None:
            32. For asynchronous stages only.
        runtime_env: A Ray runtime environment for the workers of this stage (``env_vars``, ``pip``,
            ``conda``, ``working_dir`` …); executors without runtime environments ignore it.
        fusible: Whether it may share a worker with its neighbors, so that tasks pass from one to the next without
            leaving the process. None: yes, unless it requests a GPU. False never shares, True lets a GPU stage share.
        fans_out: Whether it makes many tasks from one; later stages then run in their own workers, so that the tasks
            are distributed again. None: yes, if its return annotation names a list or an iterator.
        full_batches: Whether each ``process_batch`` call receives ``batch_size`` tasks, except for the last one, even
            if they come from different workers. None: yes, if it requests a GPU.
        max_attempts: How often a batch that raises is tried in total.
        retry_on: The exceptions to retry, a class or a tuple of classes. Others fail for good.
        retry_delay_s: Seconds before the second attempt; doubled before each further one, up to 30, and shortened at
            random by up to half, so that many workers do not retry at the same time.
        timeout_s: Seconds that one call of ``process`` or ``process_batch`` may take; None for no limit. A call that
            takes longer has failed. A call of an asynchronous stage is canceled; any other stage runs in its own
            process for this, which is killed and replaced.
        setup_timeout_s: Seconds that ``setup_on_node``, ``setup``, and ``teardown`` may take each; None for no limit.
            The stage runs in its own process for this.
        isolated: Whether the stage runs in its own process, so that a crash costs only that process. None: if a time
            limit requires it, and for the rest of a run after a worker has died.
        min_workers: The minimum number of workers, for executors that change the number during a run. None: 1.
        max_workers: The maximum number of workers. None for no limit. If it equals ``min_workers``, the number is
            fixed, as by ``num_workers()``.
        initial_workers: The number of workers to start with, for executors that change the number during a run. None
            leaves it to the executor.
    """

    name: str = cast("str", _ClassName())
    resources: Resources = Resources()
    batch_size: int = 1
    concurrency: int | None = None
    runtime_env: Mapping[str, Any] | None = None
    fusible: bool | None = None
    fans_out: bool | None = None
    full_batches: bool | None = None
    max_attempts: int = 1
    retry_on: type[BaseException] | tuple[type[BaseException], ...] = Exception
    retry_delay_s: float = 0.1
    timeout_s: float | None = None
    setup_timeout_s: float | None = None
    isolated: bool | None = None
    min_workers: int | None = None
    max_workers: int | None = None
    initial_workers: int | None = None

    def process(self, task: X) -> Y | list[Y] | tuple[Y, ...] | Iterator[Y] | None:
        """Work on one task.

        Args:
            task: The task. Its payload may be read-only: make a new task rather than change it in place.

        It may be a coroutine or an asynchronous generator: a worker then has ``concurrency`` calls in flight at once,
        on one event loop, and ``setup`` and ``teardown`` may be coroutines on that loop too.

        Returns:
            A task (it keeps the id), a list of tasks (each gets its own id, even if there is only one), or None to
            drop the task. A generator counts as a list. It is read lazily in a source, and if the run ends at its
            first failure and the stage has one attempt.
        """
        raise NotImplementedError

    def process_batch(self, tasks: list[X]) -> Sequence[Y | list[Y] | None]:
        """Work on up to ``batch_size`` tasks at once.

        Args:
            tasks: The tasks.

        Returns:
            A list with one entry for each input, in order: a task, a list of tasks, or None.
        """
        raise NotImplementedError

    def setup_on_node(self, node_info: NodeInfo, worker_metadata: WorkerMetadata) -> None:
        """Prepare a node, once for each node before its first worker: fetch weights, fill a cache."""

    def setup(self, worker_metadata: WorkerMetadata) -> None:
        """Prepare a worker: load a model, open a connection."""

    def teardown(self) -> None:
        """Release what ``setup`` acquired."""

    def num_workers(self) -> int | None:
        """Return the fixed number of workers, or None to leave it to the executor."""
        return None

    def inputs(self) -> tuple[list[str], list[str]] | None:
        """Return the task attributes and data columns that the stage needs; checked before each batch."""
        return None

    def outputs(self) -> tuple[list[str], list[str]] | None:
        """Return the task attributes and data columns that the stage adds.

        None declares nothing, so the inputs of later stages cannot be checked.
        """
        return None

    def xenna_stage_spec(self) -> Mapping[str, Any]:
        """Return options of Xenna's ``StageSpec`` for this stage; other executors ignore them."""
        return {}

    @property
    def _is_committed(self) -> bool:
        """Whether the driver publishes the stage's files after counting their tasks; see `io.writer`."""
        return False

    @property
    def metrics(self) -> StageMetrics:
        """Metrics of the current batch: record them with ``add``, ``set``, and ``timer``."""
        recorder: StageMetrics | None = self.__dict__.get("_metrics")
        if recorder is None:
            recorder = self.__dict__["_metrics"] = StageMetrics()
        return recorder

    def with_(self, **settings: Any) -> Self:
        """Return a copy of the stage with other settings; this stage does not change.

        Args:
            **settings: The attributes of `ProcessingStage` by name, and ``num_workers`` and ``xenna_stage_spec``, whose
                values replace the results of these methods.

        Raises:
            StageDefinitionError: A setting that stages do not have, or that this stage computes.
        """
        for setting in settings:
            if setting not in SETTINGS:
                raise StageDefinitionError(
                    "with_() got an unknown setting",
                    stage=self.name,
                    **unknown_name("setting", setting, SETTINGS),
                )
        changed = copy.copy(self)
        changed.__dict__.pop("_metrics", None)
        for setting, value in settings.items():
            try:
                object.__setattr__(changed, setting, _Constant(value) if SETTINGS[setting].is_method else value)
            except AttributeError as exc:
                raise StageDefinitionError(
                    "with_() cannot change this setting",
                    stage=self.name,
                    field=setting,
                    given=value,
                    expected="an attribute, not a property of the class",
                    hint=f"change the values that {type(self).__name__} computes '{setting}' from",
                ) from exc
        return changed

    def __repr__(self) -> str:
        return f"<{type(self).__name__} '{self.name}'>"


class _Constant:
    """A value in place of a method; a class and not a lambda, so that any pickle can include it."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self) -> Any:
        return self.value


class FunctionStage(ProcessingStage[Any, Any]):
    """A stage whose ``process`` is a function.

    Args:
        function: A function of one task.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function
        self.__doc__ = function.__doc__

    def process(self, task: Any) -> Any:
        """Return the result of the function."""
        return self.function(task)

    def __reduce__(self) -> tuple[Any, ...]:
        # The decorated stage has replaced the function in its module, so pickle cannot find the function by name and
        # would include it, with all the globals that it uses. The other side should use its own module's function.
        home = self.function.__module__, self.function.__qualname__
        settings = {name: value for name, value in vars(self).items() if name != "function"}
        if home[0] != "__main__" and getattr(_find(*home), "function", None) is self.function:
            return _again, home, settings
        return copyreg.__newobj__, (type(self),), vars(self)  # type: ignore[attr-defined]


def _find(module: str, qualname: str) -> Any:
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found


def _again(module: str, qualname: str) -> FunctionStage:
    importlib.import_module(module)
    stage: FunctionStage = _find(module, qualname)
    fresh = type(stage).__new__(type(stage))
    fresh.function = stage.function
    return fresh


def processing_stage(**settings: Any) -> Callable[[Callable[[Any], Any]], ProcessingStage[Any, Any]]:
    """Make a stage from a function that takes one task.

        @processing_stage(resources=Resources(cpus=2))
        def upper(task):
            return Task(data=task.data.upper())

    Args:
        **settings: As for `ProcessingStage.with_`. The default name is that of the function.

    Raises:
        StageDefinitionError: A setting that stages do not have, or a function that does not take
            exactly one task.
    """

    def decorate(function: Callable[[Any], Any]) -> ProcessingStage[Any, Any]:
        _check_takes_one_task(function)
        # A separate class, so that engines that show the class's name show the function's.
        stage_class = type(function.__name__, (FunctionStage,), {"__module__": function.__module__})
        stage: ProcessingStage[Any, Any] = stage_class(function)
        return stage.with_(**{"name": function.__name__, **settings})

    return decorate


def _check_takes_one_task(function: Callable[[Any], Any]) -> None:
    given: Any = function
    if callable(function):
        try:
            signature = inspect.signature(function)
        except ValueError:  # some functions written in C have no signature
            return
        try:
            signature.bind(object())
        except TypeError:
            given = signature
        else:
            return
    raise StageDefinitionError(
        "not a function that a stage can be made from",
        stage=getattr(function, "__name__", None),
        field="function",
        given=given,
        expected="a function that can be called with one task",
        hint="use @processing_stage() with parentheses, above def stage(task): …",
    )


_MAX_DEPTH = 32  # deeper than anyone nests by hand: a composite that contains itself


class CompositeStage(ProcessingStage[X, Y]):
    """A stage that expands into other stages, in order, when a pipeline is compiled. It never runs itself.

    Settings passed to its ``with_`` do not apply to the stages that it expands into: pass them to those stages.
    """

    @abstractmethod
    def decompose(self) -> list[ProcessingStage[Any, Any]]:
        """Return the stages that it expands into, at least one. They may be composites themselves."""
        raise StageDefinitionError(
            "the composite does not implement decompose()",
            stage=self.name,
            field="decompose()",
            given=f"class {type(self).__name__} without decompose()",
            expected="a method decompose(self) that returns a list of stages",
            hint=f"implement decompose() in class {type(self).__name__}",
        )


def decompose(stage: Any, depth: int = 0) -> list[Any]:
    """Return the stages that a stage expands into: only itself, unless it is a composite.

    Raises:
        StageDefinitionError: A composite returned no stages, something other than a list, or itself.
    """
    if not isinstance(stage, CompositeStage):
        return [stage]
    if depth == _MAX_DEPTH:
        raise StageDefinitionError(
            f"the composite is nested more than {_MAX_DEPTH} levels deep",
            stage=stage.name,
            field="decompose()",
            expected="composites that decompose into plain stages",
            hint="check whether a decompose() returns its own composite",
        )
    parts: Any = stage.decompose()
    if not isinstance(parts, list | tuple) or not parts:
        raise StageDefinitionError(
            "the composite does not decompose into stages",
            stage=stage.name,
            field="decompose()",
            given=parts,
            expected="a list of at least one stage",
            hint="return the stages to run in place of the composite",
        )
    return [leaf for part in parts for leaf in decompose(part, depth + 1)]
