# SPDX-License-Identifier: Apache-2.0
"""Runs that are traced without a word about it in the program."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from curator_core import LocalExecutor, Pipeline, Task, processing_stage
from curator_core.ambient import ambient_observers

pytest.importorskip("opentelemetry.instrumentation", reason="needs the extra 'instrument'")

from curator_otel.instrumentor import CuratorInstrumentor


@processing_stage()
def same(task):
    return task


def run(*observers, executor=None):
    return Pipeline("p", [same]).run(executor, initial_tasks=[Task(data=1)], observers=observers)


@pytest.fixture
def instrumentor(memory):
    made = CuratorInstrumentor()
    made.instrument(tracer_provider=memory.tracer_provider, meter_provider=memory.meter_provider)
    yield made
    if made.is_instrumented_by_opentelemetry:
        made.uninstrument()
    assert ambient_observers(()) == ()


# --- in this process ----------------------------------------------------------------------------------------


def test_a_run_is_traced_and_measured(memory, instrumentor):
    result = run()
    assert memory.one("run p").attributes["curator.run.id"] == result.run_id
    assert memory.one("process_batch same").attributes["curator.batch.tasks_in"] == 1
    assert memory.points()["curator.run.count"] == {("ok",): 1}


def test_a_run_that_has_its_own_observer_is_traced_once(memory, instrumentor):
    run(memory.observer())
    assert len(memory.named("run p")) == 1
    assert memory.points()["curator.run.count"] == {("ok",): 1}


def test_uninstrument_undoes_it(memory, instrumentor):
    instrumentor.uninstrument()
    run()
    assert memory.spans == []


def test_it_can_be_instrumented_again(memory, instrumentor):
    instrumentor.uninstrument()
    instrumentor.instrument(tracer_provider=memory.tracer_provider)
    run()
    assert len(memory.named("run p")) == 1


def test_twice_is_as_once(memory, instrumentor, caplog):
    CuratorInstrumentor().instrument()
    assert "already instrumented" in caplog.text
    run()
    assert len(memory.named("run p")) == 1


def test_settings_of_the_observer_are_taken(memory):
    instrumentor = CuratorInstrumentor()
    instrumentor.instrument(tracer_provider=memory.tracer_provider, max_spans=10)
    try:
        run()
    finally:
        instrumentor.uninstrument()
    assert memory.one("run p").attributes["curator.spans.limit"] == 10


def test_runs_on_processes_are_traced(memory, instrumentor):
    pytest.importorskip("loky")
    run(executor=LocalExecutor(workers=2))
    assert memory.one("process_batch same").attributes["curator.worker.id"] == "local-0"


def test_the_global_providers_are_used(tmp_path):
    code = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from curator_core import Pipeline, Task, processing_stage
from curator_otel.instrumentor import CuratorInstrumentor

@processing_stage()
def same(task):
    return task

CuratorInstrumentor().instrument()  # before there is an SDK
exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
Pipeline("p", [same]).run(initial_tasks=[Task(data=1)])
print([span.name for span in exporter.get_finished_spans() if span.name == "run p"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "['run p']\n", done.stderr


# --- from outside -------------------------------------------------------------------------------------------


SCRIPT = """
import json
import sys
from curator_core import LocalExecutor, Pipeline, Task, processing_stage

@processing_stage()
def same(task):
    return task

if __name__ == "__main__":
    executor = LocalExecutor(workers=int(sys.argv[1]))
    result = Pipeline("p", [same]).run(executor, initial_tasks=[Task(data=1), Task(data=2)])
    print(json.dumps({"run_id": result.run_id}))
"""

outside = pytest.mark.usefixtures("installed")  # opentelemetry-instrument finds it by name


def instrumented(tmp_path: Path, *options: str, workers: int = 1) -> list[dict]:
    """Runs the script under opentelemetry-instrument; what it and the console exporters wrote, in any order."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    command = Path(sysconfig.get_path("scripts")) / "opentelemetry-instrument"
    consoles = ("--traces_exporter", "console", "--metrics_exporter", "console", "--logs_exporter", "none")
    done = subprocess.run(
        [command, *consoles, *options, sys.executable, script, str(workers)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    written, documents, decoder = done.stdout, [], json.JSONDecoder()
    while written := written.lstrip():
        document, end = decoder.raw_decode(written)
        documents.append(document)
        written = written[end:]
    return documents


def run_id_of(documents: list[dict]) -> str:
    (said,) = [document["run_id"] for document in documents if "run_id" in document]
    return said


def spans_of(documents: list[dict]) -> list[dict]:
    return [document for document in documents if "context" in document]


def metrics_of(documents: list[dict]) -> dict[str, dict]:
    scopes = [s for document in documents for r in document.get("resource_metrics", ()) for s in r["scope_metrics"]]
    return {metric["name"]: metric for scope in scopes for metric in scope["metrics"]}


@outside
@pytest.mark.parametrize("workers", [1, 2])
def test_opentelemetry_instrument_traces_a_program_that_knows_nothing_of_it(tmp_path, workers):
    documents = instrumented(tmp_path, workers=workers)
    spans = spans_of(documents)
    (root,) = [span for span in spans if span["name"] == "run p"]
    assert root["attributes"]["curator.run.id"] == run_id_of(documents)
    assert root["attributes"]["curator.run.tasks_out"] == 2
    assert {"00 same", "process_batch same"} < {span["name"] for span in spans}
    (point,) = metrics_of(documents)["curator.run.count"]["data"]["data_points"]
    assert (point["value"], point["attributes"]) == (1, {"curator.outcome": "ok"})


@outside
def test_the_variable_of_opentelemetry_switches_it_off(tmp_path):
    documents = instrumented(tmp_path, "--disabled_instrumentations", "curator")
    assert len(run_id_of(documents)) == 32
    assert spans_of(documents) == []
    assert "curator.run.count" not in metrics_of(documents)
