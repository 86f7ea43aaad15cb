# SPDX-License-Identifier: Apache-2.0
"""Translates pipelines of NeMo Curator for our executors."""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_curator.backends.failed_task_markers import record_failed_tasks
from nemo_curator.backends.slurm_array import SlurmArrayConfig
from nemo_curator.backends.utils import get_stage_num_workers_per_node
from nemo_curator.core.serve import is_inference_server_active
from nemo_curator.pipeline.pipeline import Pipeline as NemoPipeline
from nemo_curator.stages.base import CompositeStage as NemoCompositeStage
from nemo_curator.tasks import EmptyTask as NemoEmptyTask

from curator_core._nemo.stages import FailedTaskError, NemoBatchStage, NemoLoopStage, NemoStage
from curator_core._nemo.tasks import box_all, unbox_all
from curator_core.errors import ConfigurationError, PipelineError, StageDefinitionError
from curator_core.resources import Resources

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import FrameType

    from curator_core._foreign import WrappedStage
    from curator_core.tasks import Task

__all__ = ["NEMO"]

logger = logging.getLogger(__name__)

_ACTOR_POOL = "nemo_curator.backends.ray_actor_pool.RayActorPoolExecutor"
_RAY_DATA = "nemo_curator.backends.ray_data.RayDataExecutor"
# Stages whose workers talk to each other, by the key of their ray_stage_spec().
_COLLECTIVE = {"is_raft_actor": "RAFT", "is_lsh_stage": "LSH", "is_shuffle_stage": "a shuffle"}
_ATTEMPTS = "num_run_attempts_python"
_CHECKPOINT = ".curator_checkpoint"
_ARRAY_HINTS = {
    "shard": "drop shard, or set NEMO_CURATOR_SLURM_ARRAY_ENABLED=0",
    "checkpoint": "pass checkpoint_path to Pipeline.run, which keeps one for each shard; or set "
    "NEMO_CURATOR_SLURM_ARRAY_ENABLED=0 and shard='auto'",
}
_TESTED = "1.4."

if not (installed := version("nemo-curator")).startswith(_TESTED):
    logger.warning("NeMo Curator %s is installed; its pipelines were tested here with %sx", installed, _TESTED)


class _Nemo:
    """The dialect of NeMo Curator; see `Dialect`."""

    name = "nemo_curator"

    def wrap(self, stages: Sequence[Any], *, fed: bool) -> list[WrappedStage]:
        """See `Dialect.wrap`."""
        parts = [copy.copy(part) for stage in stages for part in _expanded(stage)]
        _assign_roles(parts)
        names = _unique_names(parts)
        wrapped: list[WrappedStage] = []
        for number, part in enumerate(parts):
            _check_runs_here(part)
            settings = _settings_of(part, in_driver=number == 0 and not fed)
            wrapped.append(_wrapper_of(part)(part, {**settings, "name": names[number]}))
        return wrapped

    def box(self, tasks: Iterable[Any], *, copies: bool) -> list[Task[Any]]:
        """See `Dialect.box`."""
        return box_all(tasks, copies=copies)

    def unbox(self, outputs: Iterable[Task[Any]]) -> list[Any]:
        """See `Dialect.unbox`."""
        return unbox_all(outputs)

    def initial(self, tasks: Any) -> Any:
        """See `Dialect.initial`: NeMo Curator passes an empty list, or its EmptyTask, to a source."""
        if not isinstance(tasks, Iterable):
            return tasks  # not valid: the executor says so
        given = [*tasks]
        is_for_source = len(given) <= 1 and all(isinstance(task, NemoEmptyTask) for task in given)
        return None if is_for_source else given

    def name_of_run(self) -> str | None:
        """Return the name of the pipeline that is being run."""
        pipeline, _ = _callers()
        return pipeline.get("self") and str(pipeline["self"].name)

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return a checkpoint below the pipeline's ``checkpoint_path``, if it has one.

        Raises:
            ConfigurationError: A given setting conflicts with one of NeMo Curator.
        """
        array, (_, resumed) = SlurmArrayConfig.from_env(), _callers()
        if array is not None:
            for name in ("shard", "checkpoint"):
                if given.get(name) is not None:
                    raise _conflict(name, given[name], "NeMo Curator's settings for Slurm arrays", _ARRAY_HINTS[name])
        if not resumed:
            return {}
        path = Path(resumed["checkpoint_path"]) / _CHECKPOINT
        if given.get("checkpoint") is not None:
            raise _conflict("checkpoint", given["checkpoint"], str(path), "drop checkpoint, or checkpoint_path")
        return {"checkpoint": path if array is None else path / f"{array.shard_index}-of-{array.total_shards}"}

    def gave_up(self, error_type: str) -> None:
        """Leave the mark that NeMo Curator leaves for a task that a stage gave up on.

        On workers its path, which NeMo Curator sets in the environment of the driver, is not known.
        """
        if error_type == f"{FailedTaskError.__module__}.{FailedTaskError.__qualname__}":
            record_failed_tasks()


NEMO = _Nemo()


def _callers() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the variables of the calls of ``Pipeline.run`` and of its part for resuming that have called an executor.

    NeMo Curator passes only stages and tasks to executors. For a ``checkpoint_path``, it starts an actor that its own
    adapters report to.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_name != "execute":
        frame = frame.f_back
    while frame is not None and frame.f_code.co_name == "execute":  # also of a subclass
        frame = frame.f_back
    resumed: dict[str, Any] = {}
    if frame is not None and frame.f_code is NemoPipeline._run_with_resumability.__code__:
        resumed, frame = dict(frame.f_locals), frame.f_back
    is_run = frame is not None and frame.f_code is NemoPipeline.run.__code__
    return (dict(frame.f_locals) if frame is not None and is_run else {}), resumed


def _conflict(field: str, given: Any, theirs: str, hint: str) -> ConfigurationError:
    return ConfigurationError(
        f"two settings for {field}",
        field=field,
        given=[str(given), theirs],
        expected="one of them",
        hint=hint,
    )


def _wrapper_of(stage: Any) -> type[NemoStage]:
    if stage.supports_batch_processing():
        return NemoBatchStage
    return NemoLoopStage if (stage.batch_size or 1) > 1 else NemoStage


def _expanded(stage: Any) -> Iterator[Any]:
    """Yield the stages that a stage stands for, with the changes that were made to a composite's parts."""
    if not isinstance(stage, NemoCompositeStage):
        yield stage
        return
    parts = stage.decompose_and_apply_with()
    if not parts:
        raise StageDefinitionError(
            "the composite does not decompose into stages",
            stage=str(stage.name),
            field="decompose()",
            given=parts,
            expected="a list of at least one stage",
            hint="return the stages to run in place of the composite",
        )
    for part in parts:
        yield from _expanded(part)


def _assign_roles(stages: Sequence[Any]) -> None:
    """Mark the source and the sink, as NeMo Curator does when it builds a pipeline."""
    for role, default in (("is_source_stage", 0), ("is_sink_stage", -1)):
        marked = [stage.name for stage in stages if getattr(stage, role)]
        if len(marked) > 1:
            raise PipelineError(
                f"several stages set {role}",
                field=role,
                given=marked,
                expected="at most one stage",
                hint=f"set {role} on one of them only",
            )
        if not marked:
            setattr(stages[default], role, True)


def _unique_names(stages: Sequence[Any]) -> list[str]:
    """Return a name for each stage: NeMo Curator's need not be unique."""
    names: list[str] = []
    for stage in stages:
        given, number = str(stage.name).strip() or type(stage).__name__, 1
        name = given
        while name in names:
            number += 1
            name = f"{given}_{number}"
        names.append(name)
    return names


def _check_runs_here(stage: Any) -> None:
    spec = stage.ray_stage_spec() or {}
    for key, what in _COLLECTIVE.items():
        if spec.get(key):
            raise _refused(stage, f"needs {what}: its workers talk to each other", key, _ACTOR_POOL)
    if stage.resources.gpus and is_inference_server_active():
        raise _refused(stage, "needs a GPU while an inference server of NeMo Curator holds GPUs", "gpus", _RAY_DATA)


def _refused(stage: Any, why: str, field: str, executor: str) -> StageDefinitionError:
    return StageDefinitionError(
        f"the stage {why}",
        stage=str(stage.name),
        field=field,
        expected="stages whose workers are independent of each other and of other programs",
        hint=f"run this pipeline on {executor}",
    )


def _settings_of(stage: Any, *, in_driver: bool) -> dict[str, Any]:
    """Return our settings for a stage.

    Args:
        stage: The stage.
        in_driver: Whether it is a source. One that asks for no more than a CPU runs in the driver, where its tasks are
            known to the checkpoint, although partitioning asks for half a CPU.
    """
    options = {name: value for name, value in (stage.xenna_stage_spec() or {}).items() if value is not None}
    attempts = options.pop(_ATTEMPTS, None)
    if options.pop("reset_workers_on_failure", False):
        logger.warning("stage '%s': reset_workers_on_failure has no effect: failures never reach Xenna", stage.name)
    num_workers, per_node = stage.num_workers(), get_stage_num_workers_per_node(stage)
    twice = {"num_workers": num_workers, "num_workers_per_node": per_node}
    for name, value in twice.items():
        if name in options and (name == "num_workers" or value is not None):
            raise StageDefinitionError(
                f"xenna_stage_spec() must not set {name}",
                stage=str(stage.name),
                field=name,
                given=options[name],
                expected="one setting of the number of workers",
                hint=f"override {name}() or use with_({name}=…)",
            )
    if per_node is not None:
        options["num_workers_per_node"] = per_node
    settings: dict[str, Any] = {
        "resources": Resources(cpus=stage.resources.cpus, gpus=stage.resources.gpus),
        "batch_size": stage.batch_size or 1,
        "runtime_env": stage.runtime_env or None,
        "fans_out": bool((stage.ray_stage_spec() or {}).get("is_fanout_stage")),
        "skips_failures": bool(options.pop("ignore_failures", False)),
        "max_attempts": 1 if attempts is None else attempts,
        "num_workers": num_workers,
        "xenna_stage_spec": options,
    }
    if attempts is not None:
        where = f"{_ATTEMPTS} in xenna_stage_spec()"
        settings["set_on_definition"] = {**NemoStage.set_on_definition, "max_attempts": where}
    is_light = stage.resources.cpus <= 1 and not stage.resources.gpus and num_workers in (None, 1)
    if in_driver and is_light and not settings["runtime_env"]:
        settings |= {"resources": Resources(), "num_workers": None, "xenna_stage_spec": {}}
    return settings
