# SPDX-License-Identifier: Apache-2.0
"""Closes the trace of a run whose driver was killed."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

from opentelemetry import trace

from curator_otel import conventions as names
from curator_otel.__about__ import __version__
from curator_otel._state_file import read_state
from curator_otel._trace.spans import RunTrace
from curator_otel.observer import SCOPE

if TYPE_CHECKING:
    from os import PathLike

__all__ = ["DriverKilledError", "Recovered", "recover"]

logger = logging.getLogger(__name__)


class DriverKilledError(RuntimeError):
    """The error on the span of a run that `recover` closed; never raised."""


class Recovered(NamedTuple):
    """The result of `recover`.

    Attributes:
        run_id: The id of the run.
        trace_id: The id of its trace, as 32 hex digits; empty if nothing was written.
        batches: The number of batches that the run had reported by the last snapshot.
        is_same_trace: Whether the spans that were exported before are in the same trace.
    """

    run_id: str
    trace_id: str
    batches: int
    is_same_trace: bool


def recover(path: str | PathLike[str], tracer_provider: trace.TracerProvider | None = None) -> Recovered:
    """Write the spans that a killed driver had begun and not ended: the run, its stages, and their last windows.

    The spans have the values of the last snapshot, up to two seconds before the end, and say that the driver was
    killed. Windows that may not have been sent are written again with the same ids, which back ends deduplicate. So
    calling this twice duplicates nothing. The file is not removed.

        with configure():
            recover("traces/4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7.curator-trace.json")

    Args:
        path: The snapshot: see `OTelObserver`.
        tracer_provider: The provider that creates the spans; None for the global one. Only a provider from `configure`
            can give them the ids that the run's other spans have as parents.

    Raises:
        DataError: The file cannot be read, is not a snapshot, or belongs to a run that is still in progress.
    """
    found = read_state(path)
    tracer = trace.get_tracer(SCOPE, __version__, tracer_provider)
    written = RunTrace(tracer, found.run, found.totals, found.parent, found.settings, found.ids)
    for index, windows in enumerate(found.windows):
        for window in windows:
            written.write_window(index, window)
    for detail in found.details:
        written.write_detail(detail.stage, detail.window, detail.ids, detail.times)
    written.end_stages()
    written.root.set_attributes({names.RUN_STATE: "recovered"})
    written.end(
        found.at_unix_ns, error=DriverKilledError("the driver was killed; the values are those of the last snapshot")
    )
    context = written.root.get_span_context()
    same = (context.trace_id, context.span_id) == found.ids.root
    if written.recording and not same:
        logger.warning(
            "the recovered spans are in a separate trace: only an SDK that curator_otel.configure() set up can give "
            "them the ids of the spans that were exported before"
        )
    return Recovered(found.run.run_id, written.trace_id, sum(did.batches for did in found.totals), same)
