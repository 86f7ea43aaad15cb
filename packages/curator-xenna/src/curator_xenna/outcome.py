# SPDX-License-Identifier: Apache-2.0
"""Why a run ended early, in our terms."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ray

from curator_core.errors import ClusterError, CuratorError, RunError, WorkerDiedError
from curator_core.failure import rebuild_error

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from curator_core.fusion import Group
    from curator_xenna.coordinator import WorkerEntry
    from curator_xenna.feed import ReportFeed

__all__ = ["explain"]


def explain(
    broken: Exception | None, feed: ReportFeed, workers: Sequence[WorkerEntry], groups: Sequence[Group]
) -> CuratorError:
    """The stage's own error where there is one; otherwise who died.

    Args:
        broken: What Xenna raised, if it did.
        feed: What the workers reported.
        workers: Those that signed in.
        groups: The groups of stages.
    """
    if feed.failed_batch is not None and feed.failed_batch.error is not None:
        return rebuild_error(feed.failed_batch.error, feed.failed_batch.stage_name)
    if isinstance(feed.error, CuratorError):
        return feed.error
    reason = feed.error or broken
    if broken is not None and feed.error is None:
        text = " ".join(str(cause) for cause in _causes(broken))
        for report in feed.failed_setups.values():
            if report.error is not None and (report.worker_id in text or report.stage_name in text):
                return rebuild_error(report.error, report.stage_name, "in set-up")
        if any(isinstance(cause, ray.exceptions.RayActorError) for cause in _causes(broken)):
            return _worker_died(broken, text, workers, groups)
    error = ClusterError(
        f"Xenna gave up: {type(reason).__name__}: {reason}",
        expected="a run to its end",
        hint="run with verbose=True to see Xenna's log",
    )
    error.__cause__ = reason
    return error


def _causes(exc: BaseException | None) -> Iterator[BaseException]:
    while exc is not None:
        yield exc
        if isinstance(exc, ray.exceptions.RayTaskError) and isinstance(exc.cause, BaseException):
            yield exc.cause
        exc = exc.__cause__ or exc.__context__


def _worker_died(broken: Exception, text: str, workers: Sequence[WorkerEntry], groups: Sequence[Group]) -> RunError:
    dead = next((worker for worker in workers if worker.actor_id in text), None)
    who = f"worker {dead.worker_id} (process {dead.pid} on node {dead.node_id[:8]}) died" if dead else "a worker died"
    error = WorkerDiedError(
        f"{who} while it had work",
        stage=groups[dead.group].name if dead else None,
        expected="workers that live until their work is done",
        hint="look for a crash in native code or the system's out-of-memory killer (dmesg), "
        "or give the stage more memory; on Python 3.12 and later Xenna replaces dead workers",
    )
    error.__cause__ = broken
    return error
