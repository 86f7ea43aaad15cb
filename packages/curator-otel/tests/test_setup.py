# SPDX-License-Identifier: Apache-2.0
"""What `configure` accepts and rejects, and how it reads the environment."""

from __future__ import annotations

import json
import os
import random
import threading

import pytest
from opentelemetry import metrics, trace
from tests.waiting import DEADLINE_S

from curator_core import ConfigurationError
from curator_otel import OTelObserver, configure

OTLP = "OTEL_EXPORTER_OTLP_"


def destination(**settings):
    """Return the displayed destination of spans, without sending any."""
    telemetry = configure(set_global=False, **settings)
    telemetry.shutdown()
    return repr(telemetry).removeprefix("<Telemetry to ").removesuffix(", shut down>")


def one_span(telemetry):
    telemetry.tracer_provider.get_tracer("t").start_span("s").end()


@pytest.fixture
def no_metrics(monkeypatch):
    """Turn off metrics, so that nothing tries to send the last ones."""
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")


# --- arguments ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "field", "said"),
    [
        ({"exporter": "oltp"}, "exporter", "did you mean 'otlp'?"),
        ({"exporter": "grpc"}, "exporter", "console, json, otlp"),
        ({"exporter": 4}, "exporter", "4"),
        ({"exporter": "json"}, "json_file", "the file to write the trace to"),
        ({"exporter": "otlp", "json_file": "a.json"}, "json_file", "unless the exporter is 'json'"),
        ({"exporter": "console", "json_metrics_file": "m.json"}, "json_metrics_file", "unless the exporter"),
        ({"json_file": ""}, "json_file", "a path"),
        ({"json_file": 5}, "json_file", "a path"),
        ({"json_file": "a\0b"}, "json_file", "a path"),
        ({"json_file": "\ud800"}, "json_file", "a path"),
        ({"json_file": "s3://bucket/trace.json"}, "json_file", "a URL is not a local path"),
        ({"json_file": "a", "json_metrics_file": "a\0b"}, "json_metrics_file", "a path"),
        ({"json_file": "a", "json_metrics_file": "a"}, "json_metrics_file", "a file other than"),
        ({"json_file": "a", "endpoint": "http://h"}, "endpoint", "no endpoint"),
        ({"endpoint": "localhost:4318"}, "endpoint", "http:// or https://"),
        ({"endpoint": "http://"}, "endpoint", "http:// or https://"),
        ({"endpoint": "http://h:port"}, "endpoint", "http:// or https://"),
        ({"endpoint": 4318}, "endpoint", "http:// or https://"),
        ({"endpoint": "http://h:4318/v1/traces"}, "endpoint", "the base URL"),
        ({"service_name": " "}, "service_name", "non-empty"),
        ({"service_name": None}, "service_name", "non-empty"),
        ({"shutdown_timeout_s": 0}, "shutdown_timeout_s", "above 0"),
        ({"shutdown_timeout_s": float("nan")}, "shutdown_timeout_s", "above 0"),
        ({"shutdown_timeout_s": float("inf")}, "shutdown_timeout_s", "above 0"),
        ({"shutdown_timeout_s": "5"}, "shutdown_timeout_s", "above 0"),
        ({"shutdown_timeout_s": True}, "shutdown_timeout_s", "above 0"),
    ],
)
def test_invalid_settings_are_rejected_with_a_hint(arguments, field, said):
    with pytest.raises(ConfigurationError) as caught:
        configure(**arguments, set_global=False)
    assert caught.value.field == field
    assert said in str(caught.value)
    assert caught.value.hint


def test_paths_are_below_the_home_directory_or_the_current_one(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert destination(json_file="~/t.json") == str(tmp_path / "home" / "t.json")
    assert destination(json_file="t.json") == str(tmp_path / "t.json")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PROTOCOL", "grpc"),
        ("TRACES_PROTOCOL", "http/json"),
        ("ENDPOINT", "collector:4317"),
        ("METRICS_ENDPOINT", "collector"),
    ],
)
def test_invalid_variables_are_rejected(monkeypatch, variable, value):
    monkeypatch.setenv(OTLP + variable, value)
    with pytest.raises(ConfigurationError) as caught:
        configure(set_global=False)
    assert caught.value.field == OTLP + variable


def test_variables_of_another_exporter_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setenv(f"{OTLP}PROTOCOL", "grpc")
    monkeypatch.setenv(f"{OTLP}ENDPOINT", "nonsense")
    assert destination(json_file=tmp_path / "t.json") == str(tmp_path / "t.json")
    assert destination(exporter="console") == "the console"
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    configure()


@pytest.mark.usefixtures("no_metrics")
def test_protocol_of_one_signal_takes_precedence(monkeypatch):
    monkeypatch.setenv(f"{OTLP}PROTOCOL", "grpc")
    for signal in ("TRACES", "METRICS"):
        monkeypatch.setenv(f"{OTLP}{signal}_PROTOCOL", "http/protobuf")
    assert destination() == "http://localhost:4318/v1/traces"


@pytest.mark.usefixtures("no_metrics")
@pytest.mark.parametrize("environ", [{}, {f"{OTLP}ENDPOINT": ""}, {f"{OTLP}METRICS_ENDPOINT": "http://m/x"}])
def test_default_endpoint_is_on_this_machine(monkeypatch, environ):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert destination() == "http://localhost:4318/v1/traces"


@pytest.mark.usefixtures("no_metrics")
def test_credentials_in_a_url_are_not_shown():
    shown = destination(endpoint="http://user:secret@host:4318/base?key=abc")
    assert shown.startswith("http://host:4318/base")
    assert "secret" not in shown
    assert "abc" not in shown


# --- the environment ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["true", " TRUE "])
def test_disabled_sdk_is_not_set_up(tmp_path, monkeypatch, script, value):
    monkeypatch.setenv("OTEL_SDK_DISABLED", value)
    before = set(threading.enumerate())
    with configure(json_file=tmp_path / "t.json") as telemetry:  # asks for global providers, but none are set
        script.play(OTelObserver(telemetry.tracer_provider, telemetry.meter_provider), script.batch())
        assert set(threading.enumerate()) <= before
        assert telemetry.flush(DEADLINE_S)
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
    assert isinstance(telemetry.meter_provider, metrics.NoOpMeterProvider)
    assert telemetry.dropped == 0
    assert not list(tmp_path.iterdir())


# --- files and console --------------------------------------------------------------------------------------


def test_file_is_replaced_and_its_directory_created(to_file, tmp_path):
    path = tmp_path / "deep" / "er" / "trace.json"
    for _ in range(2):
        with to_file(path) as telemetry:
            one_span(telemetry)
    assert len(path.read_text().splitlines()) == 1


def test_metrics_have_their_own_file(to_file, tmp_path, script):
    with to_file(tmp_path / "t.json", json_metrics_file=tmp_path / "m.json") as telemetry:
        script.play(OTelObserver(telemetry.tracer_provider, telemetry.meter_provider), script.batch())
    (request,) = map(json.loads, (tmp_path / "m.json").read_text().splitlines())
    (scope,) = request["resourceMetrics"][0]["scopeMetrics"]
    assert scope["scope"]["name"] == "curator_otel"
    assert "curator.batch.count" in {metric["name"] for metric in scope["metrics"]}
    assert "resourceMetrics" not in (tmp_path / "t.json").read_text()


@pytest.mark.parametrize("field", ["json_file", "json_metrics_file"])
def test_unwritable_file_is_rejected(tmp_path, field):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    arguments = {"json_file": tmp_path / "t.json", field: in_the_way / "t.json"}
    with pytest.raises(ConfigurationError, match="cannot be written") as caught:
        configure(**arguments, set_global=False)
    assert caught.value.field == field


def test_console_shows_spans_and_metrics(capsys, script):
    with configure("console", set_global=False, shutdown_timeout_s=DEADLINE_S) as telemetry:
        script.play(OTelObserver(telemetry.tracer_provider, telemetry.meter_provider), script.batch())
    shown = capsys.readouterr().out
    assert '"name": "run by_hand"' in shown
    assert '"name": "curator.batch.count"' in shown


# --- the handle ---------------------------------------------------------------------------------------------


def test_flush_completes_the_file_during_the_program(to_file, tmp_path, script):
    telemetry = to_file(tmp_path / "t.json")
    script.play(OTelObserver(telemetry.tracer_provider), script.batch())
    assert telemetry.flush(DEADLINE_S)
    assert '"run by_hand"' in (tmp_path / "t.json").read_text()
    assert telemetry.shutdown()


def test_second_shutdown_changes_nothing_and_later_spans_count_as_dropped(to_file, tmp_path, caplog):
    telemetry = to_file(tmp_path / "t.json")
    one_span(telemetry)
    assert telemetry.shutdown()
    assert telemetry.shutdown()
    assert telemetry.flush()
    assert not caplog.records
    assert "shut down" in repr(telemetry)
    one_span(telemetry)
    assert telemetry.dropped == 1
    assert not telemetry.shutdown()


def test_shutdown_leaves_no_thread_and_no_environment_variable(to_file, tmp_path):
    before, environ = set(threading.enumerate()), dict(os.environ)
    with to_file(tmp_path / "t.json", json_metrics_file=tmp_path / "m.json") as telemetry:
        one_span(telemetry)
        telemetry.flush(DEADLINE_S)
    assert set(threading.enumerate()) <= before
    assert dict(os.environ) == environ


def test_ids_do_not_use_the_global_random_state(to_file, tmp_path):
    with to_file(tmp_path / "t.json") as telemetry:
        ids = set()
        for _ in range(3):
            random.seed(1)
            before = random.getstate()
            span = telemetry.tracer_provider.get_tracer("t").start_span("s")
            assert random.getstate() == before
            ids.add(span.get_span_context().trace_id)
            span.end()
    assert len(ids) == 3
