# SPDX-License-Identifier: Apache-2.0
"""Traces every run of a program that contains no tracing code.

    opentelemetry-instrument --exporter_otlp_protocol http/protobuf python my_pipeline.py

This needs the extra ``curator-otel[instrument]`` and an exporter. The extra ``otlp`` has the exporter for OTLP over
HTTP; select it with the option shown, because OpenTelemetry's distribution defaults to gRPC.
``opentelemetry-instrument`` sets up the SDK from the ``OTEL_*`` variables, and the SDK generates the ids with Python's
`random`; `curator_otel.sdk` is not involved. ``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=curator`` turns the tracing of
runs off.

Processes that the program starts, including an executor's workers, inherit the instrumentation, and each sets up an
SDK, as in any other program. Only the driver reports runs; the workers send nothing about them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]  # untyped

from curator_core import watch_all_runs
from curator_otel.observer import OTelObserver

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

__all__ = ["CuratorInstrumentor"]


class CuratorInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Makes an `OTelObserver` watch every run of this process, on any executor.

    The class is a singleton: each call returns the same object. ``opentelemetry-instrument`` finds it automatically.
    A program that sets up an SDK itself can call:

        CuratorInstrumentor().instrument()

    ``instrument`` takes the same arguments as `OTelObserver`; without providers, it uses the global ones.
    ``uninstrument`` ends the instrumentation. A run that gets its own `OTelObserver` is only watched by that one.
    """

    _undo: Callable[[], None] | None = None

    def instrumentation_dependencies(self) -> Collection[str]:
        """Return no dependencies beyond those of this package."""
        return ()

    def _instrument(self, **kwargs: Any) -> None:
        self._undo = watch_all_runs(OTelObserver(**kwargs))

    def _uninstrument(self, **kwargs: Any) -> None:
        if self._undo is not None:
            self._undo()
            self._undo = None
