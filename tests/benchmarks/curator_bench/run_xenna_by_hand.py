# SPDX-License-Identifier: Apache-2.0
"""Xenna alone, as a user without a framework would write it: its cost, and its practical limit.

Either one stage for each step, or one stage that runs all steps on bundles of payloads, with a fixed number of workers.
The latter has no ids, counts, batch sizes, or reports, and is the practical limit for a framework on Xenna.
"""

from __future__ import annotations

import atexit
from typing import TYPE_CHECKING, Any

import ray
from cosmos_xenna.pipelines import v1 as pipelines_v1

from curator_bench.harness import Work, cores, process_of

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable

OPTIONS = (("--bundle", 0), ("--workers", 0), ("--again", ""))

USUAL_SHARE, ALL_CPUS = 0.95, 1.0  # shares of the CPUs that Xenna plans with


class StepStage(pipelines_v1.Stage[Any, Any]):
    """One step.

    Args:
        call: The step.
        batch: Payloads per batch.
        cpus: CPUs per worker.
    """

    def __init__(self, call: Callable[[Any], Any], batch: int, cpus: float) -> None:
        self._call = call
        self._batch = batch
        self._cpus = cpus

    @property
    def stage_batch_size(self) -> int:
        """See `Stage`."""
        return self._batch

    @property
    def required_resources(self) -> pipelines_v1.Resources:
        """See `Stage`."""
        return pipelines_v1.Resources(cpus=self._cpus)

    def process_data(self, in_data: list[Any]) -> list[Any]:
        """See `Stage`."""
        return process_of(self._call, in_data)


class FusedStage(StepStage):
    """All steps, on bundles.

    Args:
        calls: The steps.
        cpus: CPUs per worker.
    """

    def __init__(self, calls: list[Callable[[Any], Any]], cpus: float) -> None:
        super().__init__(self._run, 1, cpus)
        self._calls = calls

    def _run(self, bundle: list[Any]) -> list[Any]:
        for call in self._calls:
            bundle = process_of(call, bundle)
        return bundle


def specification(work: Work, bundle: int, workers: int, cpu_share: float) -> pipelines_v1.PipelineSpec:
    """Return the specification for Xenna; bundle 0 means a stage per step, and 0 workers means that Xenna decides."""
    payloads = work.source.call(None) if work.source else work.inputs
    if not bundle:
        stages = [
            pipelines_v1.StageSpec(
                StepStage(step.call, step.batch, work.cpus), num_workers=step.workers or workers or None
            )
            for step in work.steps
        ]
    else:
        payloads = [payloads[start : start + bundle] for start in range(0, len(payloads), bundle)]
        fused = FusedStage([step.call for step in work.steps], work.cpus)
        stages = [pipelines_v1.StageSpec(fused, num_workers=1 if work.one_worker else workers or cores())]
    config = pipelines_v1.PipelineConfig(return_last_stage_outputs=True, cpu_allocation_percentage=cpu_share)
    return pipelines_v1.PipelineSpec(input_data=payloads, stages=stages, config=config)


def prepare(work: Work, given: Namespace) -> Callable[[], list[Any]]:
    """See `harness.main`."""

    def go() -> list[Any]:
        outputs = pipelines_v1.run_pipeline(specification(work, given.bundle, given.workers, share)) or []
        return [payload for made in outputs for payload in made] if given.bundle else outputs

    def go_and_end() -> list[Any]:
        try:
            return go()
        finally:
            ray.shutdown()  # like the other contenders

    share = ALL_CPUS if given.again else USUAL_SHARE
    if not given.again:
        return go_and_end
    atexit.register(ray.shutdown)  # neither the end of the cluster nor its first run is timed
    go()
    return go
