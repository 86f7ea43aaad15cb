# SPDX-License-Identifier: Apache-2.0
"""Receivers that fail for a while, or for good: the run does not notice, and nothing is lost in silence."""

from __future__ import annotations

import threading
from importlib.metadata import version

import pytest

from curator_otel import configure

heeds_retry_after = pytest.mark.skipif(
    tuple(map(int, version("opentelemetry-exporter-otlp-proto-http").split(".")[:2])) < (1, 45),
    reason="OpenTelemetry's exporter heeds Retry-After, and retries on 429, from 1.45 on",
)


def lost_reports(caplog):
    """What was said about spans that did not arrive."""
    return [record.getMessage() for record in caplog.records if record.name == "curator_otel.setup"]


# --- for a while --------------------------------------------------------------------------------------------


@heeds_retry_after
@pytest.mark.parametrize("status", [429, 503])
def test_a_receiver_that_asks_for_patience_gets_everything(sink, make_moody, answer, send, caplog, status):
    busy = answer(status, (("Retry-After", "0"),))
    # Its own back-off, 1 + 2 + 4 + 8 seconds, would be longer than the ten seconds that it goes on trying for.
    server = make_moody(busy, busy, busy, busy)
    telemetry = configure(endpoint=server.url, set_global=False, shutdown_timeout_s=30)
    sent = send(telemetry)
    assert telemetry.shutdown()
    assert telemetry.dropped == 0
    assert len(sink.spans) == sent.ended
    assert len(server.times) >= 5
    assert not lost_reports(caplog)


@heeds_retry_after
def test_retry_after_is_waited_for(sink, make_moody, answer, send):
    server = make_moody(answer(503, (("Retry-After", "2"),)))
    with configure(endpoint=server.url, set_global=False, shutdown_timeout_s=30) as telemetry:
        sent = send(telemetry)
    first, second, *_ = server.times
    assert second - first >= 2  # its own back-off would have been one second
    assert len(sink.spans) == sent.ended


def test_without_it_there_is_a_back_off(sink, make_moody, answer, send):
    server = make_moody(answer(503))
    with configure(endpoint=server.url, set_global=False, shutdown_timeout_s=30) as telemetry:
        sent = send(telemetry)
    first, second, *_ = server.times
    assert second - first >= 0.7
    assert len(sink.spans) == sent.ended


def test_a_connection_that_is_closed_once_is_made_again(sink, make_moody, answer, send, caplog):
    server = make_moody(answer(closes=True))
    telemetry = configure(endpoint=server.url, set_global=False, shutdown_timeout_s=30)
    sent = send(telemetry)
    assert telemetry.shutdown()
    assert len(server.times) >= 2
    assert len(sink.spans) == sent.ended
    assert not lost_reports(caplog)


def test_a_slow_receiver_does_not_hold_the_run_up(sink, make_moody, answer, send, monkeypatch):
    """The run is over before its first span has been taken."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
    go_on = threading.Event()
    server = make_moody(answer(after=go_on))
    with configure(endpoint=server.url, set_global=False, shutdown_timeout_s=30) as telemetry:
        sent = send(telemetry)
        assert not sink.spans
        go_on.set()
        assert telemetry.flush(30)
    assert telemetry.dropped == 0
    assert len(sink.spans) == sent.ended


def test_a_receiver_that_starts_late_gets_everything(sink, make_moody, send, complaints, caplog):
    server = make_moody(opened=False)
    complaints.then = server.open
    telemetry = configure(endpoint=server.url, set_global=False, shutdown_timeout_s=30)
    sent = send(telemetry)
    assert telemetry.shutdown()
    assert complaints.first.is_set()
    assert telemetry.dropped == 0
    assert len(sink.spans) == sent.ended
    assert not lost_reports(caplog)


def test_a_receiver_that_comes_back_costs_what_was_sent_meanwhile(sink, make_moody, answer, send, caplog):
    """The first run is lost and the second arrives, and one line says how much that was."""
    server = make_moody(forever=answer(400))
    telemetry = configure(endpoint=server.url, set_global=False, shutdown_timeout_s=30)
    first = send(telemetry)
    assert not telemetry.flush(30)
    assert telemetry.dropped == first.ended
    server.forever = answer()
    second = send(telemetry)
    assert telemetry.flush(30)
    assert not telemetry.shutdown()
    assert telemetry.dropped == len(first.kept.get_finished_spans()) - second.ended
    assert len(sink.spans) == second.ended
    assert {span.trace_id.hex() for span in sink.spans} == {
        f"{span.context.trace_id:032x}" for span in second.kept.get_finished_spans()
    }
    (said,) = lost_reports(caplog)
    assert said.startswith(f"{telemetry.dropped} spans did not reach {server.url}/v1/traces; runs are unaffected (")
    assert "400" in said


# --- for good -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mood",
    [{"closes": True}, {"status": 503}, {"status": 429, "headers": (("Retry-After", "5"),)}, {"status": 500}],
    ids=["closes", "503", "429", "500"],
)
def test_a_receiver_that_stays_like_that_is_reported_once(
    make_moody, answer, send, complaints, caplog, monkeypatch, mood
):
    # Left to itself, the exporter would try for half a minute, when the SDK stops it: five times and more.
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3600")
    server = make_moody(forever=answer(**mood))
    telemetry = configure(endpoint=server.url, set_global=False, shutdown_timeout_s=0.2)
    sent = send(telemetry)
    assert complaints.first.wait(30)
    assert not telemetry.shutdown()
    assert not telemetry.shutdown()
    requests_a_try = 1 + mood.get("closes", False)  # a connection that breaks is made again at once
    assert server.tries
    assert max(server.tries.values()) < 5 * requests_a_try
    assert telemetry.dropped == sent.ended
    (said,) = lost_reports(caplog)
    assert said.startswith(f"{sent.ended} spans did not reach {server.url}/v1/traces; runs are unaffected (")
