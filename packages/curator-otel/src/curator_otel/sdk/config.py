# SPDX-License-Identifier: Apache-2.0
"""The arguments of `configure` and the settings of the environment, checked and frozen.

The environment is read here, once. Settings that this package does not use itself (headers, certificates, samplers) are
read by the SDK in the same call.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import urlsplit

from curator_core import ConfigurationError
from curator_core.observers import local_path, unknown_name

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["SetupConfig", "read_config"]

ExporterName = Literal["otlp", "console", "json"]

_EXPORTERS = ("otlp", "console", "json")
_DEFAULT_ENDPOINT = "http://localhost:4318"
_QUEUE_SIZE = 65_536  # the SDK's default of 2,048 loses two thirds of a burst of 100,000 spans
_DELAY_MS = 1_000  # with the SDK's default, a killed driver would lose the last 5 s


@dataclass(frozen=True, slots=True)
class SetupConfig:
    """How to set up the SDK.

    Attributes:
        exporter: The exporter for spans and metrics.
        disabled: Whether ``OTEL_SDK_DISABLED`` turns everything off.
        service_name: The name of the service; None if the environment names one.
        traces_endpoint: The URL to which spans are sent.
        metrics: Whether metrics are sent or written.
        metrics_endpoint: The URL to which metrics are sent.
        json_file: The file to which spans are written.
        json_metrics_file: The file to which metrics are written.
        queue_size: The maximum number of spans in the queue; None leaves it to ``OTEL_BSP_MAX_QUEUE_SIZE``.
        delay_ms: The maximum time that a span waits in the queue; None leaves it to ``OTEL_BSP_SCHEDULE_DELAY``.
        shutdown_timeout_s: The maximum time of a shutdown.
    """

    exporter: ExporterName
    disabled: bool
    service_name: str | None
    traces_endpoint: str
    metrics: bool
    metrics_endpoint: str
    json_file: Path | None
    json_metrics_file: Path | None
    queue_size: int | None
    delay_ms: float | None
    shutdown_timeout_s: float

    @property
    def destination(self) -> str:
        """Where spans go, for messages; without any credentials in a URL."""
        if self.exporter == "console":
            return "the console"
        return str(self.json_file) if self.exporter == "json" else _shown(self.traces_endpoint)

    @property
    def metrics_destination(self) -> str:
        """Where metrics go, for messages; without any credentials in a URL."""
        if self.exporter == "console":
            return "the console"
        return str(self.json_metrics_file) if self.exporter == "json" else _shown(self.metrics_endpoint)


def read_config(
    environ: Mapping[str, str],
    *,
    exporter: str | None,
    endpoint: str | None,
    json_file: str | os.PathLike[str] | None,
    json_metrics_file: str | os.PathLike[str] | None,
    service_name: str,
    shutdown_timeout_s: float,
) -> SetupConfig:
    """Check the arguments of `configure`, and read the environment.

    Raises:
        ConfigurationError: An argument or a variable is invalid.
    """
    chosen = _exporter(exporter, endpoint, json_file, json_metrics_file)
    timeout: Any = shutdown_timeout_s
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < float("inf"):
        raise _wrong("shutdown_timeout_s", timeout, "a number of seconds above 0", "omit it to use 5 seconds")
    name: Any = service_name
    if not isinstance(name, str) or not name.strip():
        raise _wrong("service_name", name, "a non-empty string", "omit it to use 'curator'")
    disabled = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    sends = chosen == "otlp" and not disabled
    return SetupConfig(
        exporter=chosen,
        disabled=disabled,
        service_name=None if _names_service(environ) else service_name,
        traces_endpoint=_endpoint(environ, "TRACES", endpoint) if sends else "",
        metrics=_wants_metrics(environ) and (chosen != "json" or json_metrics_file is not None),
        metrics_endpoint=_endpoint(environ, "METRICS", endpoint) if sends else "",
        json_file=None if json_file is None else local_path(json_file, "json_file"),
        json_metrics_file=None if json_metrics_file is None else local_path(json_metrics_file, "json_metrics_file"),
        queue_size=None if environ.get("OTEL_BSP_MAX_QUEUE_SIZE") else _QUEUE_SIZE,
        delay_ms=None if environ.get("OTEL_BSP_SCHEDULE_DELAY") else _DELAY_MS,
        shutdown_timeout_s=float(timeout),
    )


def _exporter(exporter: Any, endpoint: Any, json_file: Any, json_metrics_file: Any) -> ExporterName:
    if exporter is None:
        exporter = "json" if json_file is not None else "otlp"
    if exporter not in _EXPORTERS:
        details = unknown_name("exporter", str(exporter), _EXPORTERS, "exporter")
        raise ConfigurationError("unknown exporter", **details, given=exporter)
    if exporter == "json" and json_file is None:
        raise _wrong("json_file", None, "the file to write the trace to", "pass json_file='trace.json'")
    if exporter != "json":
        for field, value in (("json_file", json_file), ("json_metrics_file", json_metrics_file)):
            if value is not None:
                raise _wrong(field, value, "no file unless the exporter is 'json'", "omit one of the two")
    elif json_metrics_file is not None and os.fspath(json_file) == os.fspath(json_metrics_file):
        raise _wrong("json_metrics_file", json_metrics_file, "a file other than json_file", "pass another file name")
    if exporter != "otlp" and endpoint is not None:
        raise _wrong("endpoint", endpoint, "no endpoint unless the exporter is 'otlp'", "omit one of the two")
    return cast("ExporterName", exporter)


def _endpoint(environ: Mapping[str, str], signal: str, given: Any) -> str:
    """Return the URL to which a signal is sent, by OpenTelemetry's rules."""
    for variable in (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        protocol = environ.get(variable) or "http/protobuf"
        if protocol != "http/protobuf":
            # Everything sent to a port for gRPC would be lost without an explanation.
            hint = "set it to http/protobuf, and the port of the endpoint to the one for HTTP, usually 4318"
            raise _wrong(variable, protocol, "http/protobuf, the only protocol that curator-otel supports", hint)
        if environ.get(variable):
            break
    path = f"/v1/{signal.lower()}"
    own, base = f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"
    if given is not None:
        url = _url("endpoint", given)
        if urlsplit(url).path.rstrip("/").endswith(("/v1/traces", "/v1/metrics")):
            raise _wrong("endpoint", given, "the base URL, to which /v1/traces is added", "omit the path")
        return url.rstrip("/") + path
    if environ.get(own):
        return _url(own, environ[own])
    return _url(base, environ.get(base) or _DEFAULT_ENDPOINT).rstrip("/") + path


def _shown(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def _url(field: str, url: Any) -> str:
    try:
        parts = urlsplit(url)
        valid = isinstance(url, str) and parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port  # raises if it is not a number
    except (ValueError, AttributeError, TypeError):
        valid = False
    if not valid:
        raise _wrong(field, url, "a URL with http:// or https://", f"pass for example {_DEFAULT_ENDPOINT!r}")
    return cast("str", url)


def _names_service(environ: Mapping[str, str]) -> bool:
    """Whether the environment names the service; a name from us would override it."""
    resource = environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    keys = (pair.partition("=")[0].strip() for pair in resource.split(","))
    return bool(environ.get("OTEL_SERVICE_NAME")) or "service.name" in keys


def _wants_metrics(environ: Mapping[str, str]) -> bool:
    return environ.get("OTEL_METRICS_EXPORTER", "").strip().lower() != "none"


def _wrong(field: str, given: Any, expected: str, hint: str) -> ConfigurationError:
    return ConfigurationError("invalid setting", field=field, given=given, expected=expected, hint=hint)
