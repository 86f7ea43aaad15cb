# SPDX-License-Identifier: Apache-2.0
"""Traces every run of a program that says nothing of tracing.

    opentelemetry-instrument --exporter_otlp_protocol http/protobuf python my_pipeline.py

It needs the extra ``curator-otel[instrument]``, and an exporter: ``otlp`` has that for OTLP over HTTP, which has to be
named as above, since OpenTelemetry's distribution asks for gRPC. The SDK is set up by ``opentelemetry-instrument``
from the ``OTEL_*`` variables and makes the ids, from Python's `random`: nothing of `curator_otel.setup` takes part.
With ``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=curator`` runs are not traced.

Processes that the program starts, an executor's workers among them, inherit the instrumentation and set an SDK up
each, as those of any program do. Runs are reported by the driver alone: of them, the workers send nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]  # it has no types

from curator_core import watch_all_runs
from curator_otel.observer import OTelObserver

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

__all__ = ["CuratorInstrumentor"]


class CuratorInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Has an `OTelObserver` watch every run of this process, on any executor.

    There is one a process, however often the class is called. ``opentelemetry-instrument`` finds it by itself;
    a program with an SDK of its own can say:

        CuratorInstrumentor().instrument()

    ``instrument`` takes what `OTelObserver` takes; without providers, the global ones are used. ``uninstrument``
    ends it. A run that is given an `OTelObserver` is watched by that one only.
    """

    _undo: Callable[[], None] | None = None

    def instrumentation_dependencies(self) -> Collection[str]:
        """Nothing beside what this package needs anyway."""
        return ()

    def _instrument(self, **kwargs: Any) -> None:
        self._undo = watch_all_runs(OTelObserver(**kwargs))

    def _uninstrument(self, **kwargs: Any) -> None:
        if self._undo is not None:
            self._undo()
            self._undo = None
