# SPDX-License-Identifier: Apache-2.0
"""From a run to a receiver, and to several that do not do their part: what is lost is counted and told once."""

from __future__ import annotations

import logging
import random
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from opentelemetry.sdk.trace.export import SpanExportResult

from curator_core import Pipeline, ProcessingStage, Task, processing_stage
from curator_otel import OTelObserver, configure
from curator_otel.delivery import WatchedExporter

# --- a receiver ---------------------------------------------------------------------------------------------


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
