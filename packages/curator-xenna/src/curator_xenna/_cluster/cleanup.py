# SPDX-License-Identifier: Apache-2.0
"""Ends the workers of a run, so that none outlives it: on all versions of Xenna, however the run ended."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from ray.util.state import list_actors

from curator_xenna.compat import XENNA_ACTOR_CLASSES

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from curator_xenna._session.coordinator import WorkerEntry

__all__ = ["actors_of_this_job", "end_workers"]

logger = logging.getLogger(__name__)

_GRACE_S = 2.0  # between Ray's request to a worker to end and SIGKILL
_SIGNAL_S = 0.1  # between SIGTERM, so that Ray sees no crash, and SIGKILL: Xenna's monitors ignore SIGTERM
_START_S = 20.0  # for a starting actor to get a process, or for Ray to give it up
_POLL_S = 0.02
_CALL_TIMEOUT_S = 30.0


def end_workers(workers: Iterable[WorkerEntry], earlier: Container[str] = ()) -> None:
    """End all workers of a run, including those that are still starting. Never raises.

    Args:
        workers: The workers that signed in.
        earlier: Ids of actors that existed before the run and do not belong to it.
    """
    try:
        _end_workers(workers, earlier)
    except Exception:  # the cluster may be gone, and the caller must see the error that ended the run
        logger.warning("could not end all workers of the run", exc_info=True)


def _end_workers(workers: Iterable[WorkerEntry], earlier: Container[str]) -> None:
    told: defaultdict[str, set[int]] = defaultdict(set)
    for worker in workers:
        told[worker.node_id].add(worker.pid)
        ray.kill(worker.handle)
    deadline = time.monotonic() + _START_S
    while True:
        actors = [actor for actor_id, actor in actors_of_this_job().items() if actor_id not in earlier]
        found: defaultdict[str, set[int]] = defaultdict(set)
        for actor in actors:
            if actor.pid and actor.node_id:
                found[actor.node_id].add(actor.pid)
        _end_everywhere(told, found)
        is_starting = any(not actor.pid and actor.state != "DEAD" for actor in actors)
        if not is_starting or time.monotonic() > deadline:
            return
        time.sleep(_POLL_S)  # a starting actor has no process yet that can be killed


def actors_of_this_job() -> dict[str, Any]:
    """Return Xenna's actors of this driver, by id. Includes dead ones, whose processes may still run on 0.2 and 0.3."""
    job = ray.get_runtime_context().get_job_id()
    try:
        actors = list_actors(filters=[("job_id", "=", job)], limit=10_000, timeout=10, raise_on_missing_output=False)
    except Exception:
        logger.debug("Ray's state API did not answer", exc_info=True)
        return {}
    return {actor.actor_id: actor for actor in actors if actor.class_name in XENNA_ACTOR_CLASSES}


def _end_everywhere(told: defaultdict[str, set[int]], found: defaultdict[str, set[int]]) -> None:
    here = ray.get_runtime_context().get_node_id()
    asked = []
    for node_id in {*told, *found}:
        untold = sorted(found[node_id] - told[node_id])
        if node_id == here:
            _end_processes(sorted(told[node_id]), untold)
            continue
        there = NodeAffinitySchedulingStrategy(node_id, soft=False)
        end = ray.remote(_end_processes).options(num_cpus=0, scheduling_strategy=there)
        asked.append(end.remote(sorted(told[node_id]), untold))
    _, late = ray.wait(asked, num_returns=len(asked), timeout=_CALL_TIMEOUT_S) if asked else ([], [])
    if late:
        logger.warning("%d nodes did not confirm that their workers have ended", len(late))


def _end_processes(told: list[int], untold: list[int]) -> None:
    """Wait until these Ray workers have ended, and kill those that do not end in time.

    Args:
        told: Processes that Ray has asked to end.
        untold: Processes that were not asked yet: Xenna's monitors on 0.2 and 0.3, and workers that were
            still starting.
    """
    for pid in untold:
        _signal(pid, signal.SIGTERM)
    now = time.monotonic()
    left = {**dict.fromkeys(told, now + _GRACE_S), **dict.fromkeys(untold, now + _SIGNAL_S)}
    while left := {pid: deadline for pid, deadline in left.items() if _is_ray_worker(pid)}:
        for pid in [pid for pid, deadline in left.items() if time.monotonic() > deadline]:
            _signal(pid, signal.SIGKILL)
            del left[pid]
        time.sleep(_POLL_S)


def _signal(pid: int, number: signal.Signals) -> None:
    if _is_ray_worker(pid):
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _is_ray_worker(pid: int) -> bool:
    """Whether the process exists and is a Ray worker: another process may have its pid by now."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::")
    except OSError:
        return False
