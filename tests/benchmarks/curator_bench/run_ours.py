# SPDX-License-Identifier: Apache-2.0
"""This project: a stage for each step, on `XennaExecutor` or `LocalExecutor`."""

from __future__ import annotations

import atexit
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curator_bench.harness import SCRATCH, Work
from curator_core import DeadLetter, EmptyTask, LocalExecutor, Pipeline, ProcessingStage, Resources, Task

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable

    from curator_core import BaseExecutor, RunObserver
    from curator_xenna import XennaExecutor

OPTIONS = (("--executor", "xenna"), ("--settings", "{}"), ("--traced", ""), ("--safe", ""), ("--again", ""))


class StepStage(ProcessingStage[Task[Any], Task[Any]]):
    """A step as a stage.

    Args:
        call: The step.
    """

    def __init__(self, call: Callable[[Any], Any]) -> None:
        self._call = call

    def process(self, task: Task[Any]) -> Task[Any] | None:
        """See `ProcessingStage`."""
        made = self._call(task.data)
        return None if made is None else Task(data=made)


class SourceStage(ProcessingStage[EmptyTask, Task[Any]]):
    """A source as a stage.

    Args:
        call: Returns the payloads.
    """

    def __init__(self, call: Callable[[Any], list[Any]]) -> None:
        self._call = call

    def process(self, task: EmptyTask) -> list[Task[Any]]:
        """See `ProcessingStage`."""
        return [Task(data=payload) for payload in self._call(None)]


def pipeline_of(work: Work) -> Pipeline:
    """Return the pipeline."""
    resources = Resources(cpus=work.cpus)
    stages: list[ProcessingStage[Any, Any]] = [SourceStage(work.source.call)] if work.source else []
    for step in work.steps:
        stage = StepStage(step.call).with_(name=step.name, resources=resources, batch_size=step.batch)
        stages.append(stage.with_(num_workers=step.workers) if step.workers else stage)
    return Pipeline("bench", stages)


def prepare(work: Work, given: Namespace) -> Callable[[], list[Any]]:
    """See `harness.main`."""
    settings = json.loads(given.settings)
    if given.executor == "xenna":
        # Import Ray and Xenna before the clock starts, as the other contenders do.
        import cosmos_xenna.pipelines.v1  # noqa: F401 - not installed in other environments
        import ray  # noqa: F401 - not installed in other environments

        from curator_xenna import XennaExecutor

    def executor() -> BaseExecutor:
        return XennaExecutor(settings) if given.executor == "xenna" else LocalExecutor(**settings)

    if given.again:
        return _second_run(work, XennaExecutor(settings))
    observers = [_telemetry()] if given.traced else []
    safety = _safety() if given.safe else {}

    def go() -> list[Any]:
        initial = None if work.source else [Task(data=payload) for payload in work.inputs]
        done = pipeline_of(work).run(executor(), initial_tasks=initial, observers=observers, **safety)
        return [task.data for task in done]

    return go


def _second_run(work: Work, executor: XennaExecutor) -> Callable[[], list[Any]]:
    """Return a run on a cluster after another run; the first run and the end of the cluster are not timed."""
    atexit.register(executor.__exit__)
    executor.__enter__()

    def go() -> list[Any]:
        done = pipeline_of(work).run(executor, initial_tasks=[Task(data=payload) for payload in work.inputs])
        return [task.data for task in done]

    go()
    return go


def _safety() -> dict[str, Any]:
    """Return the settings that protect a long run: a checkpoint and dead letters."""
    scratch = Path(os.environ[SCRATCH])
    return {"checkpoint": scratch / "progress", "on_error": DeadLetter(scratch / "dead")}


def _telemetry() -> RunObserver:
    """Set up the SDK with files for spans and metrics, which are written when the process ends."""
    from curator_otel import OTelObserver, configure

    scratch = Path(os.environ[SCRATCH])
    telemetry = configure(json_file=scratch / "trace.json", json_metrics_file=scratch / "metrics.json")
    return OTelObserver(telemetry.tracer_provider, telemetry.meter_provider)
