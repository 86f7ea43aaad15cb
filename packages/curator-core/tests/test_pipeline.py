# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib.metadata
from importlib.metadata import EntryPoints, PackageNotFoundError, distribution

import pytest

from curator_core import ExecutorError, LocalExecutor, Pipeline, PipelineError, ProcessingStage, ProgressBar, Task
from curator_core._run.installed import find_installed
from curator_core.testing import Recorder


class Pass(ProcessingStage):
    def process(self, task):
        return task


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A distribution with an executor, a broken executor, and an observer."""
    there = tmp_path / "offering-1.0.dist-info"
    there.mkdir()
    (there / "METADATA").write_text("Metadata-Version: 2.1\nName: offering\nVersion: 1.0\n")
    (there / "entry_points.txt").write_text(
        "[curator.executors]\n"
        "here = curator_core._local.executor:LocalExecutor\n"
        "broken = curator_core_offering_nowhere:Executor\n"
        "[curator.observers]\n"
        "recorder = curator_core.testing:Recorder\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


def test_add_stage_can_be_chained():
    pipeline = Pipeline("p").add_stage(Pass()).add_stage(Pass().with_(name="b"))
    assert [stage.name for stage in pipeline.stages] == ["Pass", "b"]
    assert repr(pipeline) == "<Pipeline 'p': 2 stages>"


def test_the_callers_list_is_copied():
    stages = [Pass()]
    pipeline = Pipeline("p", stages)
    pipeline.add_stage(Pass().with_(name="b"))
    assert len(stages) == 1


@pytest.mark.parametrize("name", ["", "  ", None, 5, [Pass()]])
def test_a_pipeline_needs_a_name(name):
    with pytest.raises(PipelineError, match="needs a name") as raised:
        Pipeline(name)
    assert "pass the name first" in raised.value.hint


@pytest.mark.parametrize("stages", [Pass(), 5, None])
def test_stages_are_given_as_a_list(stages):
    with pytest.raises(PipelineError, match="not a list of stages") as raised:
        Pipeline("p", stages)
    assert "stages=[stage]" in raised.value.hint


def test_the_default_executor_is_local():
    assert len(Pipeline("p", [Pass()]).run(initial_tasks=[Task(data=1)])) == 1


@pytest.mark.usefixtures("installed")
def test_executors_and_observers_are_found_by_name(monkeypatch):
    assert find_installed("executor", "here") is LocalExecutor
    assert find_installed("observer", "recorder") is Recorder
    told = []
    monkeypatch.setattr(Recorder, "on_run_end", lambda self, result, error: told.append(result))
    result = Pipeline("p", [Pass()]).run("here", [Task(data=1)], observers=["recorder"])
    assert told == [result]


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(("kind", "name", "meant"), [("executor", "heer", "here"), ("observer", "recoder", "recorder")])
def test_an_unknown_executor_suggests_the_nearest_name(kind, name, meant):
    options = {"executor": name} if kind == "executor" else {"observers": [name]}
    with pytest.raises(ExecutorError, match=f"no {kind} '{name}' is installed") as raised:
        Pipeline("p", [Pass()]).run(initial_tasks=[], **options)
    assert raised.value.hint == f"did you mean '{meant}'?"
    assert raised.value.expected.startswith(f"one of the {kind}s: ")


@pytest.mark.parametrize(
    ("kind", "name", "package"),
    [
        ("executor", "xenna", "curator-xenna, which provides the executor 'xenna'"),
        ("executor", "Xena", "curator-xenna, which provides the executor 'xenna'"),
        ("observer", "otel", "curator-otel, which provides the observer 'otel'"),
    ],
)
def test_the_package_to_install_is_named(kind, name, package, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: EntryPoints(()))  # only core is installed
    with pytest.raises(ExecutorError, match=f"no {kind} '{name}' is installed") as raised:
        find_installed(kind, name)
    assert raised.value.hint == f"python -m pip install {package}"


@pytest.mark.usefixtures("installed")
def test_an_installed_but_broken_package_is_reported():
    with pytest.raises(ExecutorError, match="the executor 'broken' cannot be imported") as raised:
        find_installed("executor", "broken")
    assert isinstance(raised.value.__cause__, ImportError)


@pytest.mark.parametrize("executor", [5, object(), LocalExecutor, Pass()])
def test_objects_that_are_not_executors_are_rejected(executor):
    with pytest.raises(ExecutorError, match="not an executor") as raised:
        Pipeline("p", [Pass()]).run(executor)
    assert "LocalExecutor()" in raised.value.hint


def test_the_entry_points_of_the_package_are_valid():
    try:
        distribution("curator-core")
    except PackageNotFoundError:
        pytest.skip("curator-core is not installed")
    assert find_installed("executor", "local") is LocalExecutor
    assert find_installed("observer", "progress") is ProgressBar
