# SPDX-License-Identifier: Apache-2.0
"""Reads from a trace file how fast stages were, for planning the capacity of a cluster. Does not need OpenTelemetry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from curator_core import DataError, StageSpeed
from curator_otel import conventions as names
from curator_otel.offline.trace_file import read_trace

if TYPE_CHECKING:
    from os import PathLike

    from curator_otel.offline.trace_file import FileSpan

__all__ = ["read_speeds"]


def read_speeds(path: str | PathLike[str], run_id: str | None = None) -> dict[str, StageSpeed]:
    """Return the speed of each stage in a run of a trace file, as in `RunResult.speeds`.

    Args:
        path: A file that ``configure(json_file=…)`` wrote.
        run_id: The id of the run; None for the last one that has ended.

    Raises:
        DataError: The file cannot be read, is not a trace, or does not contain the run.
    """
    # The span of a run gets its number of stages when the run ends, or when `recover` closes it.
    ended = [root for root in read_trace(Path(path)) if names.STAGES in root.attributes]
    run = next((root for root in reversed(ended) if run_id in (None, root.attributes.get(names.RUN_ID))), None)
    if run is None:
        raise DataError(
            "the trace file does not contain the run",
            field=str(path),
            given=run_id,
            expected=f"one of the runs in it that have ended: {[root.attributes.get(names.RUN_ID) for root in ended]}",
            hint="trace a run with configure(json_file=…); if its driver was killed, call recover() first",
        )
    stages = [span for span in run.children if span.is_stage and span.attributes.get(names.TASKS_IN)]
    stages.sort(key=lambda span: span.attributes[names.STAGE_INDEX])
    return {span.attributes[names.STAGE_NAME]: _speed(span) for span in stages}


def _speed(span: FileSpan) -> StageSpeed:
    totals = (span.attributes.get(name, 0) for name in (names.PROCESS_TIME, names.CPU_TIME, names.TASKS_OUT))
    return StageSpeed(*(total / span.attributes[names.TASKS_IN] for total in totals))
