# SPDX-License-Identifier: Apache-2.0
"""Performance of one batch, as attached to its output tasks."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import lru_cache
from sys import intern
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["BYTES_PER_MB", "PerfRow", "Place", "StageMetrics", "StagePerfStats", "stats_of"]


BYTES_PER_MB = 1_000_000  # SI megabytes, as `input_data_size_mb` says


@dataclass(frozen=True, slots=True)
class StagePerfStats:
    """Performance of one batch in one stage. All output tasks of the batch share the record.

    Records can be added, and ``sum()`` works: times, sizes, items, and custom metrics are added, the start is the
    earlier one, and an id is kept only if both agree.

    Because the tasks of a batch share a record, summing over tasks counts a batch once for each of its
    tasks. The totals of a run are in `RunResult.stages`, which counts every batch once.

    Attributes:
        stage_name: Name of the stage.
        process_time: Seconds in the stage's code.
        actor_idle_time: Seconds that the worker waited for this batch since its last one.
        input_data_size_mb: Input payload in MB (10**6 bytes) if the tasks know their size, otherwise 0.
        num_items_processed: Sum of ``num_items`` over the input tasks.
        custom_metrics: The metrics that the stage recorded through ``self.metrics``; numbers or strings.
        start_time_unix_ns: When the batch began, in nanoseconds since the Unix epoch.
        startup_time: Seconds of the worker's setup and imports; on its first batch only.
        worker_id: The worker.
        node_id: The node that the worker ran on.
        batch_id: The batch; the same in every run on the same input.
    """

    stage_name: str
    process_time: float = 0.0
    actor_idle_time: float = 0.0
    input_data_size_mb: float = 0.0
    num_items_processed: int = 0
    custom_metrics: Mapping[str, float | str] = field(default_factory=dict, hash=False)
    start_time_unix_ns: int = 0
    startup_time: float = 0.0
    worker_id: str = ""
    node_id: str = ""
    batch_id: str = ""

    def __post_init__(self) -> None:
        # Many tasks share the record: it must not change.
        object.__setattr__(self, "custom_metrics", MappingProxyType(dict(self.custom_metrics)))

    def __reduce__(self) -> tuple[Any, ...]:
        return StagePerfStats, tuple(self.to_dict().values())

    def __add__(self, other: object) -> StagePerfStats:
        if not isinstance(other, StagePerfStats):
            return NotImplemented

        def same(a: str, b: str) -> str:
            return a if a == b else ""

        starts = [s for s in (self.start_time_unix_ns, other.start_time_unix_ns) if s]
        return StagePerfStats(
            stage_name=same(self.stage_name, other.stage_name),
            process_time=self.process_time + other.process_time,
            actor_idle_time=self.actor_idle_time + other.actor_idle_time,
            input_data_size_mb=self.input_data_size_mb + other.input_data_size_mb,
            num_items_processed=self.num_items_processed + other.num_items_processed,
            custom_metrics=_add_metrics(self.custom_metrics, other.custom_metrics),
            start_time_unix_ns=min(starts, default=0),
            startup_time=self.startup_time + other.startup_time,
            worker_id=same(self.worker_id, other.worker_id),
            node_id=same(self.node_id, other.node_id),
            batch_id=same(self.batch_id, other.batch_id),
        )

    def __radd__(self, other: object) -> StagePerfStats:
        return self if other == 0 else NotImplemented  # the 0 that sum() begins with

    @property
    def end_time_unix_ns(self) -> int:
        """When the batch ended, in nanoseconds since the Unix epoch; 0 if the start is unknown."""
        return self.start_time_unix_ns and self.start_time_unix_ns + round(self.process_time * 1e9)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain values."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return values | {"custom_metrics": dict(self.custom_metrics)}

    def items(self) -> list[tuple[str, float]]:
        """Return only the numbers, as pairs; custom metrics under ``custom.<name>``."""
        numbers: list[tuple[str, float]] = [
            ("process_time", self.process_time),
            ("actor_idle_time", self.actor_idle_time),
            ("input_data_size_mb", self.input_data_size_mb),
            ("num_items_processed", self.num_items_processed),
            ("startup_time", self.startup_time),
        ]
        numbers += [(f"custom.{k}", v) for k, v in self.custom_metrics.items() if not isinstance(v, str)]
        return numbers


def _add_metrics(a: Mapping[str, float | str], b: Mapping[str, float | str]) -> dict[str, float | str]:
    total: dict[str, float | str] = dict(a)
    for name, value in b.items():
        mine = total.get(name)
        both_numbers = not isinstance(value, str) and not isinstance(mine, str) and mine is not None
        total[name] = mine + value if both_numbers else value  # type: ignore[operator]
    return total


class StageMetrics:
    """Metrics that a stage records about its current batch: ``self.metrics`` inside a stage.

    Values belong to one batch. They appear in its report and in the ``custom_metrics`` of its tasks,
    even if the batch fails.
    """

    __slots__ = ("_values",)

    def __init__(self) -> None:
        self._values: dict[str, float | str] = {}

    def add(self, name: str, value: float = 1) -> None:
        """Add to a count, which begins at 0 with each batch."""
        name = str(name)
        mine, more = self._values.get(name, 0), _checked(name, value)
        self._values[name] = more if isinstance(mine, str) or isinstance(more, str) else mine + more

    def set(self, name: str, value: float | str) -> None:
        """Set a value, a number or a short string; the last value in a batch is kept."""
        self._values[str(name)] = _checked(name, value)

    @contextmanager
    def timer(self, name: str) -> Iterator[None]:
        """Add the seconds spent inside the ``with`` block to ``name``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start)

    def go_on(self, values: Mapping[str, float | str]) -> None:
        """Continue with the values that were recorded for the same batch elsewhere."""
        self._values = dict(values)

    def copy_into(self, values: dict[str, float | str]) -> None:
        """Copy the values recorded so far."""
        if self._values:
            values.update(self._values)

    def take(self) -> dict[str, float | str]:
        """Return and reset the values recorded since the last call. Do not modify them: they may be shared."""
        if not self._values:
            return _NOTHING
        values, self._values = self._values, {}
        return values


_PLAIN = (bool, int)
_NOTHING: dict[str, float | str] = {}  # shared: most batches record nothing; never written to


def _checked(name: str, value: Any) -> float | str:
    if isinstance(value, str):
        return str.__str__(value)  # also for members of a str enumeration: reports are made of plain values
    if isinstance(value, int):
        return value if value.__class__ in _PLAIN else int(value)
    try:
        return float(value)  # numbers of numpy and similar libraries
    except (TypeError, ValueError):
        raise TypeError(f"metric {name!r} must be a number or a string, not {type(value).__name__}") from None


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
