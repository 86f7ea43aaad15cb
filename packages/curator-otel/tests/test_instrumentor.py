# SPDX-License-Identifier: Apache-2.0
"""Runs that are traced without changes to the program."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from tests.waiting import DEADLINE_S

from curator_core import Pipeline, Task, processing_stage
from curator_otel import configure, slowest_stage

pytest.importorskip("opentelemetry.instrumentation", reason="needs the extra 'instrument'")

from curator_otel.instrumentor import CuratorInstrumentor


@processing_stage()
def same(task):
    return task


def run(*observers):
    return Pipeline("p", [same]).run(initial_tasks=[Task(data=1)], observers=observers)


@pytest.fixture
def instrumentor():
    made = CuratorInstrumentor()
    yield made
    if made.is_instrumented_by_opentelemetry:
        made.uninstrument()


@pytest.fixture
def instrumented(memory, instrumentor):
    instrumentor.instrument(tracer_provider=memory.tracer_provider, meter_provider=memory.meter_provider)
    return instrumentor


# --- in this process ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("instrumented")
def test_run_is_traced_and_measured(memory):
    result = run()
    assert memory.one("run p").attributes["curator.run.id"] == result.run_id
    assert memory.one("process_batch same").attributes["curator.task.in"] == 1
    assert memory.points()["curator.run.count"] == {("ok",): 1}


@pytest.mark.usefixtures("instrumented")
def test_run_with_an_explicit_observer_is_traced_once(memory):
    run(memory.observer())
    assert len(memory.named("run p")) == 1
    assert memory.points()["curator.run.count"] == {("ok",): 1}


def test_instrument_works_again_after_uninstrument(memory, instrumented):
    instrumented.uninstrument()
    run()
    assert memory.spans == []
    instrumented.instrument(tracer_provider=memory.tracer_provider)
    run()
    assert len(memory.named("run p")) == 1


@pytest.mark.usefixtures("instrumented")
def test_second_instrument_changes_nothing(memory, caplog):
    CuratorInstrumentor().instrument()
    assert "already instrumented" in caplog.text
    run()
    assert len(memory.named("run p")) == 1


def test_instrument_takes_the_settings_of_the_observer(memory, instrumentor):
    instrumentor.instrument(tracer_provider=memory.tracer_provider, max_spans=10)
    run()
    assert memory.one("run p").attributes["curator.span.limit"] == 10


@pytest.mark.usefixtures("no_global_sdk")
def test_global_providers_that_are_set_later_are_used(instrumentor, tmp_path):
    instrumentor.instrument()
    with configure(json_file=tmp_path / "trace.json", shutdown_timeout_s=DEADLINE_S):
        run()
    assert slowest_stage(tmp_path / "trace.json") == "same"


# --- from the outside ---------------------------------------------------------------------------------------


SCRIPT = """
import json
from curator_core import LocalExecutor, Pipeline, Task, processing_stage

@processing_stage()
def same(task):
    return task

if __name__ == "__main__":
    result = Pipeline("p", [same]).run(LocalExecutor(workers={workers}), initial_tasks=[Task(data=1), Task(data=2)])
    print(json.dumps({{"run_id": result.run_id}}))
"""


def run_instrumented(tmp_path: Path, *options: str, workers: int = 1) -> tuple[str, list[dict], dict[str, dict]]:
    """Run a script under opentelemetry-instrument; return the run id, and the spans and metrics that it printed."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(workers=workers), encoding="utf-8")
    command = Path(sysconfig.get_path("scripts")) / "opentelemetry-instrument"
    consoles = ("--traces_exporter", "console", "--metrics_exporter", "console", "--logs_exporter", "none")
    done = subprocess.run(
        [command, *consoles, *options, sys.executable, script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    written, documents, decoder = done.stdout, [], json.JSONDecoder()
    while written := written.lstrip():
        document, end = decoder.raw_decode(written)
        documents.append(document)
        written = written[end:]
    (run_id,) = [document["run_id"] for document in documents if "run_id" in document]
    spans = [document for document in documents if "context" in document]
    scopes = [s for document in documents for r in document.get("resource_metrics", ()) for s in r["scope_metrics"]]
    return run_id, spans, {metric["name"]: metric for scope in scopes for metric in scope["metrics"]}


@pytest.mark.usefixtures("installed")  # opentelemetry-instrument finds it by name
def test_opentelemetry_instrument_traces_an_unchanged_program_on_processes(tmp_path):
    run_id, spans, metrics = run_instrumented(tmp_path, workers=2)
    (root,) = [span for span in spans if span["name"] == "run p"]
    assert root["attributes"]["curator.run.id"] == run_id
    assert root["attributes"]["curator.task.out"] == 2
    assert "00 same" in {span["name"] for span in spans}
    workers = {s["attributes"]["curator.worker.id"] for s in spans if s["name"] == "process_batch same"}
    assert workers <= {"local-0", "local-1"}
    assert workers
    (point,) = metrics["curator.run.count"]["data"]["data_points"]
    assert (point["value"], point["attributes"]) == (1, {"curator.outcome": "ok"})


@pytest.mark.usefixtures("installed")
def test_instrumentation_is_disabled_by_opentelemetrys_variable(tmp_path):
    run_id, spans, metrics = run_instrumented(tmp_path, "--disabled_instrumentations", "curator")
    assert len(run_id) == 32
    assert spans == []
    assert "curator.run.count" not in metrics
