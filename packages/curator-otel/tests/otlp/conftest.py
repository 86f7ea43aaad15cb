# SPDX-License-Identifier: Apache-2.0
"""Shared fixtures of delivery tests: a third-party receiver, one that can fail, and a run to send."""

from __future__ import annotations

import functools
import gzip
import logging
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from oteltest.sink import HttpSink
from oteltest.sink.handler import AccumulatingHandler
from tests.waiting import DEADLINE_S

from curator_core import Pipeline, ProcessingStage, Task
from curator_otel import OTelObserver, configure

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

    from curator_core import RunResult
    from curator_otel import Telemetry


# --- a receiver ---------------------------------------------------------------------------------------------


class Sink(HttpSink):
    """oteltest's receiver on a free port, keeping the complete protobuf.

    Args:
        tls: TLS context of its connections; None for plain HTTP.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.listening = threading.Event()
        self.tls = tls
        super().__init__(AccumulatingHandler(), logging.getLogger("sink"), port=0)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "httpd" and value is not None:  # it is listening and about to serve
            if self.tls is not None:
                value.socket = self.tls.wrap_socket(value.socket, server_side=True)
            value.RequestHandlerClass.log_message = lambda *_: None
            value.serve_forever = functools.partial(value.serve_forever, poll_interval=0.02)
            self.listening.set()

    def handle_trace(self, post_data: bytes, headers: dict[str, str]) -> None:
        super().handle_trace(*_unpacked(post_data, headers))

    def handle_metrics(self, post_data: bytes, headers: dict[str, str]) -> None:
        super().handle_metrics(*_unpacked(post_data, headers))

    @property
    def url(self) -> str:
        return f"http{'s' * bool(self.tls)}://127.0.0.1:{self.httpd.server_address[1]}"

    @property
    def traces(self) -> list[Any]:
        """The requests with spans."""
        return list(self.listener.telemetry.trace_requests)

    @property
    def measured(self) -> list[Any]:
        """The requests with metrics."""
        return list(self.listener.telemetry.metric_requests)

    @property
    def spans(self) -> list[Span]:
        """All spans, in the order in which they arrived."""
        resources = [resource for request in self.traces for resource in request.pbreq.resource_spans]
        return [span for resource in resources for scope in resource.scope_spans for span in scope.spans]

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> Span:
        (span,) = self.named(name)
        return span

    @property
    def metrics(self) -> dict[str, Metric]:
        """The metrics that arrived last, by name."""
        resources = [resource for request in self.measured for resource in request.pbreq.resource_metrics]
        return {metric.name: metric for r in resources for scope in r.scope_metrics for metric in scope.metrics}

    @staticmethod
    def attributes_of(message: Any) -> dict[str, Any]:
        """Return the attributes of a span, an event, a resource, or a point, each from its typed field."""
        return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in message.attributes}


def _unpacked(data: bytes, headers: dict[str, str]) -> tuple[bytes, dict[str, str]]:
    """Decompress a request, and convert the names of its headers to lower case."""
    lower = {name.lower(): value for name, value in headers.items()}
    return gzip.decompress(data) if lower.get("content-encoding") == "gzip" else data, lower


@contextmanager
def receiving(tls: ssl.SSLContext | None = None) -> Iterator[Sink]:
    receiver = Sink(tls)
    receiver.start()
    try:
        assert receiver.listening.wait(DEADLINE_S)
        yield receiver
    finally:
        receiver.stop()


@pytest.fixture
def make_sink() -> Callable[..., AbstractContextManager[Sink]]:
    return receiving


@pytest.fixture
def sink() -> Iterator[Sink]:
    with receiving() as receiver:
        yield receiver


# --- a faulty receiver --------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """The response to a request: a status, or a closed connection, immediately or after an event."""

    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    closes: bool = False
    after: threading.Event | None = None


class Faulty(ThreadingHTTPServer):
    """Responds to requests with spans according to a list, and to requests with metrics always in the same way.

    Args:
        sink: Keeps requests with response 200.
        answers: Responses to the first requests with spans.
        forever: Response to all later requests with spans; None for 200.
        metrics: Response to requests with metrics; None for 200.

    Attributes:
        tries: How often each request with spans arrived, by its content.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(
        self, sink: Sink, *answers: Answer, forever: Answer | None = None, metrics: Answer | None = None
    ) -> None:
        self.sink, self.answers, self.forever = sink, list(answers), forever or Answer()
        self.metrics = metrics or Answer()
        self.tries: Counter[bytes] = Counter()
        super().__init__(("127.0.0.1", 0), _FaultyHandler, bind_and_activate=False)
        self.server_bind()  # until it is activated, connections are refused
        self.thread = threading.Thread(target=self.serve_forever, args=(0.02,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def open(self) -> None:
        """Accept connections."""
        self.server_activate()
        self.thread.start()

    def next_answer(self, data: bytes) -> Answer:
        self.tries[data] += 1
        return self.answers.pop(0) if self.answers else self.forever


class _FaultyHandler(BaseHTTPRequestHandler):
    server: Faulty

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        with_spans = self.path.endswith("/traces")
        answer = self.server.next_answer(data) if with_spans else self.server.metrics
        if answer.after is not None:
            answer.after.wait(DEADLINE_S)
        if answer.closes:
            self.close_connection = True
            return
        if answer.status == 200:
            take = self.server.sink.handle_trace if with_spans else self.server.sink.handle_metrics
            take(data, dict(self.headers.items()))
        self.send_response(answer.status)
        for name, value in (*answer.headers, ("Content-Length", "0")):
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def answer() -> type[Answer]:
    return Answer


@pytest.fixture
def make_faulty(sink: Sink) -> Iterator[Callable[..., Faulty]]:
    made: list[Faulty] = []

    def make(*answers: Answer, opened: bool = True, **others: Answer) -> Faulty:
        made.append(Faulty(sink, *answers, **others))
        if opened:
            made[-1].open()
        return made[-1]

    yield make
    for server in made:
        if server.thread.is_alive():
            server.shutdown()
            server.thread.join()
        server.server_close()


class Complaints(logging.Handler):
    """Handles what an exporter logs about its attempts.

    Attributes:
        first: Set at the first record.
        then: Called at the first record.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = threading.Event()
        self.then: Callable[[], None] = lambda: None

    def emit(self, record: logging.LogRecord) -> None:
        if not self.first.is_set():
            self.first.set()
            self.then()


@pytest.fixture
def complaints(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[Complaints]:
    """Let exporters send immediately, and handle what they log."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
    heard, delivery = Complaints(), logging.getLogger("curator_otel.sdk.exporters")
    with caplog.at_level(logging.DEBUG, delivery.name):
        delivery.addHandler(heard)
        yield heard
        delivery.removeHandler(heard)


# --- a run to send ------------------------------------------------------------------------------------------


class Split(ProcessingStage[Any, Any]):
    """Fans each task out to four numbers."""

    name = "split"

    def process(self, task: Task[int]) -> list[Task[int]]:
        return [Task(data=number) for number in range(4)]


class Sieve(ProcessingStage[Any, Any]):
    """Drops 1, raises on 3, and records a metric of each type."""

    name = "sieve"

    def process(self, task: Task[int]) -> Task[int] | None:
        for name, value in (("whole", 7), ("share", 0.5), ("flag", True), ("model", "tiny")):
            self.metrics.set(name, value)
        if task.data == 3:
            raise ValueError("three is too many")
        return None if task.data == 1 else task


class Pair(ProcessingStage[Any, Any]):
    """Processes batches of two numbers."""

    name = "pair"
    batch_size = 2

    def process(self, task: Task[int]) -> Task[int]:
        return task


class Sent(NamedTuple):
    """A run, and the spans that the SDK received."""

    result: RunResult
    kept: InMemorySpanExporter

    @property
    def ended(self) -> int:
        """The number of spans that ended, counted by the SDK."""
        return len(self.kept.get_finished_spans())


def patient(**settings: Any) -> Telemetry:
    """Set up the SDK with a shutdown timeout that is long enough for a busy machine."""
    return configure(set_global=False, shutdown_timeout_s=DEADLINE_S, **settings)


def send_run(telemetry: Telemetry, **settings: Any) -> Sent:
    """Run two numbers through the stages: two of eight fail, two are dropped. Keep a copy of the spans."""
    provider: Any = telemetry.tracer_provider
    kept = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    observer = OTelObserver(provider, telemetry.meter_provider)
    tasks = [Task(data=0), Task(data=1)]
    given = {"on_error": "skip"} | settings
    result = Pipeline("numbers", [Split(), Sieve(), Pair()]).run(initial_tasks=tasks, observers=[observer], **given)
    assert [task.data for task in result] == [0, 2, 0, 2]
    return Sent(result, kept)


@pytest.fixture
def send() -> Callable[..., Sent]:
    return send_run


@pytest.fixture(scope="session")
def received() -> tuple[Sink, RunResult]:
    """The stopped receiver of a run, and the run."""
    with receiving() as sink, patient(endpoint=sink.url) as telemetry:
        sent = send_run(telemetry)
        telemetry.shutdown()
        assert telemetry.dropped == 0
        assert len(sink.spans) == sent.ended
    return sink, sent.result
