# SPDX-License-Identifier: Apache-2.0
"""What `configure` accepts, refuses, and makes of the environment."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import threading

import pytest
from opentelemetry import metrics, trace

from curator_core import ConfigurationError
from curator_otel import OTelObserver, configure
from curator_otel.config import read_config

ARGUMENTS = {
    "exporter": None,
    "endpoint": None,
    "json_file": None,
    "json_metrics_file": None,
    "service_name": "curator",
    "shutdown_timeout_s": 5.0,
}


def config(environ=None, **arguments):
    return read_config(environ or {}, **ARGUMENTS | arguments)


def resource_of(path):
    request = json.loads(path.read_text().splitlines()[0])
    pairs = request["resourceSpans"][0]["resource"]["attributes"]
    return {pair["key"]: pair["value"].get("stringValue") for pair in pairs}


def to_file(path, **settings):
    return configure(json_file=path, set_global=False, **settings)


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
        ({"json_file": "a", "json_metrics_file": "a"}, "json_metrics_file", "another file"),
        ({"json_file": "a", "endpoint": "http://h"}, "endpoint", "no endpoint"),
        ({"endpoint": "localhost:4318"}, "endpoint", "http:// or https://"),
        ({"endpoint": "http://"}, "endpoint", "http:// or https://"),
        ({"endpoint": "http://h:port"}, "endpoint", "http:// or https://"),
        ({"endpoint": 4318}, "endpoint", "http:// or https://"),
        ({"endpoint": "http://h:4318/v1/traces"}, "endpoint", "the base URL"),
        ({"service_name": " "}, "service_name", "not empty"),
        ({"service_name": None}, "service_name", "not empty"),
        ({"shutdown_timeout_s": 0}, "shutdown_timeout_s", "above 0"),
        ({"shutdown_timeout_s": float("nan")}, "shutdown_timeout_s", "above 0"),
        ({"shutdown_timeout_s": float("inf")}, "shutdown_timeout_s", "above 0"),
        ({"shutdown_timeout_s": "5"}, "shutdown_timeout_s", "above 0"),
        ({"shutdown_timeout_s": True}, "shutdown_timeout_s", "above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(arguments, field, said):
    with pytest.raises(ConfigurationError) as caught:
        configure(**arguments, set_global=False)
    assert caught.value.field == field
    assert said in str(caught.value)
    assert "to mend" in str(caught.value)


@pytest.mark.parametrize(
    ("environ", "field"),
    [
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL"),
        ({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"}, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317"}, "OTEL_EXPORTER_OTLP_ENDPOINT"),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "collector"}, "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"),
    ],
)
def test_variables_that_make_no_sense_are_refused(environ, field):
    with pytest.raises(ConfigurationError) as caught:
        config(environ)
    assert caught.value.field == field


def test_variables_that_do_not_matter_are_not_looked_at(tmp_path):
    environ = {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_ENDPOINT": "nonsense"}
    assert config(environ, json_file=tmp_path / "t.json").exporter == "json"
    assert config(environ | {"OTEL_SDK_DISABLED": "true"}).disabled


def test_a_signals_own_protocol_wins():
    environ = {
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "http/protobuf",
    }
    assert config(environ).traces_endpoint


@pytest.mark.parametrize(
    ("environ", "endpoint", "traces", "metrics_endpoint"),
    [
        ({}, None, "http://localhost:4318/v1/traces", "http://localhost:4318/v1/metrics"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://c/otlp/"}, None, "https://c/otlp/v1/traces", "https://c/otlp/v1/metrics"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, None, "http://localhost:4318/v1/traces", "http://localhost:4318/v1/metrics"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t/x"}, None, "http://t/x", "http://localhost:4318/v1/metrics"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c"}, "http://mine:1/", "http://mine:1/v1/traces", "http://mine:1/v1/metrics"),
    ],
)  # fmt: skip
def test_endpoints_follow_the_rules_of_opentelemetry(environ, endpoint, traces, metrics_endpoint):
    made = config(environ, endpoint=endpoint)
    assert (made.traces_endpoint, made.metrics_endpoint) == (traces, metrics_endpoint)


def test_credentials_in_a_url_are_not_shown():
    shown = config(endpoint="http://user:secret@host:4318/base?key=abc").destination
    assert shown.startswith("http://host:4318/base")
    assert "secret" not in shown
    assert "abc" not in shown


def test_the_queue_is_long_unless_the_environment_says_otherwise():
    assert config().queue_size == 65_536
    assert config({"OTEL_BSP_MAX_QUEUE_SIZE": "100"}).queue_size is None


def test_the_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        config().exporter = "json"


# --- the environment ----------------------------------------------------------------------------------------


def one_span(telemetry):
    telemetry.tracer_provider.get_tracer("t").start_span("s").end()


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "curator"),
        ({"OTEL_SERVICE_NAME": "from-variable"}, "from-variable"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "a=b,service.name=from-attributes"}, "from-attributes"),
    ],
)
def test_the_service_name_of_the_environment_wins(tmp_path, monkeypatch, environ, expected):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with to_file(tmp_path / "t.json") as telemetry:
        one_span(telemetry)
    assert resource_of(tmp_path / "t.json")["service.name"] == expected


def test_the_service_name_of_the_program_is_used_where_there_is_no_other(tmp_path, monkeypatch):
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    with to_file(tmp_path / "t.json", service_name="mine") as telemetry:
        one_span(telemetry)
    resource = resource_of(tmp_path / "t.json")
    assert resource["service.name"] == "mine"
    assert resource["deployment.environment.name"] == "test"


@pytest.mark.parametrize("value", ["true", " TRUE "])
def test_a_disabled_sdk_is_not_set_up(tmp_path, monkeypatch, script, value):
    monkeypatch.setenv("OTEL_SDK_DISABLED", value)
    before = threading.active_count()
    with configure(json_file=tmp_path / "t.json") as telemetry:  # global: nothing becomes global either
        script.play(OTelObserver(telemetry.tracer_provider, telemetry.meter_provider), script.batch())
        assert threading.active_count() == before
        assert telemetry.flush()
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
    assert isinstance(telemetry.meter_provider, metrics.NoOpMeterProvider)
    assert telemetry.dropped == 0
    assert not list(tmp_path.iterdir())


def test_the_environment_stays_as_it_was(tmp_path):
    before = dict(os.environ)
    with to_file(tmp_path / "t.json") as telemetry:
        one_span(telemetry)
    assert dict(os.environ) == before


# --- files and console --------------------------------------------------------------------------------------


def test_the_file_is_written_anew_and_its_directory_made(tmp_path):
    path = tmp_path / "deep" / "er" / "trace.json"
    for _ in range(2):
        with to_file(path) as telemetry:
            one_span(telemetry)
    assert len(path.read_text().splitlines()) == 1


def test_metrics_have_a_file_of_their_own(tmp_path, script):
    with to_file(tmp_path / "t.json", json_metrics_file=tmp_path / "m.json") as telemetry:
        script.play(OTelObserver(telemetry.tracer_provider, telemetry.meter_provider), script.batch())
    (request,) = map(json.loads, (tmp_path / "m.json").read_text().splitlines())
    (scope,) = request["resourceMetrics"][0]["scopeMetrics"]
    assert scope["scope"]["name"] == "curator_otel"
    assert "curator.batch.count" in {metric["name"] for metric in scope["metrics"]}
    assert "resourceMetrics" not in (tmp_path / "t.json").read_text()


@pytest.mark.parametrize("field", ["json_file", "json_metrics_file"])
def test_a_file_that_cannot_be_written_is_refused(tmp_path, field):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    arguments = {"json_file": tmp_path / "t.json", field: in_the_way / "t.json"}
    with pytest.raises(ConfigurationError, match="cannot be written") as caught:
        configure(**arguments, set_global=False)
    assert caught.value.field == field


def test_the_console_shows_spans(capsys, script):
    with configure("console", set_global=False) as telemetry:
        script.play(OTelObserver(telemetry.tracer_provider, telemetry.meter_provider), script.batch())
    shown = capsys.readouterr().out
    assert '"name": "run by_hand"' in shown
    assert '"name": "curator.batch.count"' in shown


# --- the handle ---------------------------------------------------------------------------------------------


def test_flush_makes_the_file_complete_while_the_program_goes_on(tmp_path, script):
    telemetry = to_file(tmp_path / "t.json")
    script.play(OTelObserver(telemetry.tracer_provider), script.batch())
    assert telemetry.flush()
    assert '"run by_hand"' in (tmp_path / "t.json").read_text()
    assert telemetry.shutdown()


def test_a_second_shutdown_changes_nothing(tmp_path, caplog):
    telemetry = to_file(tmp_path / "t.json")
    one_span(telemetry)
    assert telemetry.shutdown()
    assert telemetry.shutdown()
    assert telemetry.flush()
    assert not caplog.records
    assert "shut down" in repr(telemetry)


def test_spans_after_the_shutdown_are_counted_as_dropped(tmp_path):
    telemetry = to_file(tmp_path / "t.json")
    telemetry.shutdown()
    one_span(telemetry)
    assert telemetry.dropped == 1


def test_no_thread_is_left(tmp_path):
    before = set(threading.enumerate())
    with to_file(tmp_path / "t.json", json_metrics_file=tmp_path / "m.json") as telemetry:
        one_span(telemetry)
        telemetry.flush()
    assert set(threading.enumerate()) <= before


def test_ids_do_not_come_from_random(tmp_path):
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
