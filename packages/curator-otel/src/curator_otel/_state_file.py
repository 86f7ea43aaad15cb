# SPDX-License-Identifier: Apache-2.0
"""A small file for each run, from which its trace can be closed if the driver is killed.

Open spans are never exported. The file has their current state: their ids, the totals of the stages, and the windows
that are open or may not have been sent yet. It contains no payloads and no error messages.
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
from curator_core.observers import RunInfo, StageInfo, local_path
from curator_otel._trace.spans import SpanIds, TraceSettings
from curator_otel._trace.totals import SUMS, StageActivity
from curator_otel._trace.windows import Window
from curator_otel._trace.writer import NO_PARENT

if TYPE_CHECKING:
    from os import PathLike

    from opentelemetry.context import Context

__all__ = ["Detail", "RunState", "StateFile", "check_directory", "read_state"]

_VERSION = 1
_SUFFIX = ".curator-trace.json"
_ENDED = ("Z", "X", "x")  # ended, but its parent did not wait for it yet


class StateFile:
    """Writes the snapshot file of one run, which each snapshot replaces.

    Args:
        directory: The directory of the file; the file is named after the run.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory
        self._head: dict[str, Any] = {}

    def begin(self, run: RunInfo, settings: TraceSettings, parent: Context, span_id: int) -> None:
        """Set the values that stay the same during the run.

        Args:
            run: The run.
            settings: How the run is traced.
            parent: The parent context of the run's span.
            span_id: The id of the run's span, which is unique if several observers watch the run.
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
        """Replace the file atomically: readers see the old or the new version, never a partial one."""
        told = self._head | {"at_unix_ns": time.time_ns(), "state": state, "totals": totals}
        self._directory.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_suffix(".part")
        draft.write_text(json.dumps(told), encoding="utf-8")
        draft.replace(self._path)

    def remove(self) -> None:
        """Remove the file, because the run has closed its trace itself."""
        for path in (self._path, self._path.with_suffix(".part")):
            path.unlink(missing_ok=True)


class Detail(NamedTuple):
    """An open detail trace.

    Attributes:
        stage: The index of its stage.
        window: The number of its window.
        ids: The ids of the trace and its first span.
        times: When it began, and when its last batch ended, in Unix nanoseconds.
    """

    stage: int
    window: int
    ids: tuple[int, int]
    times: tuple[int, int]


@dataclass(frozen=True, slots=True)
class RunState:
    """The content of a snapshot file.

    Attributes:
        run: The run.
        settings: How the run was traced.
        parent: The parent context of the run's span.
        at_unix_ns: When the file was written.
        totals: The totals of each stage at that time.
        ids: The ids of the open spans.
        windows: By stage, the windows that were closed last, and the open one.
        details: The open detail traces: see `DetailTraces.state`.
    """

    run: RunInfo
    settings: TraceSettings
    parent: Context
    at_unix_ns: int
    totals: list[StageActivity]
    ids: SpanIds
    windows: list[list[Window]]
    details: list[Detail]


def read_state(path: str | PathLike[str]) -> RunState:
    """Read the snapshot of a killed driver.

    Raises:
        DataError: The file cannot be read, is not a snapshot, or belongs to a run that is still in progress.
    """
    try:
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
        if raw["version"] != _VERSION:
            raise _not_ours(path, f"version {raw['version']!r}")
        if raw["process"]["started"] and raw["process"] == _process(raw["process"]["pid"]):
            raise DataError(
                "the run is still in progress and will close its trace itself",
                field=str(path),
                given=f"process {raw['process']['pid']} of this machine, which is alive",
                expected="the snapshot of a run whose driver was killed",
                hint="wait until the process ends, or kill it",
            )
        return _parse(raw)
    except OSError as exc:
        raise DataError(
            f"the snapshot cannot be read: {exc.strerror or exc}",
            field=str(path),
            expected="a file that an OTelObserver with snapshots=… left behind",
            hint="check the path: only a killed driver leaves a snapshot, and other runs remove it at their end",
        ) from exc
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise _not_ours(path, f"{type(exc).__name__}: {exc}") from exc


def _not_ours(path: str | PathLike[str], why: str) -> DataError:
    return DataError(
        f"not a snapshot of a run ({why})",
        field=str(path),
        expected=f"a file *{_SUFFIX} of this version of curator-otel",
        hint="pass the path of the file that the killed run left in its snapshots directory",
    )


def _parse(raw: dict[str, Any]) -> RunState:
    run = dict(raw["run"])
    run["stages"] = tuple(StageInfo(*stage) for stage in run["stages"])
    state = raw["state"]
    stages = state["stages"]
    if not len(run["stages"]) == len(stages) == len(raw["totals"]) == len(state["left_out"]):
        raise ValueError("different numbers of stages")
    return RunState(
        run=RunInfo(**run),
        settings=TraceSettings(*raw["settings"]),
        parent=TraceContextTextMapPropagator().extract(raw["parent"], context=NO_PARENT),
        at_unix_ns=int(raw["at_unix_ns"]),
        totals=[StageActivity.of(values) for values in raw["totals"]],
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
        raise ValueError("invalid id")
    return number


def _ids(given: Any) -> tuple[int, int]:
    trace_id, span_id = given
    return _id(trace_id, 128), _id(span_id, 64)


def _windows(stage: dict[str, Any] | None) -> list[Window]:
    if stage is None:
        return []
    found = [_window(raw) for raw in stage["closed"]]
    if stage["open"] is not None and (last := _window(stage["open"])).number:  # the first window has no span
        found.append(last)
    return found


def _window(raw: Any) -> Window:
    span_id, number, start, end, workers, slowest, sums = raw
    totals = {name: int(sums[name]) for name in SUMS}
    return Window(_id(span_id, 64), int(number), int(start), int(end), int(workers), int(slowest), totals)


def _detail(raw: dict[str, Any], num_stages: int) -> Detail:
    start, end = raw["times"]
    if not 0 <= raw["stage"] < num_stages:
        raise ValueError("details of an unknown stage")
    return Detail(int(raw["stage"]), int(raw["window"]), _ids(raw["ids"]), (int(start), int(end)))


def _this_process() -> dict[str, Any]:
    return _process(os.getpid())


def _process(pid: int) -> dict[str, Any]:
    """Return values that identify a process, even if a later one gets the same pid.

    The start is empty if it is unknown or the process has ended.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        state, *values = stat.rpartition(")")[2].split()
        started = "" if state in _ENDED else values[18]  # in clock ticks since the machine was started
    except (OSError, IndexError):
        started = ""
    return {"host": socket.gethostname(), "pid": pid, "started": started}


def check_directory(given: Any) -> Path | None:
    """Return the directory for snapshots.

    Raises:
        ConfigurationError: The value is not a path, or a file has that path.
    """
    if given is None:
        return None
    path = local_path(given, "snapshots")
    if path.exists() and not path.is_dir():
        raise ConfigurationError(
            "invalid directory for snapshots",
            field="snapshots",
            given=given,
            expected="the path of a directory, which is created if it is missing",
            hint="pass for example snapshots='traces'",
        )
    return path
