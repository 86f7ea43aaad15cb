# SPDX-License-Identifier: Apache-2.0
"""Translation of a plan to a Xenna specification. Pure: nothing here touches Ray."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any, get_type_hints

from cosmos_xenna.pipelines import v1 as pipelines_v1

from curator_core import StageDefinitionError
from curator_core.backends import unknown_name
from curator_xenna._convert.options import mismatch, xenna_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from curator_core.backends import CompiledStage
    from curator_xenna._placement.placement import Placement
    from curator_xenna._session.group_adapter import GroupAdapter
    from curator_xenna._session.inputs import Inputs
    from curator_xenna.config import XennaConfig

__all__ = ["check_limits", "check_options", "pipeline_spec"]

# The adapter handles failures: Xenna would silently drop a batch, or pass mutated input to a retry.
_OURS = {
    "stage": "drop this option: the adapter sets the stage",
    "num_workers": "override num_workers() or use with_(num_workers=…)",
    "num_run_attempts_python": "use max_attempts, whose retries see the original input",
    "ignore_failures": 'use on_error="skip", which counts failed tasks',
    "reset_workers_on_failure": "drop this option: failures never reach Xenna",
}
_EXTRA = {"is_spmd": bool}  # an option of Xenna's Resources


def check_options(stages: Sequence[CompiledStage]) -> None:
    """Check the options that stages return from ``xenna_stage_spec()``.

    Raises:
        StageDefinitionError: Xenna's ``StageSpec`` does not have an option, a stage must not set it, or its value is
            invalid.
    """
    types = get_type_hints(pipelines_v1.StageSpec) | _EXTRA
    known = types.keys() - _OURS.keys()
    for compiled in stages:
        for name, value in compiled.engine_options.items():
            if name in _OURS:
                raise StageDefinitionError(
                    f"xenna_stage_spec() must not set {name}",
                    stage=compiled.name,
                    field=name,
                    given=value,
                    expected=f"one of {', '.join(sorted(known))}",
                    hint=_OURS[name],
                )
            if name not in known:
                details = unknown_name("option", name, known)
                raise StageDefinitionError("unknown option of Xenna's StageSpec", stage=compiled.name, **details)
            if expected := mismatch(value, types[name], name):
                raise StageDefinitionError(
                    "invalid option of Xenna's StageSpec",
                    stage=compiled.name,
                    field=name,
                    given=value,
                    expected=expected,
                    hint="correct the value, or omit it to use the default",
                )
        _check_per_node(compiled)


def _check_per_node(compiled: CompiledStage) -> None:
    per_node = compiled.engine_options.get("num_workers_per_node")
    for name in ("num_workers", "min_workers", "max_workers", "initial_workers"):
        if per_node is not None and (number := getattr(compiled, name)) is not None:
            raise StageDefinitionError(
                f"{name} and num_workers_per_node are both set",
                stage=compiled.name,
                field=f"{name}, num_workers_per_node",
                given=(number, per_node),
                expected="at most one of the two",
                hint=f"drop {name} or num_workers_per_node",
            )


def check_limits(stages: Sequence[CompiledStage], config: XennaConfig) -> None:
    """Check the limits that stages set on the number of their workers.

    Xenna's autoscaler takes a fixed number of workers for a stage, or decides on one itself: it has no minimum, no
    maximum, and no number to start with. A maximum fixes the number, so a minimum can be kept if there is a maximum.

    Raises:
        StageDefinitionError: Xenna cannot keep a limit.
    """
    for compiled in stages:
        if compiled.initial_workers is not None:
            raise _unsupported(compiled, "initial_workers", "None", "drop initial_workers")
        has_maximum = (compiled.max_workers or config.max_workers_per_stage) is not None
        if (compiled.min_workers or 1) > 1 and not has_maximum:
            raise _unsupported(compiled, "min_workers", "max_workers as well, or None", "set max_workers as well")


def _unsupported(compiled: CompiledStage, name: str, expected: str, hint: str) -> StageDefinitionError:
    return StageDefinitionError(
        f"the autoscaler of cosmos-xenna {version('cosmos-xenna')} does not support {name}",
        stage=compiled.name,
        field=name,
        given=getattr(compiled, name),
        expected=expected,
        hint=f"{hint}, or use num_workers() for a fixed number",
    )


def pipeline_spec(
    adapters: Sequence[GroupAdapter],
    placements: Sequence[Placement],
    inputs: Inputs,
    config: XennaConfig,
    *,
    streaming: bool,
    cpu_share: float,
    autoscale_interval_s: float,
) -> pipelines_v1.PipelineSpec:
    """Return the specification that Xenna runs.

    Args:
        adapters: One adapter for each group of stages.
        placements: The resources of each group.
        inputs: Items for the first group.
        config: The executor's settings.
        streaming: Whether all groups run at once.
        cpu_share: The share of each node's CPUs to plan with; see `Cluster`.
        autoscale_interval_s: Seconds between two decisions of the autoscaler.
    """
    quiet = pipelines_v1.VerbosityLevel.NONE
    loud = pipelines_v1.VerbosityLevel.INFO if config.verbose else quiet
    passed_on = xenna_options(config.xenna or {})
    specific = pipelines_v1.StreamingSpecificSpec(
        autoscale_interval_s=autoscale_interval_s,
        **{"executor_verbosity_level": loud, **passed_on.streaming},
    )
    defaults: dict[str, Any] = {
        "actor_pool_verbosity_level": loud,
        "enable_work_stealing": True,  # an idle worker takes tasks that are queued for a busy one
        "monitoring_verbosity_level": loud,
    }
    if config.slots_per_actor is not None:
        defaults["slots_per_actor"] = config.slots_per_actor
    xenna_config = pipelines_v1.PipelineConfig(
        execution_mode=pipelines_v1.ExecutionMode.STREAMING if streaming else pipelines_v1.ExecutionMode.BATCH,
        logging_interval_s=config.logging_interval,
        cpu_allocation_percentage=cpu_share,
        mode_specific=specific if streaming else None,
        # The adapters handle failures; outputs go to the driver with the reports of the last stage.
        num_run_attempts_python=1,
        ignore_failures=False,
        return_last_stage_outputs=False,
        **{**defaults, **passed_on.pipeline},
    )
    stages = [_stage_spec(adapter, placement) for adapter, placement in zip(adapters, placements, strict=True)]
    return pipelines_v1.PipelineSpec(input_data=inputs, stages=stages, config=xenna_config)


def _stage_spec(adapter: GroupAdapter, placement: Placement) -> pipelines_v1.StageSpec[Any, Any]:
    options = {name: value for name, value in placement.group.engine_options.items() if name not in _EXTRA}
    if placement.workers is not None:
        options.pop("num_workers_per_node", None)
        options["num_workers"] = placement.workers
    return pipelines_v1.StageSpec(adapter, **options)
