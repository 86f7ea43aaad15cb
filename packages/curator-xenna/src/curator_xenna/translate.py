# SPDX-License-Identifier: Apache-2.0
"""A plan in Xenna's terms, and whether it fits the cluster. Pure: nothing here touches Ray."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import attrs
from cosmos_xenna.pipelines import v1 as pipelines_v1

from curator_core.errors import ResourcesError, StageDefinitionError, unknown_name
from curator_xenna.resources import Share, share_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from curator_core.plan import StageView
    from curator_xenna.adapter import XennaStageAdapter
    from curator_xenna.cluster import Node
    from curator_xenna.config import XennaConfig

__all__ = ["Placement", "asked_workers", "check_fits", "check_options", "pipeline_spec", "place"]

logger = logging.getLogger(__name__)

# Failures are the adapter's business: Xenna would drop a batch in silence, or hand a retry mutated input.
_OURS = {
    "stage": "the stage is the adapter's",
    "num_workers": "override num_workers() or use with_(num_workers=…)",
    "num_run_attempts_python": "use max_attempts, whose retries see the original input",
    "ignore_failures": 'use on_error="skip", which counts what failed',
}
_ROUNDING = 1e-6  # sums of thirds and sevenths
_EXTRA = ("is_spmd",)  # an option of Xenna's Resources


@dataclass(frozen=True, slots=True)
class Placement:
    """What one stage takes of the cluster.

    Attributes:
        view: The stage.
        share: What one of its workers needs.
        workers: How many workers, or None to leave it to Xenna's autoscaler.
    """

    view: StageView
    share: Share
    workers: int | None

    @property
    def least_workers(self) -> int:
        """Workers that must run at once."""
        return self.workers or 1


def check_options(views: Sequence[StageView]) -> None:
    """Check what stages say in ``xenna_stage_spec()``.

    Raises:
        StageDefinitionError: An option that Xenna's ``StageSpec`` does not take, or that is not theirs to set.
    """
    known = {field.name for field in attrs.fields(pipelines_v1.StageSpec)} - _OURS.keys() | set(_EXTRA)
    for view in views:
        for name, value in view.engine_options.items():
            if name in _OURS:
                raise StageDefinitionError(
                    f"xenna_stage_spec() must not set {name}",
                    stage=view.name,
                    field=name,
                    given=value,
                    expected=f"of {', '.join(sorted(known))}",
                    hint=_OURS[name],
                )
            if name not in known:
                details = unknown_name("option", name, known)
                raise StageDefinitionError("Xenna's StageSpec has no such option", stage=view.name, **details)
        per_node = view.engine_options.get("num_workers_per_node")
        if per_node is not None and view.num_workers is not None:
            raise StageDefinitionError(
                "says twice how many workers it has",
                stage=view.name,
                field="num_workers, num_workers_per_node",
                given=(view.num_workers, per_node),
                expected="at most one of the two",
                hint="drop num_workers() or num_workers_per_node",
            )


def place(views: Sequence[StageView], nodes: Sequence[Node], config: XennaConfig) -> list[Placement]:
    """What each stage takes of these nodes.

    Raises:
        ResourcesError: A request that cannot be expressed, or does not fit.
    """
    gpus = [gpu for node in nodes for gpu in node.gpus]
    placements = []
    for view in views:
        share = share_of(view.resources, gpus, view.name, config.codec_engines)
        placements.append(Placement(view, share, asked_workers(view, len(nodes))))
    if config.max_workers_per_stage is not None:
        placements = _limited(placements, nodes, config.max_workers_per_stage, config.execution_mode == "streaming")
    check_fits(placements, nodes, streaming=config.execution_mode == "streaming")
    return placements


def asked_workers(view: StageView, num_nodes: int) -> int | None:
    """How many workers a stage asks for; None where it leaves that to the autoscaler."""
    per_node = view.engine_options.get("num_workers_per_node")
    return view.num_workers if per_node is None else math.ceil(per_node * num_nodes)


def _limited(placements: list[Placement], nodes: Sequence[Node], limit: int, streaming: bool) -> list[Placement]:
    """Share out workers evenly, none above the limit. Xenna's autoscaler knows no upper bound of its own."""
    for placement in placements:
        if placement.least_workers > limit:
            logger.info(
                "stage '%s' gets %d workers, not the %d it asks for: max_workers_per_stage",
                placement.view.name,
                limit,
                placement.workers,
            )
    counts = [min(placement.workers or 1, limit) for placement in placements]
    grown = [placement.workers is None for placement in placements]
    while any(grown):
        for number in range(len(placements)):
            if not grown[number]:
                continue
            counts[number] += 1
            tried = [replace(p, workers=count) for p, count in zip(placements, counts, strict=True)]
            fits = _fits_together(tried if streaming else [tried[number]], nodes)
            if counts[number] > limit or not fits:
                counts[number] -= 1
                grown[number] = False
    return [replace(placement, workers=count) for placement, count in zip(placements, counts, strict=True)]


def check_fits(placements: Sequence[Placement], nodes: Sequence[Node], *, streaming: bool) -> None:
    """Whether Xenna can start these workers, in its own terms: before it starts any.

    Raises:
        ResourcesError: It cannot; with the table of what each stage asks and what there is.
    """
    for placement in placements:
        if not _fits_together([replace(placement, workers=1)], nodes):
            raise _does_not_fit(placement, placements, nodes, "one worker of it is larger than any node")
    if streaming:
        if not _fits_together(placements, nodes):
            largest = max(placements, key=lambda p: (p.share.gpus * p.least_workers, p.share.cpus * p.least_workers))
            raise _does_not_fit(largest, placements, nodes, "streaming runs all stages at once, and they do not fit")
        return
    for placement in placements:
        if not _fits_together([placement], nodes):
            raise _does_not_fit(placement, placements, nodes, "its workers do not fit together")


def _fits_together(placements: Sequence[Placement], nodes: Sequence[Node]) -> bool:
    """Whether all workers can be placed: the largest first, each on the first node that has room for it."""
    free = [(float(node.cpus), [1.0] * len(node.gpus)) for node in nodes]
    for placement in sorted(placements, key=lambda p: (p.share.gpus, p.share.cpus), reverse=True):
        pieces = _pieces(placement)
        for _ in range(placement.least_workers):
            for piece in pieces:
                if not _take(piece, free):
                    return False
    return True


def _pieces(placement: Placement) -> list[Share]:
    """What must lie on one node: a worker, or in an SPMD group, which may span nodes, each of its ranks."""
    share = placement.share
    if not placement.view.engine_options.get("is_spmd"):
        return [share]
    ranks = max(1, round(share.gpus))
    return [Share(share.cpus / ranks, share.gpus / ranks)] * ranks


def _take(share: Share, free: list[tuple[float, list[float]]]) -> bool:
    for number, (cpus, gpus) in enumerate(free):
        if share.cpus > cpus + _ROUNDING:
            continue
        if share.gpus <= 1:
            fits = [index for index, left in enumerate(gpus) if share.gpus <= left + _ROUNDING]
            chosen = fits[:1] if share.gpus else []
            enough = bool(chosen) or not share.gpus
        else:
            chosen = [index for index, left in enumerate(gpus) if left > 1 - _ROUNDING][: round(share.gpus)]
            enough = len(chosen) == round(share.gpus)
        if enough:
            for index in chosen:
                gpus[index] -= min(share.gpus, 1.0)
            free[number] = (cpus - share.cpus, gpus)
            return True
    return False


def _does_not_fit(
    placement: Placement, placements: Sequence[Placement], nodes: Sequence[Node], why: str
) -> ResourcesError:
    rows = [f"{'stage':<24} {'workers':>7} {'cpus each':>10} {'gpus each':>10}"]
    rows += [f"{p.view.name:<24} {p.least_workers:>7} {p.share.cpus:>10g} {p.share.gpus:>10.3g}" for p in placements]
    has = ", ".join(f"{node.cpus} CPUs and {len(node.gpus)} GPUs" for node in nodes)
    table = "\n    ".join([*rows, f"there is, a node: {has}"])
    return ResourcesError(
        f"does not fit the cluster: {why}",
        stage=placement.view.name,
        field="resources",
        given=placement.view.resources,
        expected=f"no more than there is:\n    {table}",
        hint="lower resources or num_workers of a stage, run on a larger cluster, or use "
        'execution_mode="batch", which runs one stage at a time',
    )


class _Inputs(list[Any]):
    """Input tasks that are not copied when Xenna copies the specification; it copies payloads otherwise."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Inputs:
        return self


def pipeline_spec(
    adapters: Sequence[XennaStageAdapter],
    placements: Sequence[Placement],
    inputs: Sequence[Any],
    config: XennaConfig,
    cpu_share: float,
) -> pipelines_v1.PipelineSpec:
    """The specification that Xenna runs.

    Args:
        adapters: One for each stage.
        placements: What they take of the cluster.
        inputs: Tasks for the first of them.
        config: The executor's settings.
        cpu_share: The share of each node's CPUs to plan with: see `Cluster`.
    """
    quiet = pipelines_v1.VerbosityLevel.NONE
    loud = pipelines_v1.VerbosityLevel.INFO if config.verbose else quiet
    streaming = pipelines_v1.StreamingSpecificSpec(
        autoscale_interval_s=config.autoscale_interval_s,
        max_queued_multiplier=config.max_queued_multiplier,
        max_queued_lower_bound=config.max_queued_lower_bound,
        executor_verbosity_level=loud,
    )
    optional: dict[str, Any] = {} if config.slots_per_actor is None else {"slots_per_actor": config.slots_per_actor}
    xenna_config = pipelines_v1.PipelineConfig(
        execution_mode=pipelines_v1.ExecutionMode[config.execution_mode.upper()],
        logging_interval_s=config.logging_interval,
        cpu_allocation_percentage=cpu_share,
        mode_specific=streaming if config.execution_mode == "streaming" else None,
        # The adapters deal with failures; outputs go to the driver with the reports of the last stage.
        num_run_attempts_python=1,
        ignore_failures=False,
        return_last_stage_outputs=False,
        actor_pool_verbosity_level=loud,
        monitoring_verbosity_level=loud,
        **optional,
    )
    stages = [_stage_spec(adapter, placement) for adapter, placement in zip(adapters, placements, strict=True)]
    return pipelines_v1.PipelineSpec(input_data=_Inputs(inputs), stages=stages, config=xenna_config)


def _stage_spec(adapter: XennaStageAdapter, placement: Placement) -> pipelines_v1.StageSpec[Any, Any]:
    options = {name: value for name, value in placement.view.engine_options.items() if name not in _EXTRA}
    if placement.workers is not None:
        options.pop("num_workers_per_node", None)
        options["num_workers"] = placement.workers
    return pipelines_v1.StageSpec(adapter, **options)
