# SPDX-License-Identifier: Apache-2.0
"""Turns the failure of a run on Xenna into an error of curator-core that names the cause."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

import ray
from ray.util.state import list_actors

from curator_core import ClusterError, CuratorError, RunError, WorkerDiedError
from curator_core.backends import rebuild_error
from curator_xenna.compat import WORKER_DEATHS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from curator_core.backends import StageGroup
    from curator_xenna._session.coordinator import WorkerEntry
    from curator_xenna._session.report_reader import ReportReader

__all__ = ["explain", "explain_loss"]

logger = logging.getLogger(__name__)

_XENNAS_NAME = re.compile(r"Stage (\d+) - ")
_FRAMES = re.compile(r"\n(?:[ ].*\n)+")  # the text after the last frames is the error
_TRACEBACK = "traceback: Traceback"  # in Ray's error if a worker fails to unpickle
_MODULE = (
    "set runtime_env={'py_modules': ['path/of/module']} or {'working_dir': 'path'} on the stage to send the module to "
    "the workers, which do not have this process's sys.path; or install it on all nodes"
)
_CRASHED = "WORKER_DIED"  # Ray's reason for an actor that died without being killed; Xenna ends actors by killing them


def explain(
    broken: Exception | None, feed: ReportReader, workers: Sequence[WorkerEntry], groups: Sequence[StageGroup]
) -> CuratorError:
    """Return the stage's own error if there is one, otherwise an error that names the worker that died.

    Args:
        broken: The exception that Xenna raised, if any.
        feed: The reports of the workers.
        workers: The workers that signed in.
        groups: The groups of stages.
    """
    if feed.failed_batch is not None and feed.failed_batch.error is not None:
        return rebuild_error(feed.failed_batch.error, feed.failed_batch.stage_name)
    if isinstance(feed.error, CuratorError):
        return feed.error
    reason: BaseException | None = feed.error or broken
    if broken is not None and feed.error is None:
        text = " ".join(str(cause) for cause in _causes(broken))
        for report in feed.failed_setups.values():
            if report.error is not None and (report.worker_id in text or report.stage_name in text):
                return rebuild_error(report.error, report.stage_name, "in setup")
        if (unread := _unread(broken, text, groups)) is not None:
            return unread
        if any(isinstance(cause, WORKER_DEATHS) for cause in _causes(broken)):
            died = _worker_died(next((worker for worker in workers if worker.actor_id in text), None), groups)
            died.__cause__ = broken
            return died
    error = ClusterError(
        f"Xenna gave up: {type(reason).__name__}: {reason}",
        expected="a run that completes",
        hint="run with verbose=True to see Xenna's log",
    )
    error.__cause__ = reason
    return error


def _unread(broken: Exception, text: str, groups: Sequence[StageGroup]) -> ClusterError | None:
    """Return the error of a worker that could not unpickle its stages or a task, which a new worker cannot either."""
    for cause in _causes(broken):
        is_creation = getattr(cause, "actor_init_failed", False)
        if not (is_creation or (isinstance(cause, ray.exceptions.RaySystemError) and _TRACEBACK in str(cause))):
            continue
        why = _FRAMES.split(str(cause))[-1].strip()
        named = _XENNAS_NAME.search(text)
        is_module = why.startswith(("ModuleNotFoundError", "ImportError"))
        error = ClusterError(
            f"a worker cannot {'be set up' if is_creation else 'read a task'}: {why}",
            stage=groups[int(named[1])].name if named and int(named[1]) < len(groups) else None,
            expected="modules that every worker can import" if is_module else "objects that every worker can unpickle",
            hint=_MODULE if is_module else "see the worker's traceback above this one",
        )
        error.__cause__ = broken
        return error
    return None


def _causes(exc: BaseException | None) -> Iterator[BaseException]:
    while exc is not None:
        yield exc
        if isinstance(exc, ray.exceptions.RayTaskError) and isinstance(exc.cause, BaseException):
            yield exc.cause
        exc = exc.__cause__ or exc.__context__


def explain_loss(lost: Sequence[str], workers: Sequence[WorkerEntry], groups: Sequence[StageGroup]) -> RunError | None:
    """Return an error for the worker whose crash lost tasks, if Xenna continued without them; None if none crashed.

    Xenna 0.5 gives up a batch after it has killed four workers, and can then end the run as if it had succeeded.

    Args:
        lost: Descriptions of the missing tasks.
        workers: The workers that signed in.
        groups: The groups of stages.
    """
    job = ray.get_runtime_context().get_job_id()
    try:
        actors = list_actors(filters=[("job_id", "=", job), ("state", "=", "DEAD")], limit=10_000, detail=True)
    except Exception:  # the caller reports the lost tasks in any case
        logger.debug("Ray's state API did not answer", exc_info=True)
        return None
    crashed = {actor.actor_id for actor in actors if _has_crashed(actor.death_cause or {})}
    dead = next((worker for worker in workers if worker.actor_id in crashed), None)
    return None if dead is None else _worker_died(dead, groups, f", and Xenna gave up on it: {'; '.join(lost)}")


def _has_crashed(death_cause: Mapping[str, Any]) -> bool:
    context = death_cause.get("actor_died_error_context") or {}
    return context.get("reason") == _CRASHED or bool(death_cause.get("oom_context"))


def _worker_died(dead: WorkerEntry | None, groups: Sequence[StageGroup], and_then: str = "") -> RunError:
    who = f"worker {dead.worker_id} (process {dead.pid} on node {dead.node_id[:8]}) died" if dead else "a worker died"
    return WorkerDiedError(
        f"{who} while it had work{and_then}",
        stage=groups[dead.group].name if dead else None,
        expected="workers that live until their work is done",
        hint="check for a crash in native code or the system's out-of-memory killer (dmesg), "
        "or give the stage more memory; on Python 3.12 and later, Xenna replaces dead workers",
    )
