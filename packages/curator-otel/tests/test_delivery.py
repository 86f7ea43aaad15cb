# SPDX-License-Identifier: Apache-2.0
"""From a run to a receiver: a real one that is not ours (oteltest), and several that do not do their part."""

from __future__ import annotations

import logging
import random
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk.trace.export import SpanExportResult
from oteltest.sink import HttpSink
from oteltest.sink.handler import AccumulatingHandler

from curator_core import Pipeline, ProcessingStage, Task, processing_stage
from curator_otel import OTelObserver, __version__, configure
from curator_otel.delivery import WatchedExporter

# --- a receiver ---------------------------------------------------------------------------------------------


class Sink(HttpSink):
    """oteltest's receiver, on a free port; says when it listens."""

    def __init__(self) -> None:
        self.listening = threading.Event()
        super().__init__(AccumulatingHandler(), logging.getLogger("sink"), port=0)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "httpd" and value is not None:
            self.listening.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.httpd.server_address[1]}"

    @property
    def requests(self) -> list[Any]:
        return [request.pbreq for request in self.listener.telemetry.trace_requests]

    @property
    def spans(self) -> list[Span]:
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    @property
    def metrics(self) -> dict[str, Any]:
        return {
            metric.name: metric
            for request in self.listener.telemetry.metric_requests
            for resource in request.pbreq.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


@pytest.fixture
def sink(capfd):
    receiver = Sink()
    receiver.start()
    assert receiver.listening.wait(30)
    yield receiver
    receiver.stop()


def attributes_of(message):
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in message.attributes}


@processing_stage()
def fan_out(task):
    return [Task(data=number) for number in range(4)]


class Fussy(ProcessingStage[Any, Any]):
    def process(self, task):
        self.metrics.set("model", "tiny")
        if task.data == 2:
            raise ValueError("not two")
        return None if task.data == 1 else task


def run_fussy(telemetry, **settings):
    observer = OTelObserver(telemetry.tracer_provider, telemetry.meter_provider, **settings)
    pipeline = Pipeline("fussy", [fan_out, Fussy()])
    return pipeline.run(initial_tasks=[Task(data=0)], observers=[observer], on_error="skip")


def test_a_receiver_gets_the_trace(sink):
    with configure(endpoint=sink.url, set_global=False) as telemetry:
        result = run_fussy(telemetry)
        assert telemetry.flush()
    assert telemetry.dropped == 0
    spans = {span.span_id: span for span in sink.spans}
    assert len(spans) == len(sink.spans) == 11  # a run, that it started, two stages, two set-ups, five batches
    by_name: dict[str, list[Span]] = {}
    for span in spans.values():
        by_name.setdefault(span.name, []).append(span)
    (root,) = by_name["run fussy"]
    assert root.kind == Span.SPAN_KIND_SERVER
    assert root.parent_span_id == b""
    assert len(root.trace_id) == 16
    assert {span.trace_id for span in spans.values()} == {root.trace_id}
    assert {span.kind for span in spans.values()} == {Span.SPAN_KIND_SERVER, Span.SPAN_KIND_INTERNAL}
    for stage in (*by_name["00 fan_out"], *by_name["01 Fussy"]):
        assert stage.parent_span_id == root.span_id
        assert root.start_time_unix_nano <= stage.start_time_unix_nano
        assert stage.end_time_unix_nano <= root.end_time_unix_nano
    (source,) = by_name["process_batch fan_out"]
    for batch in by_name["process_batch Fussy"]:
        assert spans[batch.parent_span_id].name == "01 Fussy"
        (link,) = batch.links
        assert (link.trace_id, link.span_id) == (source.trace_id, source.span_id)
        assert batch.start_time_unix_nano < batch.end_time_unix_nano
        assert attributes_of(batch)["curator.metric.model"] == "tiny"
    attributes = attributes_of(root)
    assert attributes["curator.run.id"] == result.run_id
    assert attributes["curator.run.complete"] is True
    assert attributes["curator.run.tasks_out"] == len(result) == 2


def test_a_receiver_gets_failures(sink):
    with configure(endpoint=sink.url, set_global=False) as telemetry:
        run_fussy(telemetry)
    (failed,) = [span for span in sink.spans if attributes_of(span).get("curator.outcome") == "failed"]
    assert failed.status.code == Status.STATUS_CODE_ERROR
    assert failed.status.message == "not two"
    assert attributes_of(failed)["error.type"] == "ValueError"
    (event,) = failed.events
    assert event.name == "exception"
    assert event.time_unix_nano == failed.end_time_unix_nano
    assert attributes_of(event) == {"exception.type": "ValueError", "exception.message": "not two"}
    (stage,) = [span for span in sink.spans if span.name == "01 Fussy"]
    assert stage.status.code == Status.STATUS_CODE_ERROR
    (root,) = [span for span in sink.spans if span.name == "run fussy"]
    assert root.status.code == Status.STATUS_CODE_UNSET


def test_a_receiver_gets_resource_and_scope(sink, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", sink.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-key=abc")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "captions")
    with configure(set_global=False) as telemetry:
        run_fussy(telemetry)
    for request in sink.requests:
        for resource in request.resource_spans:
            assert attributes_of(resource.resource)["service.name"] == "captions"
            assert {scope.scope.name for scope in resource.scope_spans} == {"curator_otel"}
            assert {scope.scope.version for scope in resource.scope_spans} == {__version__}
    for request in sink.listener.telemetry.trace_requests:
        headers = {name.lower(): value for name, value in request.headers.items()}
        assert headers["x-key"] == "abc"
        assert headers["content-type"] == "application/x-protobuf"


def test_a_receiver_gets_the_metrics(sink):
    with configure(endpoint=sink.url, set_global=False) as telemetry:
        run_fussy(telemetry)
    metrics = sink.metrics
    points = {
        tuple(attributes_of(point).values()): point.as_int for point in metrics["curator.task.count"].sum.data_points
    }
    assert points == {
        ("fan_out", "out"): 1,
        ("Fussy", "out"): 2,
        ("Fussy", "filtered"): 1,
        ("Fussy", "failed"): 1,
    }
    assert metrics["curator.task.count"].sum.is_monotonic
    duration = metrics["curator.batch.duration"]
    assert duration.unit == "s"
    assert sum(point.count for point in duration.histogram.data_points) == 5


def test_traceparent_reaches_the_receiver(sink, monkeypatch):
    monkeypatch.setenv("TRACEPARENT", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
    with configure(endpoint=sink.url, set_global=False) as telemetry:
        run_fussy(telemetry)
    (root,) = [span for span in sink.spans if span.name == "run fussy"]
    assert root.trace_id.hex() == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert root.parent_span_id.hex() == "00f067aa0ba902b7"


def test_a_users_seeded_sequence_stays_as_it_was(sink):
    """Ids, exemplars, and the back-off that the exporter draws for each request, in a thread of its own."""
    random.seed(3)
    expected = [random.random() for _ in range(3)]
    with configure(endpoint=sink.url, set_global=False) as telemetry:
        tracer = telemetry.tracer_provider.get_tracer("application")
        random.seed(3)
        with tracer.start_as_current_span("outer"):
            run_fussy(telemetry)
        assert telemetry.flush()
    assert [random.random() for _ in range(3)] == expected


def test_a_burst_loses_nothing(sink):
    with configure(endpoint=sink.url, set_global=False) as telemetry:
        tracer = telemetry.tracer_provider.get_tracer("application")
        for _ in range(5000):
            tracer.start_span("s").end()
    assert telemetry.dropped == 0
    assert len(sink.spans) == 5000


# --- receivers that do not do their part --------------------------------------------------------------------


@pytest.fixture
def refusing():
    """A port on which nobody listens: connections are refused."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def silent():
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def answering():
    """Answers every request with a status."""
    servers = []

    def answer(status, headers=()):
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield answer
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


def lose(endpoint, caplog, **settings):
    """Runs with a receiver that will not have it; the one line that is said about that."""
    with caplog.at_level(logging.INFO):
        telemetry = configure(endpoint=endpoint, set_global=False, **settings)
        result = run_fussy(telemetry)
        assert not telemetry.shutdown()
        assert not telemetry.shutdown()
    assert [task.data for task in result] == [0, 3]
    assert result.complete
    assert telemetry.dropped == 11
    ours = [record for record in caplog.records if record.name != "urllib3.connectionpool"]
    assert [record.name for record in ours] == ["curator_otel.setup"]
    (record,) = ours
    assert record.levelno == logging.WARNING
    assert record.exc_info is None
    return record.getMessage()


def test_an_endpoint_that_is_down(refusing, caplog):
    said = lose(refusing, caplog, shutdown_timeout_s=0.2)
    assert said.startswith(f"11 spans and the last metrics did not reach {refusing}/v1/traces; runs are unaffected (")
    assert "refused" in said


def test_an_endpoint_that_never_answers(silent, caplog):
    said = lose(silent, caplog, shutdown_timeout_s=0.2)
    assert said.startswith("11 spans")


@pytest.mark.parametrize(
    ("status", "headers"),
    [(400, ()), (404, ()), (429, (("Retry-After", "3600"),)), (503, ())],
)
def test_an_endpoint_that_says_no(answering, caplog, status, headers):
    said = lose(answering(status, headers), caplog, shutdown_timeout_s=0.2)
    assert said.startswith("11 spans and the last metrics")


def test_an_address_that_does_not_exist(caplog):
    lose("http://collector.invalid:4318", caplog, shutdown_timeout_s=0.2)


def test_a_flush_that_fails_says_so(answering):
    with configure(endpoint=answering(400), set_global=False) as telemetry:
        run_fussy(telemetry)
        assert not telemetry.flush()
        assert telemetry.dropped == 11


def test_what_other_exporters_of_the_application_log_is_let_through(answering, caplog):
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    url = answering(400)
    with configure(endpoint=url, set_global=False) as telemetry:
        run_fussy(telemetry)
        telemetry.flush()
        assert not caplog.records
        theirs = OTLPSpanExporter(endpoint=url)
        theirs.export([])
        theirs.shutdown()
    assert caplog.records[0].name.startswith("opentelemetry.exporter.otlp.proto.http")


def test_a_disk_that_is_full_costs_the_trace_and_nothing_else(caplog, tmp_path):
    full = tmp_path / "full.json"
    full.symlink_to("/dev/full")
    with caplog.at_level(logging.INFO):
        telemetry = configure(json_file=full, set_global=False)
        assert len(run_fussy(telemetry)) == 2
        assert not telemetry.shutdown()
    (record,) = caplog.records
    assert record.getMessage().startswith(f"11 spans did not reach {full}")
    assert "No space left" in record.getMessage()


class Broken:
    """An exporter that raises."""

    def export(self, batch):
        raise RuntimeError("broken")

    def shutdown(self):
        raise RuntimeError("broken")


def test_an_exporter_that_raises_is_counted():
    watched = WatchedExporter(Broken(), SpanExportResult.FAILURE)
    assert watched.export([1, 2, 3]) is SpanExportResult.FAILURE
    watched.shutdown()
    watched.shutdown()
    watched.export([4])
    assert (watched.sent, watched.lost, watched.reason) == (0, 4, "RuntimeError: broken")
