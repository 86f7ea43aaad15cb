# SPDX-License-Identifier: Apache-2.0
"""Runs in a third-party trace server: sent over OTLP, read back through its API and from its page."""

from __future__ import annotations

import importlib
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from curator_core import LocalExecutor
from curator_otel import OTelObserver, configure, recover

pytestmark = [
    pytest.mark.everything,
    pytest.mark.tree,
    pytest.mark.timeout(900),
    # Metadata of packages that have no description.
    pytest.mark.filterwarnings("ignore:Implicit None on return values:DeprecationWarning"),
]

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "build" / "phoenix" / "trace.png"
NAME = "run curate package docs"


class Shown(NamedTuple):
    """A run, its spans as they were sent, and its spans on the server."""

    result: Any
    sent: dict[str, Any]
    spans: dict[str, dict[str, Any]]

    def one(self, name: str) -> dict[str, Any]:
        (span,) = [span for span in self.spans.values() if span["name"] == name]
        return span


@pytest.fixture(scope="module")
def shown(phoenix, tmp_path_factory):
    """Run the demo in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docs" / "examples"))
        demo = importlib.import_module("curate_package_docs")
    kept = InMemorySpanExporter()
    with configure(endpoint=phoenix.url, set_global=False) as telemetry:
        telemetry.tracer_provider.add_span_processor(SimpleSpanProcessor(kept))
        tracing = OTelObserver(telemetry.tracer_provider, telemetry.meter_provider)
        pipeline = demo.build(tmp_path_factory.mktemp("demo"), limit=None)
        result = pipeline.run(LocalExecutor(), observers=[tracing])
    assert telemetry.dropped == 0
    sent = {f"{span.context.span_id:016x}": span for span in kept.get_finished_spans()}
    found = phoenix.wait_for(result.run_id, lambda spans: len(spans) >= len(sent))
    return Shown(result, sent, {span["context"]["span_id"]: span for span in found})


def test_every_span_arrives(shown):
    assert set(shown.spans) == set(shown.sent)


def test_names_parents_and_times_are_unchanged(shown):
    for span_id, span in shown.spans.items():
        sent = shown.sent[span_id]
        assert span["name"] == sent.name
        assert span["parent_id"] == (sent.parent and f"{sent.parent.span_id:016x}")
        for field, time_ns in (("start_time", sent.start_time), ("end_time", sent.end_time)):
            assert datetime.fromisoformat(span[field]).timestamp() == pytest.approx(time_ns / 1e9, abs=2e-6)
        assert span["status_code"] == sent.status.status_code.name
        assert span["status_message"] == (sent.status.description or "")


def test_attributes_are_unchanged(shown):
    for span_id, span in shown.spans.items():
        sent = shown.sent[span_id].attributes
        ours = {name: value for name, value in span["attributes"].items() if name in sent}
        assert ours == {
            name: pytest.approx(value) if isinstance(value, float) else value for name, value in sent.items()
        }


def test_each_stage_has_a_span_below_the_run(shown):
    run = shown.one(NAME)
    assert run["parent_id"] is None
    assert len(shown.result.stages) == 7
    for index, stage in enumerate(shown.result.stages):
        assert shown.one(f"{index:02d} {stage.name}")["parent_id"] == run["context"]["span_id"]


def test_every_parent_exists(shown):
    for span in shown.spans.values():
        assert span["parent_id"] is None or span["parent_id"] in shown.spans
    assert {span["name"] for span in shown.spans.values() if span["parent_id"] is None} >= {NAME}


def test_the_run_names_its_bottleneck(shown):
    attributes = shown.one(NAME)["attributes"]
    verdict = shown.result.verdict
    assert attributes["curator.bottleneck.kind"] == verdict.kind
    assert attributes["curator.bottleneck.reason"] == verdict.reason
    assert attributes.get("curator.bottleneck.stage", "") == verdict.stage
    assert attributes["curator.run.state"] == "complete"


def test_stages_add_up_to_the_result(shown):
    stages = shown.result.stages
    told = [shown.one(f"{index:02d} {stage.name}")["attributes"] for index, stage in enumerate(stages)]
    assert [stage["curator.batch.ended"] for stage in told] == [stage.batches for stage in stages]
    assert [stage["curator.task.out"] for stage in told] == [stage.tasks_out for stage in stages]
    batches = shown.one(NAME)["attributes"]["curator.batch.ended"]
    assert sum(stage["curator.batch.ended"] for stage in told) == batches == sum(stage.batches for stage in stages)


def test_the_page_of_a_trace_shows_the_whole_run(shown, phoenix, photograph):
    """The picture is saved as build/phoenix/trace.png."""
    from PIL import Image

    page = photograph(phoenix.page_of(shown.result.run_id), PICTURE)
    for name in (NAME, *(f"{index:02d} {stage.name}" for index, stage in enumerate(shown.result.stages))):
        assert name in page.document
    with Image.open(page.path) as picture:
        colours = picture.convert("RGB").getcolors(picture.width * picture.height)
    assert colours is not None
    assert len(colours) > 100  # a blank page has one color; a page that is still loading, some dozens
    assert max(colours)[0] < 0.9 * picture.width * picture.height


# --- a driver that is killed --------------------------------------------------------------------------------


@pytest.fixture
def killed(phoenix, tmp_path):
    """Return the id of a run whose driver was killed after its first windows were stored."""
    script = Path(__file__).parent / "scripts" / "endless.py"
    command = [sys.executable, str(script), phoenix.url, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        try:
            run_id = driver.stdout.readline().strip()
            assert run_id
            phoenix.wait_for(run_id, lambda spans: any(span["name"] == "window think" for span in spans))
        finally:
            driver.send_signal(signal.SIGKILL)
    return run_id


def test_a_killed_driver_leaves_a_trace_that_can_be_closed(phoenix, killed, tmp_path):
    spans = phoenix.spans(killed)
    names = {span["name"] for span in spans}
    assert "run started endless" in names
    assert "run endless" not in names
    assert "run started endless" in {span["name"] for span in spans if span["parent_id"] is None}  # so it is listed
    (snapshot,) = tmp_path.glob("*.json")
    with configure(endpoint=phoenix.url, set_global=False) as telemetry:
        recovered = recover(snapshot, telemetry.tracer_provider)
    assert recovered.run_id == killed
    assert recovered.is_same_trace
    spans = phoenix.wait_for(killed, lambda spans: "run endless" in {span["name"] for span in spans})
    (run,) = [span for span in spans if span["name"] == "run endless"]
    assert run["status_code"] == "ERROR"
    assert run["attributes"]["curator.run.state"] == "recovered"
    assert run["attributes"]["curator.batch.ended"] == recovered.batches
    ids = {span["context"]["span_id"] for span in spans}
    assert {span["parent_id"] for span in spans} - ids == {None}
    assert sum(span["name"] == "01 think" for span in spans) == 1
