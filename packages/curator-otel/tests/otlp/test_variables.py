# SPDX-License-Identifier: Apache-2.0
"""OpenTelemetry's standard variables, checked at a receiver."""

from __future__ import annotations

import socket
import ssl
import threading
from importlib.metadata import version

import pytest
import requests
import trustme
from tests.waiting import DEADLINE_S

from curator_otel import configure

OTLP = "OTEL_EXPORTER_OTLP_"


@pytest.fixture
def environ(monkeypatch):
    """A function that sets variables of the exporters, named without their common prefix."""

    def put(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(OTLP + name, str(value))

    return put


def send_by_environment(send, **settings):
    """Send a run to the destination in the variables, and check that everything arrives."""
    with configure(set_global=False, shutdown_timeout_s=DEADLINE_S, **settings) as telemetry:
        sent = send(telemetry)
        assert telemetry.flush(DEADLINE_S)
    assert telemetry.dropped == 0
    return sent


# --- destinations -------------------------------------------------------------------------------------------


def test_base_endpoint_gets_each_signal_below_its_path(sink, send, environ):
    sink.handlers = {"/in/v1/traces": sink.handle_trace, "/in/v1/metrics": sink.handle_metrics}
    environ(ENDPOINT=f"{sink.url}/in/")
    sent = send_by_environment(send)
    assert len(sink.spans) == sent.ended
    assert "curator.batch.count" in sink.metrics


def test_endpoint_of_one_signal_is_used_unchanged(sink, make_sink, send, environ):
    sink.handlers = {"/spans": sink.handle_trace}
    with make_sink() as other:
        other.handlers = {"/numbers": other.handle_metrics}
        environ(
            ENDPOINT="http://127.0.0.1:9",
            TRACES_ENDPOINT=f"{sink.url}/spans",
            METRICS_ENDPOINT=f"{other.url}/numbers",
        )
        sent = send_by_environment(send)
        assert len(sink.spans) == sent.ended
        assert other.measured
        assert not other.traces
    assert not sink.measured


def test_endpoint_in_code_takes_precedence(sink, send, environ):
    environ(ENDPOINT="http://127.0.0.1:9")
    send_by_environment(send, endpoint=sink.url)
    assert sink.spans
    assert sink.measured


# --- requests -----------------------------------------------------------------------------------------------


def test_headers_of_one_signal_are_sent_only_with_it(sink, send, environ):
    environ(ENDPOINT=sink.url, HEADERS="x-key=abc,authorization=Bearer%20a%3Db", METRICS_HEADERS="x-key=metrics")
    send_by_environment(send)
    assert sink.traces
    for request in sink.traces:
        assert request.headers["x-key"] == "abc"
        assert request.headers["authorization"] == "Bearer a=b"
        assert request.headers["content-type"] == "application/x-protobuf"
        assert "content-encoding" not in request.headers
    assert {request.headers["x-key"] for request in sink.measured} == {"metrics"}


def test_compression_variable_of_one_signal_takes_precedence(sink, send, environ):
    environ(ENDPOINT=sink.url, COMPRESSION="gzip", METRICS_COMPRESSION="none")
    sent = send_by_environment(send)
    assert {request.headers.get("content-encoding") for request in sink.traces} == {"gzip"}
    assert {request.headers.get("content-encoding") for request in sink.measured} == {None}
    assert len(sink.spans) == sent.ended
    sizes = [(int(request.headers["content-length"]), request.pbreq.ByteSize()) for request in sink.traces]
    assert all(sent_bytes < plain_bytes / 2 for sent_bytes, plain_bytes in sizes)


def test_timeout_variable_limits_the_wait_for_a_receiver(send, environ, monkeypatch):
    timeouts, request = [], requests.Session.request

    def noted(self, *args, timeout=None, **kwargs):
        timeouts.append(timeout)
        return request(self, *args, timeout=timeout, **kwargs)

    monkeypatch.setattr(requests.Session, "request", noted)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environ(ENDPOINT=f"http://127.0.0.1:{silent.getsockname()[1]}", TIMEOUT=0.3)
        telemetry = configure(set_global=False, shutdown_timeout_s=DEADLINE_S)
        sent = send(telemetry)
        assert not telemetry.shutdown()
    assert len(timeouts) >= 2  # spans and metrics
    assert 0 < max(timeouts) < 1  # the default is ten seconds
    assert telemetry.dropped == sent.ended


# --- certificates -------------------------------------------------------------------------------------------


@pytest.fixture
def authority():
    return trustme.CA()


@pytest.fixture
def trusted(authority, tmp_path):
    """The file with the certificate of the authority."""
    path = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(path)
    return path


@pytest.fixture
def tls(authority):
    """The TLS context of the receiver."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


def test_unknown_certificate_is_rejected(make_sink, tls, send, environ, complaints, caplog):
    with make_sink(tls) as sink:
        environ(ENDPOINT=sink.url)
        telemetry = configure(set_global=False, shutdown_timeout_s=0.2)
        sent = send(telemetry)
        assert complaints.first.wait(DEADLINE_S)
        assert not telemetry.shutdown()
        assert not sink.spans
        assert not sink.measured
    assert telemetry.dropped == sent.ended
    (said,) = [record.getMessage() for record in caplog.records if record.name == "curator_otel.sdk.setup"]
    assert said.startswith(f"{sent.ended} spans ")
    assert f"did not reach {sink.url}/v1/traces" in said
    assert "CERTIFICATE_VERIFY_FAILED" in said


def test_configured_certificates_are_trusted_and_presented(make_sink, authority, tls, trusted, tmp_path, send, environ):
    tls.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(tls)
    mine = authority.issue_cert("curator@example.org")
    mine.cert_chain_pems[0].write_to_path(tmp_path / "mine.pem")
    mine.private_key_pem.write_to_path(tmp_path / "mine.key")
    with make_sink(tls) as sink:
        environ(
            ENDPOINT=sink.url,
            CERTIFICATE=trusted,
            CLIENT_CERTIFICATE=tmp_path / "mine.pem",
            CLIENT_KEY=tmp_path / "mine.key",
        )
        assert sink.url.startswith("https://")
        sent = send_by_environment(send)
        assert len(sink.spans) == sent.ended
        assert sink.measured


@pytest.mark.skipif(
    tuple(map(int, version("opentelemetry-exporter-otlp-proto-http").split(".")[:2])) < (1, 45),
    reason="before 1.45, the certificate of OpenTelemetry's exporter takes precedence",
)
@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_ca_bundle_of_the_environment_takes_precedence(
    make_sink, tls, trusted, tmp_path, send, environ, monkeypatch, variable
):
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(other)
    monkeypatch.setenv(variable, str(trusted))
    with make_sink(tls) as sink:
        environ(ENDPOINT=sink.url, CERTIFICATE=other)
        sent = send_by_environment(send)
        assert len(sink.spans) == sent.ended


# --- the SDK's variables ------------------------------------------------------------------------------------


def test_size_of_a_request_is_limited(sink, send, monkeypatch):
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "3")
    sent = send_by_environment(send, endpoint=sink.url)
    sizes = [
        sum(len(scope.spans) for resource in request.pbreq.resource_spans for scope in resource.scope_spans)
        for request in sink.traces
    ]
    assert max(sizes) == 3
    assert sum(sizes) == sent.ended


def test_short_queue_drops_and_counts(sink, make_faulty, answer, monkeypatch):
    """The receiver delays the first request until the queue has overflowed."""
    go_on = threading.Event()
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "8")
    server = make_faulty(answer(after=go_on))
    telemetry = configure(endpoint=server.url, set_global=False, shutdown_timeout_s=DEADLINE_S)
    tracer = telemetry.tracer_provider.get_tracer("application")
    for _ in range(200):
        tracer.start_span("s").end()
    go_on.set()
    assert not telemetry.shutdown()
    assert 0 < telemetry.dropped < 200
    assert len(sink.spans) + telemetry.dropped == 200


def test_sampler_that_drops_all_traces_keeps_metrics(sink, send, monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    sent = send_by_environment(send, endpoint=sink.url)
    assert sent.ended == 0
    assert not sink.spans
    assert "curator.batch.count" in sink.metrics


def test_export_interval_of_metrics_is_respected(sink, send, monkeypatch):
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "50")
    arrived = threading.Semaphore(0)

    def take(data, headers):
        sink.handle_metrics(data, headers)
        arrived.release()

    sink.handlers["/v1/metrics"] = take
    with configure(endpoint=sink.url, set_global=False, shutdown_timeout_s=DEADLINE_S) as telemetry:
        send(telemetry)
        assert all(arrived.acquire(timeout=DEADLINE_S) for _ in range(3))  # before anything is flushed or shut down


def test_temporality_of_metrics_is_respected(sink, send, environ):
    environ(METRICS_TEMPORALITY_PREFERENCE="delta")
    send_by_environment(send, endpoint=sink.url)
    assert sink.metrics["curator.run.count"].sum.aggregation_temporality == 1  # delta
