# SPDX-License-Identifier: Apache-2.0
"""A task's history as it travels: one row for each batch that it went through, small enough to go with every task."""

from __future__ import annotations

from functools import lru_cache
from sys import intern
from typing import Any, NamedTuple, TypeAlias

from curator_core.perf import BYTES_PER_MB, StagePerfStats

__all__ = ["PerfRow", "Place", "stats_of"]

_CACHED = 4096  # about the number of workers that a process encounters; evicted entries are rebuilt


class Place(NamedTuple):
    """The place where batches run: a worker of a stage.

    Each place is a single object per process, even after unpickling, so that the long ids of workers and nodes are
    pickled once per task, or once per bundle of tasks, no matter how often they occur in its history.
    """

    stage_name: str
    worker_id: str
    node_id: str

    @classmethod
    def of(cls, stage_name: str, worker_id: str, node_id: str) -> Place:
        """Return the single object for these names."""
        return _place(stage_name, worker_id, node_id)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpacked, (self.stage_name, _pack(self.worker_id), _pack(self.node_id))


PerfRow: TypeAlias = tuple[Place, int, int, int, int, dict[str, "float | str"], int, int, str]
"""A batch: place, duration, idle time, bytes, items, metrics, start, startup time, batch id; times in nanoseconds.
A plain tuple, because ten dataclasses take ten times as long to pickle as ten tuples."""


def stats_of(row: PerfRow) -> StagePerfStats:
    """Return the record that users see."""
    place, duration_ns, idle_ns, in_bytes, num_items, metrics, start_unix_ns, startup_ns, batch_id = row
    return StagePerfStats(
        stage_name=place.stage_name,
        process_time=duration_ns / 1e9,
        actor_idle_time=idle_ns / 1e9,
        input_data_size_mb=in_bytes / BYTES_PER_MB,
        num_items_processed=num_items,
        custom_metrics=metrics,
        start_time_unix_ns=start_unix_ns,
        startup_time=startup_ns / 1e9,
        worker_id=place.worker_id,
        node_id=place.node_id,
        batch_id=batch_id,
    )


@lru_cache(_CACHED)
def _place(stage_name: str, worker_id: str, node_id: str) -> Place:
    return Place(intern(stage_name), intern(worker_id), intern(node_id))


@lru_cache(_CACHED)
def _unpacked(stage_name: str, worker_id: str | bytes, node_id: str | bytes) -> Place:
    return _place(stage_name, _unpack(worker_id), _unpack(node_id))


@lru_cache(_CACHED)
def _pack(name: str) -> str | bytes:
    """Halve the length of the hex numbers and UUIDs that engines use as names."""
    try:
        packed = bytes.fromhex(name.replace("-", ""))
    except ValueError:
        return name
    packed = (b"-" if "-" in name else b"+") + packed
    return packed if _unpack(packed) == name else name


def _unpack(name: str | bytes) -> str:
    if isinstance(name, str):
        return name
    digits = name[1:].hex()
    if name[:1] == b"+":
        return digits
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
