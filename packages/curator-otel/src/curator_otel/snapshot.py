# SPDX-License-Identifier: Apache-2.0
"""A small file beside a run, from which its trace can be closed should the driver be killed.

Spans that have begun and not ended are never exported. The file holds what they would say now: their ids, the totals of
the stages, and the windows that are open or may not have been sent yet. No payloads, no errors' messages.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from curator_core.errors import ConfigurationError, DataError
from curator_core.report import RunInfo, StageInfo
from curator_otel.spans import SpanIds, TraceSettings
from curator_otel.totals import StageTotals
from curator_otel.windows import Window

if TYPE_CHECKING:
    from os import PathLike

__all__ = ["Snapshot", "Snapshots", "check_directory", "read_snapshot"]

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

    def begin(self, run: RunInfo, settings: TraceSettings, parent: Context) -> None:
        """The run begins."""
        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier, context=parent)
        self._path = self._directory / f"{run.run_id}{_SUFFIX}"
        self._head = {
            "version": _VERSION,
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
        windows: By stage, windows with the ids of their spans; 0 for those that were open.
    """

    run: RunInfo
    settings: TraceSettings
    parent: Context
    at_unix_ns: int
    totals: list[StageTotals]
    ids: SpanIds
    windows: list[list[tuple[int, Window]]]


def read_snapshot(path: str | PathLike[str]) -> Snapshot:
    """Read what a driver left behind.

    Raises:
        DataError: The file cannot be read, or is no such snapshot.
    """
    try:
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
        if raw["version"] != _VERSION:
            raise _not_ours(path, f"version {raw['version']!r}")
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
    return Snapshot(
        run=RunInfo(**run),
        settings=TraceSettings(*raw["settings"]),
        parent=TraceContextTextMapPropagator().extract(
            raw["parent"], context=trace.set_span_in_context(trace.INVALID_SPAN, Context())
        ),
        at_unix_ns=int(raw["at_unix_ns"]),
        totals=[StageTotals.of(values) for values in raw["totals"]],
        ids=SpanIds(
            (int(state["root"][0]), int(state["root"][1])),
            [None if stage is None else (int(stage["span"]), int(stage["start"])) for stage in stages],
            [int(count) for count in state["left_out"]],
        ),
        windows=[_windows(stage) for stage in stages],
    )


def _windows(stage: dict[str, Any] | None) -> list[tuple[int, Window]]:
    if stage is None:
        return []
    found = [(int(span_id), Window(*window)) for span_id, *window in stage["closed"]]
    return found if stage["open"] is None else [*found, (0, Window(*stage["open"]))]


def check_directory(given: Any) -> Path | None:
    """The directory for snapshots.

    Raises:
        ConfigurationError: It is no path, or a file is in its place.
    """
    if given is None:
        return None
    path = Path(given) if isinstance(given, str | os.PathLike) and os.fspath(given) else None
    if path is None or (path.exists() and not path.is_dir()):
        raise ConfigurationError(
            "snapshots cannot be kept there",
            field="snapshots",
            given=given,
            expected="the path of a directory, which is made where it is missing",
            hint="for example snapshots='traces'",
        )
    return path
