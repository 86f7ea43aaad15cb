# SPDX-License-Identifier: Apache-2.0
"""The package as a whole: its exports, the cost of importing it, global providers, and the end of a program."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tests.waiting import DEADLINE_S

import curator_otel
from curator_core import ConfigurationError, Pipeline, Task, processing_stage
from curator_otel import OTelObserver, configure, render_tree, slowest_stage


def python(code: str, *args: str) -> str:
    """Run a program in a separate interpreter; return its output on both streams."""
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@processing_stage()
def same(task):
    return task


def run(*observers):
    return Pipeline("p", [same]).run(initial_tasks=[Task(data=1)], observers=observers)


def test_public_names():
    assert curator_otel.__all__ == [
        "Drawn",
        "OTelObserver",
        "Recovered",
        "Replayed",
        "Telemetry",
        "__version__",
        "configure",
        "read_speeds",
        "recover",
        "render_tree",
        "replay",
        "slowest_stage",
        "to_perfetto",
    ]
    for name in curator_otel.__all__:
        assert hasattr(curator_otel, name)


def test_import_loads_neither_the_sdk_nor_an_exporter():
    code = """
import sys, curator_otel
heavy = ("opentelemetry.sdk", "opentelemetry.exporter", "opentelemetry.proto", "requests", "google.protobuf")
print(curator_otel.OTelObserver(), curator_otel.configure, curator_otel.to_perfetto)
print([name for name in sys.modules if name.startswith(heavy)])
"""
    assert python(code).splitlines()[1] == "[]"


def test_configure_without_the_sdk_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.metrics", None)  # as if it were not installed
    with pytest.raises(ConfigurationError, match="the OpenTelemetry SDK is not installed") as raised:
        configure(set_global=False)
    assert "pip install 'curator-otel[otlp]'" in str(raised.value)


# --- global providers ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_global_sdk")
@pytest.mark.parametrize("by_name", [False, True])
def test_observer_uses_the_global_providers(request, tmp_path, by_name):
    if by_name:
        request.getfixturevalue("installed")
    path = tmp_path / "trace.json"
    with configure(json_file=path, json_metrics_file=tmp_path / "metrics.json", shutdown_timeout_s=DEADLINE_S):
        result = run("otel" if by_name else OTelObserver())
    tree = render_tree(path)
    assert tree.startswith("run p  ")
    assert "└─ process_batch same" in tree
    assert slowest_stage(path) == "same"
    assert result.trace_id == result.run_id
    assert "curator.run.count" in (tmp_path / "metrics.json").read_text()


@pytest.mark.usefixtures("no_global_sdk")
def test_second_configure_is_rejected_with_a_hint(tmp_path):
    with configure(json_file=tmp_path / "a.json"):
        with pytest.raises(ConfigurationError, match="already set up in this process") as raised:
            configure(json_file=tmp_path / "b.json")
        assert "set_global=False" in raised.value.hint
        configure(json_file=tmp_path / "c.json", set_global=False).shutdown()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "c.json"]


# --- the end of a program -----------------------------------------------------------------------------------


def test_pending_spans_are_delivered_once_at_exit_despite_a_fork(tmp_path):
    code = """
import os, sys, warnings
from curator_otel import configure
warnings.simplefilter("ignore")  # about forking with threads
telemetry = configure(json_file=sys.argv[1])
tracer = telemetry.tracer_provider.get_tracer("t")
tracer.start_span("before").end()
child = os.fork()
if child == 0:
    sys.exit(0)
print(os.waitpid(child, 0)[1])
tracer.start_span("after").end()
"""
    path = tmp_path / "trace.json"
    assert python(code, str(path)) == "0\n"
    names = [line.split("  ")[0] for line in render_tree(path).split("\n\n")]
    assert names == ["before", "after"]


def test_losses_are_reported_at_exit():
    code = """
import socket
from curator_core import Pipeline, Task, processing_stage
from curator_otel import OTelObserver, configure

@processing_stage()
def same(task):
    return task

taken = socket.socket()
taken.bind(("127.0.0.1", 0))  # no process listens
endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
configure(endpoint=endpoint, shutdown_timeout_s=0.2)
Pipeline("p", [same]).run(initial_tasks=[Task(data=1)], observers=[OTelObserver()])
print(endpoint)
"""
    endpoint, *rest = python(code).splitlines()
    (line,) = rest
    assert line.startswith("5 spans ")
    assert f"did not reach {endpoint}/v1/traces" in line
