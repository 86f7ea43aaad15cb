# SPDX-License-Identifier: Apache-2.0
"""Ends the workers of a run, so that none outlives it: on any version of Xenna, after any kind of end."""

from __future__ import annotations

import gc
import logging
import os
import signal
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from ray.util.state import list_actors

from curator_xenna.compat import XENNA_ACTOR_CLASSES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from curator_xenna.coordinator import WorkerEntry

__all__ = ["end_workers"]

logger = logging.getLogger(__name__)

_GRACE_S = 5.0  # for a process that was told to end, before it is killed
_POLL_S = 0.02
_CALL_TIMEOUT_S = 30.0


def end_workers(workers: Iterable[WorkerEntry]) -> None:
    """End all workers of this driver's run, whether they signed in or were still starting.

    Args:
        workers: Those that signed in.
    """
    gc.collect()  # Ray ends an actor once the last handle is gone, and Xenna's lie in reference cycles
    pids: dict[str, set[int]] = defaultdict(set)
    for worker in workers:
        pids[worker.node_id].add(worker.pid)
        ray.kill(worker.handle)
    for node_id, found in _actors_of_this_job().items():
        pids[node_id] |= found
    here = ray.get_runtime_context().get_node_id()
    elsewhere = [node_id for node_id in pids if node_id != here]
    asked = [
        ray.remote(_end_processes)
        .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False))
        .remote(sorted(pids[node_id]))
        for node_id in elsewhere
    ]
    _end_processes(sorted(pids[here]))
    _, late = ray.wait(asked, num_returns=len(asked), timeout=_CALL_TIMEOUT_S) if asked else ([], [])
    if late:
        logger.warning("%d nodes did not say whether their workers have ended", len(late))


def _actors_of_this_job() -> Mapping[str, set[int]]:
    """Processes of Xenna's actors, by node: also of those that Ray calls dead, which may run on."""
    found: dict[str, set[int]] = defaultdict(set)
    job = ray.get_runtime_context().get_job_id()
    try:
        actors = list_actors(filters=[("job_id", "=", job)], limit=10_000, timeout=10, raise_on_missing_output=False)
    except Exception:  # noqa: BLE001 - the state API answers from the dashboard, which may be the thing that died
        logger.debug("Ray's state API does not answer", exc_info=True)
        return found
    for actor in actors:
        if actor.class_name in XENNA_ACTOR_CLASSES and actor.pid and actor.node_id:
            found[actor.node_id].add(actor.pid)
    return found


def _end_processes(pids: list[int]) -> None:
    """Wait until these Ray workers have ended, and kill those that do not."""
    deadline = time.monotonic() + _GRACE_S
    left = [pid for pid in pids if _is_ray_worker(pid)]
    while left and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        left = [pid for pid in left if _is_ray_worker(pid)]
    for pid in left:
        print("KILLING", pid, Path(f"/proc/{pid}/cmdline").read_bytes()[:30])
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        logger.debug("worker process %d did not end by itself", pid)


def _is_ray_worker(pid: int) -> bool:
    """Whether the process is there and is a Ray worker: its pid may have gone to another one by now."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::")
    except OSError:
        return False
