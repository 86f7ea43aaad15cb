# SPDX-License-Identifier: Apache-2.0
"""A small file beside a run, from which its trace can be closed should the driver be killed.

Spans that have begun and not ended are never exported. The file holds what they would say now: their ids, the totals of
the stages, and the windows that are open or may not have been sent yet. No payloads, no errors' messages.
"""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from curator_core import ConfigurationError, DataError
from curator_core.observers import RunInfo, StageInfo
from curator_otel.config import as_path
from curator_otel.spans import SpanIds, TraceSettings
from curator_otel.totals import SUMS, StageTotals
from curator_otel.windows import Window
from curator_otel.writer import NO_PARENT

if TYPE_CHECKING:
    from os import PathLike

    from opentelemetry.context import Context

__all__ = ["Detail", "Snapshot", "Snapshots", "check_directory", "read_snapshot"]

_VERSION = 1
_SUFFIX = ".curator-trace.json"


class Snapshots:
    """The file of one run, written anew every time.

    Args:
        directory: Where it goes; the file is named after the run.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory
        self._head: dict[str, Any] = {}

    def begin(self, run: RunInfo, settings: TraceSettings, parent: Context, span_id: int) -> None:
        """The run begins.

        Args:
            run: The run.
            settings: How it is traced.
            parent: The context that its span is a child in.
            span_id: That of its span: another observer of the same run has another one.
        """
        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier, context=parent)
        self._path = self._directory / f"{run.run_id}-{span_id:016x}{_SUFFIX}"
        self._head = {
            "version": _VERSION,
            "process": _this_process(),
            "run": {
                "run_id": run.run_id,
                "pipeline_name": run.pipeline_name,
                "executor_name": run.executor_name,
                "stages": [list(stage) for stage in run.stages],
                "start_unix_ns": run.start_unix_ns,
                "num_source_tasks": run.num_source_tasks,
            },
            "settings": list(settings),
            "parent": carrier,
        }

    def write(self, state: dict[str, Any], totals: list[dict[str, int]]) -> None:
        """Replace the file: whoever reads it finds the old one or the new one, and never a part."""
        told = self._head | {"at_unix_ns": time.time_ns(), "state": state, "totals": totals}
        self._directory.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_suffix(".part")
        draft.write_text(json.dumps(told), encoding="utf-8")
        draft.replace(self._path)

    def remove(self) -> None:
        """The run has ended well enough to close its own trace."""
        for path in (self._path, self._path.with_suffix(".part")):
            path.unlink(missing_ok=True)


class Detail(NamedTuple):
    """A trace of details that had begun.

    Attributes:
        stage: The stage's index.
        window: The number of its window.
        ids: Those of the trace and its first span.
        times: When it began, and how far it had come, in nanoseconds of Unix time.
    """

    stage: int
    window: int
    ids: tuple[int, int]
    times: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a file holds.

    Attributes:
        run: The run.
        settings: How it was traced.
        parent: The context that its span is a child in.
        at_unix_ns: When the file was written.
        totals: What each stage had done by then.
        ids: The spans that had begun.
        windows: By stage, those that were closed last, and the one that was open.
        details: Traces of details whose first span had begun: see `DetailTraces.state`.
    """

    run: RunInfo
    settings: TraceSettings
    parent: Context
    at_unix_ns: int
    totals: list[StageTotals]
    ids: SpanIds
    windows: list[list[Window]]
    details: list[Detail]


def read_snapshot(path: str | PathLike[str]) -> Snapshot:
    """Read what a driver left behind.

    Raises:
        DataError: The file cannot be read, is no such snapshot, or its run goes on.
    """
    try:
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
        if raw["version"] != _VERSION:
            raise _not_ours(path, f"version {raw['version']!r}")
        if raw["process"]["started"] and raw["process"] == _process(raw["process"]["pid"]):
            raise DataError(
                "this run goes on: it will close its trace itself",
                field=str(path),
                given=f"process {raw['process']['pid']} of this machine, which is alive",
                expected="the snapshot of a run whose driver was killed",
                hint="wait for its end, or kill it",
            )
        return _parse(raw)
    except OSError as exc:
        raise DataError(
            f"the snapshot cannot be read: {exc.strerror or exc}",
            field=str(path),
            expected="a file that an OTelObserver with snapshots=… left behind",
            hint="runs that end remove theirs: only a killed driver leaves one",
        ) from exc
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise _not_ours(path, f"{type(exc).__name__}: {exc}") from exc


def _not_ours(path: str | PathLike[str], why: str) -> DataError:
    return DataError(
        f"this is no snapshot of a run ({why})",
        field=str(path),
        expected=f"a file *{_SUFFIX} of this version of curator-otel",
        hint="give the path of the file that the killed run left in the directory of its snapshots",
    )


def _parse(raw: dict[str, Any]) -> Snapshot:
    run = dict(raw["run"])
    run["stages"] = tuple(StageInfo(*stage) for stage in run["stages"])
    state = raw["state"]
    stages = state["stages"]
    if not len(run["stages"]) == len(stages) == len(raw["totals"]) == len(state["left_out"]):
        raise ValueError("its parts are of different numbers of stages")
    return Snapshot(
        run=RunInfo(**run),
        settings=TraceSettings(*raw["settings"]),
        parent=TraceContextTextMapPropagator().extract(raw["parent"], context=NO_PARENT),
        at_unix_ns=int(raw["at_unix_ns"]),
        totals=[StageTotals.of(values) for values in raw["totals"]],
        ids=SpanIds(
            _ids(state["root"]),
            [None if stage is None else (_id(stage["span"], 64), int(stage["start"])) for stage in stages],
            [int(count) for count in state["left_out"]],
        ),
        windows=[_windows(stage) for stage in stages],
        details=[_detail(detail, len(stages)) for detail in state["details"]],
    )


def _id(given: Any, bits: int) -> int:
    number = int(given)
    if not 0 < number < 2**bits:
        raise ValueError("an id is none")
    return number


def _ids(given: Any) -> tuple[int, int]:
    trace_id, span_id = given
    return _id(trace_id, 128), _id(span_id, 64)


def _windows(stage: dict[str, Any] | None) -> list[Window]:
    if stage is None:
        return []
    found = [_window(raw) for raw in stage["closed"]]
    if stage["open"] is not None and (last := _window(stage["open"])).number:  # a stage within its first has none
        found.append(last)
    return found


def _window(raw: Any) -> Window:
    span_id, number, start, end, workers, slowest, sums = raw
    totals = {name: int(sums[name]) for name in SUMS}
    return Window(_id(span_id, 64), int(number), int(start), int(end), int(workers), int(slowest), totals)


def _detail(raw: dict[str, Any], num_stages: int) -> Detail:
    start, end = raw["times"]
    if not 0 <= raw["stage"] < num_stages:
        raise ValueError("it has details of a stage that is none")
    return Detail(int(raw["stage"]), int(raw["window"]), _ids(raw["ids"]), (int(start), int(end)))


def _this_process() -> dict[str, Any]:
    return _process(os.getpid())


def _process(pid: int) -> dict[str, Any]:
    """What tells a process from all others, also from a later one with its number; no start where it is not known."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        started = stat.rpartition(")")[2].split()[19]  # in ticks since the machine was started
    except (OSError, IndexError):
        started = ""
    return {"host": socket.gethostname(), "pid": pid, "started": started}


def check_directory(given: Any) -> Path | None:
    """The directory for snapshots.

    Raises:
        ConfigurationError: It is no path, or a file is in its place.
    """
    if given is None:
        return None
    path = as_path(given)
    if path is None or (path.exists() and not path.is_dir()):
        raise ConfigurationError(
            "snapshots cannot be kept there",
            field="snapshots",
            given=given,
            expected="the path of a directory, which is made where it is missing",
            hint="for example snapshots='traces'",
        )
    return path
