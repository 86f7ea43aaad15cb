# SPDX-License-Identifier: Apache-2.0
"""Why a run ended early, in our terms."""

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

    from curator_core.backends import Group
    from curator_xenna.coordinator import WorkerEntry
    from curator_xenna.feed import ReportFeed

__all__ = ["explain", "explain_loss"]

logger = logging.getLogger(__name__)

_XENNAS_NAME = re.compile(r"Stage (\d+) - ")
_FRAMES = re.compile(r"\n(?:[ ].*\n)+")  # what follows the last of them is the error
_TRACEBACK = "traceback: Traceback"  # of a worker that unpickles
_MODULE = (
    "runtime_env={'py_modules': ['path/of/module']} or {'working_dir': 'path'} on the stage brings it to the workers, "
    "which do not have this process's sys.path; or install it on all nodes"
)
_CRASHED = "WORKER_DIED"  # Ray's reason for an actor that nobody killed: those that Xenna ends are killed


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
    reason: BaseException | None = feed.error or broken
    if broken is not None and feed.error is None:
        text = " ".join(str(cause) for cause in _causes(broken))
        for report in feed.failed_setups.values():
            if report.error is not None and (report.worker_id in text or report.stage_name in text):
                return rebuild_error(report.error, report.stage_name, "in set-up")
        if (unread := _unread(broken, text, groups)) is not None:
            return unread
        if any(isinstance(cause, WORKER_DEATHS) for cause in _causes(broken)):
            died = _worker_died(next((worker for worker in workers if worker.actor_id in text), None), groups)
            died.__cause__ = broken
            return died
    error = ClusterError(
        f"Xenna gave up: {type(reason).__name__}: {reason}",
        expected="a run to its end",
        hint="run with verbose=True to see Xenna's log",
    )
    error.__cause__ = reason
    return error


def _unread(broken: Exception, text: str, groups: Sequence[Group]) -> ClusterError | None:
    """What a worker could not read of what it was sent, its stages or a task; it is no better for the next one."""
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
            expected="modules that every worker can import" if is_module else "what unpickles on every worker",
            hint=_MODULE if is_module else "its traceback is shown above this one",
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


def explain_loss(lost: Sequence[str], workers: Sequence[WorkerEntry], groups: Sequence[Group]) -> RunError | None:
    """The worker whose end lost tasks, where Xenna went on without them; None where none crashed.

    Xenna 0.5 gives up a batch after four workers have died of it, and may then end the run as if all were well.

    Args:
        lost: What is missing, in words.
        workers: Those that signed in.
        groups: The groups of stages.
    """
    job = ray.get_runtime_context().get_job_id()
    try:
        actors = list_actors(filters=[("job_id", "=", job), ("state", "=", "DEAD")], limit=10_000, detail=True)
    except Exception:  # that tasks are lost is told all the same
        logger.debug("Ray's state API does not answer", exc_info=True)
        return None
    crashed = {actor.actor_id for actor in actors if _has_crashed(actor.death_cause or {})}
    dead = next((worker for worker in workers if worker.actor_id in crashed), None)
    return None if dead is None else _worker_died(dead, groups, f", and Xenna gave that up: {'; '.join(lost)}")


def _has_crashed(death_cause: Mapping[str, Any]) -> bool:
    context = death_cause.get("actor_died_error_context") or {}
    return context.get("reason") == _CRASHED or bool(death_cause.get("oom_context"))


def _worker_died(dead: WorkerEntry | None, groups: Sequence[Group], and_then: str = "") -> RunError:
    who = f"worker {dead.worker_id} (process {dead.pid} on node {dead.node_id[:8]}) died" if dead else "a worker died"
    return WorkerDiedError(
        f"{who} while it had work{and_then}",
        stage=groups[dead.group].name if dead else None,
        expected="workers that live until their work is done",
        hint="look for a crash in native code or the system's out-of-memory killer (dmesg), "
        "or give the stage more memory; on Python 3.12 and later Xenna replaces dead workers",
    )
