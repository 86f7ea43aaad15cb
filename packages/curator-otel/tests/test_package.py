# SPDX-License-Identifier: Apache-2.0
"""The package as a whole: what it exports, what importing it costs, how it is found."""

from __future__ import annotations

import subprocess
import sys

import pytest

import curator_otel


def python(code: str, *args: str) -> str:
    """Runs a program in an interpreter of its own, where global providers can be set."""
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_public_names():
    assert curator_otel.__all__ == [
        "Drawn",
        "OTelObserver",
        "Recovered",
        "Replayed",
        "Telemetry",
        "__version__",
        "configure",
        "recover",
        "render_tree",
        "replay",
        "slowest_stage",
        "to_perfetto",
    ]
    for name in curator_otel.__all__:
        assert hasattr(curator_otel, name)


def test_importing_it_imports_neither_the_sdk_nor_an_exporter():
    code = """
import sys, curator_otel, curator_otel.setup, curator_otel.delivery, curator_otel.conventions
heavy = ("opentelemetry.sdk", "opentelemetry.exporter", "opentelemetry.proto", "requests", "google.protobuf")
print([name for name in sys.modules if name.startswith(heavy)])
"""
    assert python(code) == "[]\n"


def test_without_the_sdk_the_error_says_what_to_install():
    code = """
import sys
sys.modules["opentelemetry.sdk"] = None  # as if it were not installed
from curator_otel import OTelObserver, configure
OTelObserver()
try:
    configure()
except ValueError as error:
    print(type(error).__name__, error)
"""
    said = python(code)
    assert said.startswith("ConfigurationError the OpenTelemetry SDK is not installed")
    assert "pip install 'curator-otel[otlp]'" in said


def test_configure_sets_the_global_providers_and_the_observer_finds_them(tmp_path):
    code = """
import sys
from curator_core import Pipeline, Task, processing_stage
from curator_otel import OTelObserver, configure, render_tree

@processing_stage()
def same(task):
    return task

path = sys.argv[1]
with configure(json_file=path):
    Pipeline("p", [same]).run(initial_tasks=[Task(data=1)], observers=[OTelObserver()])
print(render_tree(path))
"""
    said = python(code, str(tmp_path / "trace.json"))
    assert said.startswith("run p  ")
    assert "└─ process_batch same" in said


def test_a_second_configure_is_an_error_that_says_what_to_do(tmp_path):
    code = """
import sys
from curator_otel import configure
configure(json_file=sys.argv[1] + "/a.json")
try:
    configure(json_file=sys.argv[1] + "/b.json")
except ValueError as error:
    print(error)
configure(json_file=sys.argv[1] + "/c.json", set_global=False)
"""
    said = python(code, str(tmp_path))
    assert "has been set up in this process before" in said
    assert "set_global=False" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "c.json"]


def test_what_is_waiting_is_delivered_when_the_program_ends(tmp_path):
    code = """
import sys
from curator_core import Pipeline, Task, processing_stage
from curator_otel import OTelObserver, configure

@processing_stage()
def same(task):
    return task

configure(json_file=sys.argv[1])
Pipeline("p", [same]).run(initial_tasks=[Task(data=1)], observers=[OTelObserver()])
"""
    path = tmp_path / "trace.json"
    assert python(code, str(path)) == ""
    assert curator_otel.slowest_stage(path) == "same"


def test_the_end_of_a_program_says_what_was_lost():
    code = """
from curator_core import Pipeline, Task, processing_stage
from curator_otel import OTelObserver, configure

@processing_stage()
def same(task):
    return task

configure(endpoint="http://127.0.0.1:9", shutdown_timeout_s=0.2)
print(len(Pipeline("p", [same]).run(initial_tasks=[Task(data=1)], observers=[OTelObserver()])))
"""
    first, *rest = python(code).splitlines()
    assert first == "1"
    (line,) = rest
    assert line.startswith("5 spans and the last metrics did not reach http://127.0.0.1:9/v1/traces")


def test_a_forked_child_leaves_the_delivery_to_its_parent(tmp_path):
    code = """
import os, sys, warnings
from curator_otel import configure
warnings.simplefilter("ignore")  # that forking with threads is no good idea
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
    names = [line.split("  ")[0] for line in curator_otel.render_tree(path).split("\n\n")]
    assert names == ["before", "after"]


@pytest.mark.usefixtures("installed")
def test_it_is_found_by_name(tmp_path):
    code = """
import sys
from curator_core import Pipeline, Task, processing_stage
from curator_otel import configure, slowest_stage

@processing_stage()
def same(task):
    return task

with configure(json_file=sys.argv[1]):
    Pipeline("p", [same]).run(initial_tasks=[Task(data=1)], observers=["otel"])
print(slowest_stage(sys.argv[1]))
"""
    assert python(code, str(tmp_path / "trace.json")) == "same\n"
