# SPDX-License-Identifier: Apache-2.0
"""Ends the workers of a run, so that none outlives it: on any version of Xenna, after any kind of end."""

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

    from curator_xenna.coordinator import WorkerEntry

__all__ = ["actors_of_this_job", "end_workers"]

logger = logging.getLogger(__name__)

_GRACE_S = 2.0  # for a worker that was told to end, before it is killed
_SIGNAL_S = 0.1  # for one that Ray is to see end by a signal, and not as a crash: Xenna's monitors do not heed it
_START_S = 20.0  # for an actor that is starting to have a process, or to be given up by Ray
_POLL_S = 0.02
_CALL_TIMEOUT_S = 30.0


def end_workers(workers: Iterable[WorkerEntry], earlier: Container[str] = ()) -> None:
    """End all workers of a run, whether they signed in or are only starting. Never raises.

    Args:
        workers: Those that signed in.
        earlier: Ids of actors that were there before the run and are none of its.
    """
    try:
        _end_workers(workers, earlier)
    except Exception:  # the cluster may be gone, and what ended the run is what the caller must see
        logger.warning("the workers of the run could not all be ended", exc_info=True)


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
        time.sleep(_POLL_S)  # an actor that is starting has no process yet that could be ended


def actors_of_this_job() -> dict[str, Any]:
    """Xenna's actors of this driver, by id: also those that Ray calls dead, which on 0.2 and 0.3 may run on."""
    job = ray.get_runtime_context().get_job_id()
    try:
        actors = list_actors(filters=[("job_id", "=", job)], limit=10_000, timeout=10, raise_on_missing_output=False)
    except Exception:
        logger.debug("Ray's state API does not answer", exc_info=True)
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
        logger.warning("%d nodes did not say whether their workers have ended", len(late))


def _end_processes(told: list[int], untold: list[int]) -> None:
    """Wait until these Ray workers have ended, and kill those that do not.

    Args:
        told: Processes that Ray has told to end.
        untold: Processes that nobody has told: Xenna's monitors on 0.2 and 0.3, and workers that were
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
    """Whether the process is there and is a Ray worker: its pid may have gone to another one by now."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::")
    except OSError:
        return False
