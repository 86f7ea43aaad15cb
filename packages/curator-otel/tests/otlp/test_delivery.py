# SPDX-License-Identifier: Apache-2.0
"""Receivers that fail temporarily or permanently: the run is unaffected, and losses are counted and reported once."""

from __future__ import annotations

import logging
import random
import socket
import threading
from importlib.metadata import version

import pytest
from opentelemetry.sdk.trace.export import SpanExportResult
from tests.waiting import DEADLINE_S, wait_until

from curator_otel import configure
from curator_otel.sdk.exporters import WatchedExporter

heeds_retry_after = pytest.mark.skipif(
    tuple(map(int, version("opentelemetry-exporter-otlp-proto-http").split(".")[:2])) < (1, 45),
    reason="OpenTelemetry's exporter supports Retry-After, and retries on 429, since 1.45",
)


def reports(caplog):
    """Return what was logged about data that did not arrive."""
    return [record.getMessage() for record in caplog.records if record.name == "curator_otel.sdk.setup"]


def patient(server, **settings):
    return configure(endpoint=server.url, set_global=False, shutdown_timeout_s=DEADLINE_S, **settings)


# --- temporary failures -------------------------------------------------------------------------------------


def test_burst_of_reports_loses_nothing(sink, make_faulty, answer):
    go_on = threading.Event()
    with patient(make_faulty(answer(after=go_on))) as telemetry:
        tracer = telemetry.tracer_provider.get_tracer("application")
        for _ in range(4000):  # the SDK's queue has room for 2,048
            tracer.start_span("s").end()
        go_on.set()
    assert telemetry.dropped == 0
    assert len(sink.spans) == 4000


@heeds_retry_after
@pytest.mark.parametrize("status", [429, 503])
def test_busy_receiver_gets_everything_after_retry_after(sink, make_faulty, answer, send, caplog, status):
    busy = answer(status, (("Retry-After", "0"),))
    # The exporter's own back-off, 1 + 2 + 4 + 8 seconds, would exceed the ten seconds after which it gives up.
    server = make_faulty(busy, busy, busy, busy)
    telemetry = patient(server)
    sent = send(telemetry)
    assert telemetry.shutdown()
    assert telemetry.dropped == 0
    assert len(sink.spans) == sent.ended
    assert max(server.tries.values()) == 5
    assert not reports(caplog)


def test_closed_connection_is_opened_again(sink, make_faulty, answer, send, caplog):
    server = make_faulty(answer(closes=True))
    telemetry = patient(server)
    sent = send(telemetry)
    assert telemetry.shutdown()
    assert max(server.tries.values()) == 2
    assert len(sink.spans) == sent.ended
    assert not reports(caplog)


def test_receiver_that_starts_late_gets_everything(sink, make_faulty, send, complaints, caplog):
    server = make_faulty(opened=False)
    complaints.then = server.open
    telemetry = patient(server)
    sent = send(telemetry)
    assert telemetry.shutdown()
    assert complaints.first.is_set()
    assert telemetry.dropped == 0
    assert len(sink.spans) == sent.ended
    assert not reports(caplog)


def test_slow_receiver_does_not_delay_the_run(sink, make_faulty, answer, send, monkeypatch):
    """The run is over before the receiver accepts its first span."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
    go_on = threading.Event()
    server = make_faulty(answer(after=go_on))
    with patient(server) as telemetry:
        sent = send(telemetry)
        assert not sink.spans
        go_on.set()
        assert telemetry.flush(DEADLINE_S)
    assert telemetry.dropped == 0
    assert len(sink.spans) == sent.ended


def test_receiver_outage_loses_only_what_was_sent_during_it(sink, make_faulty, answer, send, caplog):
    server = make_faulty(forever=answer(400))
    telemetry = patient(server)
    first = send(telemetry)
    assert not telemetry.flush(DEADLINE_S)
    assert telemetry.dropped == first.ended
    server.forever = answer()
    second = send(telemetry)
    assert telemetry.flush(DEADLINE_S)
    assert not telemetry.shutdown()
    assert telemetry.dropped == len(first.kept.get_finished_spans()) - second.ended
    assert len(sink.spans) == second.ended
    assert {span.trace_id.hex() for span in sink.spans} == {
        f"{span.context.trace_id:032x}" for span in second.kept.get_finished_spans()
    }
    (said,) = reports(caplog)
    assert said.startswith(f"{telemetry.dropped} spans did not reach {server.url}/v1/traces; runs are unaffected (")
    assert "400" in said


def test_receiver_of_traces_only_needs_metrics_turned_off(make_faulty, answer, send, caplog, monkeypatch):
    server = make_faulty(metrics=answer(405))
    telemetry = patient(server)
    send(telemetry)
    assert not telemetry.shutdown()
    (said,) = reports(caplog)
    assert said.startswith(f"the last metrics did not reach {server.url}/v1/metrics; runs are unaffected")
    caplog.clear()
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    telemetry = patient(server)
    send(telemetry)
    assert telemetry.shutdown()
    assert not caplog.records


# --- permanent failures -------------------------------------------------------------------------------------


def lose(endpoint, send, caplog, heard=None):
    """Run with a receiver that accepts nothing; return the one line that is logged about it."""
    with caplog.at_level(logging.INFO):
        telemetry = configure(endpoint=endpoint, set_global=False, shutdown_timeout_s=0.2)
        sent = send(telemetry)
        assert heard is None or heard.wait(DEADLINE_S)
        assert not telemetry.shutdown()
        assert not telemetry.shutdown()
    assert sent.result.complete
    assert telemetry.dropped == sent.ended
    ours = [r for r in caplog.records if r.levelno > logging.DEBUG and r.name != "urllib3.connectionpool"]
    assert [(r.name, r.levelno, r.exc_info) for r in ours] == [("curator_otel.sdk.setup", logging.WARNING, None)]
    said = ours[0].getMessage()
    assert said.startswith(f"{sent.ended} spans ")
    assert f"did not reach {endpoint}/v1/traces; runs are unaffected (" in said
    return said


def test_endpoint_that_is_down_is_reported_once(send, complaints, caplog):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # no process listens
        assert "refused" in lose(f"http://127.0.0.1:{taken.getsockname()[1]}", send, caplog, complaints.first)


def test_endpoint_that_never_answers_is_reported_once(send, caplog):
    with socket.create_server(("127.0.0.1", 0)) as server:
        lose(f"http://127.0.0.1:{server.getsockname()[1]}", send, caplog)


def test_metrics_not_delivered_at_the_end_are_reported(send, caplog, monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")  # no span can be lost
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        telemetry = configure(endpoint=endpoint, set_global=False, shutdown_timeout_s=0.2)
        send(telemetry)
        assert not telemetry.shutdown()
    assert f"the last metrics did not reach {endpoint}/v1/metrics" in caplog.text


def test_unknown_host_is_reported_once(send, complaints, caplog):
    lose("http://collector.invalid:4318", send, caplog, complaints.first)


@pytest.mark.parametrize(
    "fault",
    [
        {"closes": True},
        {"status": 400},
        {"status": 404},
        {"status": 429, "headers": (("Retry-After", "3600"),)},
        {"status": 500},
        {"status": 503},
    ],
    ids=["closes", "400", "404", "429", "500", "503"],
)
def test_rejecting_endpoint_is_reported_once_and_retries_are_limited(
    make_faulty, answer, send, complaints, caplog, monkeypatch, fault
):
    # By default, the exporter would retry for half a minute after the SDK stops it: five times or more.
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3600")
    server = make_faulty(forever=answer(**fault))
    before = set(threading.enumerate())
    lose(server.url, send, caplog, complaints.first)
    wait_until(lambda: not [new for new in threading.enumerate() if new.name.startswith("Otel") and new not in before])
    assert server.tries
    requests_a_try = 1 + fault.get("closes", False)  # a broken connection is reopened immediately
    assert max(server.tries.values()) < 5 * requests_a_try


def test_lost_metrics_are_in_the_report_of_lost_spans(make_faulty, answer, send, caplog):
    server = make_faulty(forever=answer(400), metrics=answer(400))
    telemetry = patient(server)
    sent = send(telemetry)
    assert not telemetry.shutdown()
    (said,) = reports(caplog)
    assert said.startswith(f"{sent.ended} spans and the last metrics did not reach {server.url}/v1/traces; runs are un")


def test_full_disk_loses_only_the_trace(send, caplog, tmp_path):
    full = tmp_path / "full.json"
    full.symlink_to("/dev/full")
    with caplog.at_level(logging.INFO):
        telemetry = configure(json_file=full, set_global=False, shutdown_timeout_s=DEADLINE_S)
        sent = send(telemetry)
        assert not telemetry.shutdown()
    assert telemetry.dropped == sent.ended
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{sent.ended} spans did not reach {full}")
    assert "No space left" in record.getMessage()


class Broken:
    """An exporter that raises."""

    def export(self, batch):
        raise RuntimeError("broken")

    def shutdown(self):
        raise RuntimeError("broken")


def test_raising_exporter_counts_as_losing_everything():
    watched = WatchedExporter(Broken(), SpanExportResult.FAILURE)
    assert watched.export([1, 2, 3]) is SpanExportResult.FAILURE
    watched.shutdown()
    watched.shutdown()
    watched.export([4])
    assert (watched.sent, watched.lost, watched.reason) == (0, 4, "RuntimeError: broken")


# --- effects on the application -----------------------------------------------------------------------------


def test_logs_of_other_exporters_are_not_suppressed(make_faulty, answer, send, caplog):
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    server = make_faulty(forever=answer(400))
    with patient(server) as telemetry:
        send(telemetry)
        assert not telemetry.flush(DEADLINE_S)
        assert not caplog.records
        theirs = OTLPSpanExporter(endpoint=f"{server.url}/v1/traces")
        theirs.export([])
        theirs.shutdown()
    assert caplog.records[0].name.startswith("opentelemetry.exporter.otlp.proto.http")


def test_global_random_state_is_not_used(sink, send):
    """Ids, exemplars, and the back-off that the exporter draws per request in its own thread do not affect it."""
    random.seed(3)
    expected = [random.random() for _ in range(3)]
    with patient(sink) as telemetry:
        tracer = telemetry.tracer_provider.get_tracer("application")
        random.seed(3)
        with tracer.start_as_current_span("outer"):
            send(telemetry)
        assert telemetry.flush(DEADLINE_S)
    assert [random.random() for _ in range(3)] == expected
