# SPDX-License-Identifier: Apache-2.0
"""Runs plans on Cosmos-Xenna."""

from __future__ import annotations

import logging
import os
import threading
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from curator_core import BaseExecutor, ExecutorError
from curator_core.backends import is_isolated
from curator_xenna.config import XennaConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Self

    from curator_core import Plan
    from curator_core.backends import CompiledStage, FailurePolicy, Run, RunContext
    from curator_xenna._cluster.ray_cluster import Cluster

__all__ = ["XennaExecutor", "preserved_environment"]

logger = logging.getLogger(__name__)

_one_at_a_time = threading.Lock()
_THEIR_VARIABLES = ("RAY_", "CUDA_", "PYTHONBREAKPOINT")


class XennaExecutor(BaseExecutor):
    """Runs each stage in Xenna workers on Ray; the source runs in the driver unless it requests resources.

    The executor uses the Ray cluster that this process is connected to, or the one at ``RAY_ADDRESS``. Otherwise
    it starts an embedded Ray and shuts it down after the run. As a context manager, it keeps the cluster for
    several runs:

        with XennaExecutor() as executor:
            first.run(executor)
            second.run(executor)

    Args:
        config: A `XennaConfig` or a dict of its settings.

    Raises:
        ExecutorError: A setting is unknown or invalid.
    """

    engine = "ray"

    def __init__(self, config: XennaConfig | Mapping[str, Any] | None = None) -> None:
        self.config = XennaConfig.of(config)
        if self.config.xenna or self.config.ray:
            with preserved_environment():
                from curator_xenna._convert.options import check_passed_on  # noqa: PLC0415 - loads Xenna and Ray

                check_passed_on(self.config)
        self._kept: Cluster | None = None

    def __enter__(self) -> Self:
        with preserved_environment():
            from curator_xenna._cluster.ray_cluster import Cluster  # noqa: PLC0415 - loads Ray, which an import must not

            self._kept = Cluster(self.config)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def failure_policy(self, on_error: FailurePolicy) -> FailurePolicy:
        """See `BaseExecutor.failure_policy`: with ``ignore_failures``, failures are skipped instead of raised."""
        return "skip" if self.config.ignore_failures and on_error == "raise" else on_error

    def runs_source(self, plan: Plan) -> bool:
        """See `BaseExecutor.runs_source`: unless the source requests what only a worker has."""
        # In the driver, the source's tasks are known there, and no worker is started for a single task.
        return not plan.stages[0].wants_a_worker

    def run_plan(self, run: Run) -> None:
        """See `BaseExecutor.run_plan`."""
        with preserved_environment():
            self._run_plan(run)

    def _run_plan(self, run: Run) -> None:
        from curator_xenna._session.specification import check_limits, check_options  # noqa: PLC0415 - loads Xenna
        from curator_xenna.compat import own_signal_handlers  # noqa: PLC0415 - loads Ray

        check_options(run.plan.stages)
        check_limits(run.stages, self.config)
        with own_signal_handlers(), self._cluster() as cluster:
            if run.runs_source:
                self._check_fit(run.stages, cluster)  # before the source, which can take hours
            with run.source() as tasks:
                inputs = list(tasks)
            if run.stages and inputs:
                self._hold_sessions(cluster, run, inputs)
            else:
                run.collect(inputs)

    def _check_fit(self, stages: Sequence[CompiledStage], cluster: Cluster) -> None:
        from curator_xenna._placement.placement import check_fit  # noqa: PLC0415 - imports modules that load Ray
        from curator_xenna._session.session import nodes_for  # noqa: PLC0415 - loads Xenna

        if stages:
            check_fit(stages, nodes_for(stages, cluster), self.config, has_source=False)

    @contextmanager
    def _cluster(self) -> Iterator[Cluster]:
        """Yield the cluster for a run, one run at a time; a cluster for this run only is not opened yet."""
        from curator_xenna._cluster.ray_cluster import Cluster  # noqa: PLC0415 - loads Ray

        if not _one_at_a_time.acquire(blocking=False):
            raise ExecutorError(
                "another run on Xenna is in progress in this process",
                expected="one run at a time, because runs share Ray's connection and this process's environment",
                hint="run them one after the other or in separate processes",
            )
        cluster = self._kept or Cluster(self.config)
        try:
            yield cluster
        finally:
            try:
                if cluster is not self._kept:
                    cluster.close()
            finally:
                _one_at_a_time.release()

    def _hold_sessions(self, cluster: Cluster, run: Run, inputs: list[Any]) -> None:
        """Run Xenna on the inputs, and again on those left unfinished because a worker died or tasks were lost."""
        from curator_xenna._session.session import Session  # noqa: PLC0415 - loads Xenna

        config, stages, count_before = self.config, run.stages, None
        for attempt in run.attempts(inputs, config.max_restarts, after_losses=True):
            run.stop.check()  # a scheduler signals all processes of a job, which can also kill workers
            if count_before is not None and (not attempt.restarts_left or attempt.count == count_before):
                # A task that kills its worker must not take other tasks with it.
                config = replace(config, bundle=False)
                stages = tuple(_alone(compiled, run.context) for compiled in stages)
            count_before = attempt.count
            with attempt:
                session = Session(
                    cluster,
                    run,
                    stages=stages,
                    config=config,
                    inputs=list(attempt.tasks),
                    has_source=run.plan.has_source and not run.runs_source,
                )
                session.run()


def _alone(compiled: CompiledStage, context: RunContext) -> CompiledStage:
    """Limit a stage to one task per worker at a time if a crash in it kills the worker; leave other stages unchanged.

    Xenna gives up all tasks with which four workers died: the batch, and the tasks queued behind it in the same worker.
    """
    if is_isolated(compiled, context):
        return compiled
    return replace(compiled, batch_size=1, engine_options={**compiled.engine_options, "slots_per_actor": 1})


@contextmanager
def preserved_environment() -> Iterator[None]:
    """Undo the changes that Ray and Xenna make to this process's environment, even on import."""
    before = dict(os.environ)
    try:
        yield
    finally:
        touched = [name for name in before.keys() | os.environ.keys() if name.startswith(_THEIR_VARIABLES)]
        for name in touched:
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]
