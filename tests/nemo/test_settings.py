# SPDX-License-Identifier: Apache-2.0
"""Our settings for runs that NeMo Curator starts, and pipelines that are refused."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from typing import Any

import pytest
from nemo_curator.core.serve import server
from nemo_curator.pipeline import Pipeline
from nemo_curator.stages.resources import Resources
from nemo_curator.tasks.sentinels import FailedTask
from tests.nemo.library import Add, Listing, NamedSource, Numbers, Raises, Source, data_of, numbers

import curator_core
from curator_core import (
    ConfigurationError,
    ContractError,
    ExecutorError,
    LocalExecutor,
    PipelineError,
    Plan,
    ProgressBar,
    StageDefinitionError,
    deadletter,
    processing_stage,
)
from curator_core._run.presets import presets_of_environment
from curator_core.testing import Recorder


def test_settings_of_with_apply_and_leave_the_executor_alone():
    plain, seen = LocalExecutor(), Recorder()
    chosen = plain.with_(on_error="skip", observers=[seen]).with_(name="named")
    result = Pipeline("it", stages=[Source(10), Raises()]).run(chosen)
    assert result.pipeline_name == "named"
    assert len(seen.batches) > 0
    with pytest.raises(curator_core.StageError):
        Pipeline("it", stages=[Source(10), Raises()]).run(plain)


def test_setting_of_the_run_takes_precedence():
    result = curator_core.Pipeline("mine", [Source(10), Raises()]).run(
        LocalExecutor().with_(on_error="raise", name="other"), on_error="skip"
    )
    assert result.pipeline_name == "mine"
    assert result.stages[1].tasks_failed == 2


class Unruly(Add):
    """Fails at its first two attempts, never returns for one of the tasks, and returns the id of its process."""

    name = "unruly"

    def __init__(self) -> None:
        self.attempts = 0

    def process(self, task: Numbers) -> Numbers:
        self.attempts += 1
        if self.attempts < 3:
            raise ConnectionError("again")
        if task.data == [2]:
            threading.Event().wait()
        return numbers(*task.data, os.getpid())


def test_stages_get_settings_that_nemo_curator_does_not_have(executor):
    settings = {"timeout_s": 2.0, "max_attempts": 3, "retry_on": ConnectionError, "retry_delay_s": 0.0}
    chosen = executor.with_(on_error="skip", stages={"unruly": settings})
    result = Pipeline("it", stages=[NamedSource([0, 1, 2]), Unruly(), Add(0)]).run(chosen)
    assert [task.data[0] for task in result] == [0, 1]
    assert os.getpid() not in {task.data[1] for task in result}
    assert result.stages[1].tasks_failed == 1
    assert result.stages[1].attempts_retried >= 2


@pytest.mark.parametrize("setting", ["batch_size", "num_workers", "xenna_stage_spec", "max_attempts"])
def test_settings_that_stages_of_nemo_curator_have_are_set_on_them(setting):
    add = Add().with_(xenna_stage_spec={"num_run_attempts_python": 5})
    with pytest.raises(StageDefinitionError, match=f"{setting} must be set on the stage itself") as caught:
        Pipeline("it", stages=[Source(1), add]).run(LocalExecutor().with_(stages={"add": {setting: 2}}))
    assert (caught.value.stage, caught.value.field) == ("add", setting)
    assert "of Add" in str(caught.value.hint)


def test_environment_gives_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("CURATOR_CHECKPOINT", str(tmp_path / "checkpoint"))
    monkeypatch.setenv("CURATOR_ON_ERROR", str(tmp_path / "letters"))
    monkeypatch.setenv("CURATOR_OBSERVERS", "progress")
    result = Pipeline("it", stages=[Source(10), Raises()]).run(LocalExecutor())
    assert result.stages[1].tasks_failed == 2
    assert [type(each) for each in presets_of_environment(os.environ)["observers"]] == [ProgressBar]
    assert len(list(deadletter.read(tmp_path / "letters"))) == 2
    monkeypatch.setenv("CURATOR_ON_ERROR", "skip")
    again = Pipeline("it", stages=[Source(10), Raises()]).run(LocalExecutor())
    assert len(again.accounting.resumed) == 10


def test_environment_is_for_pipelines_of_other_frameworks(tmp_path, monkeypatch):
    monkeypatch.setenv("CURATOR_CHECKPOINT", str(tmp_path / "checkpoint"))

    @processing_stage()
    def same(task: Any) -> Any:
        return task

    curator_core.Pipeline("ours", [same]).run(initial_tasks=[curator_core.Task(1)])
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("CURATOR_OBSERVERS", "progres", "no observer 'progres' is installed"),
        ("CURATOR_ON_ERROR", "Skip", "unknown failure policy"),
    ],
)
def test_invalid_value_in_the_environment_is_an_error(monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    with pytest.raises(ExecutorError, match=message):
        Pipeline("it", stages=[Source(1), Add()]).run(LocalExecutor())


# --- checkpoints and shards of NeMo Curator -----------------------------------------------------------------


def run_with_checkpoint_path(pipeline: Pipeline, executor: Any, path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run as with ``checkpoint_path``, without the Ray cluster that NeMo Curator starts its actor on."""
    from nemo_curator.utils import resumability_actor

    class NoRay:
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr("ray.init", lambda **_: NoRay())
    monkeypatch.setattr(resumability_actor, "create_resumability_actor", lambda _: None)
    monkeypatch.setattr(resumability_actor, "shutdown_resumability_actor", lambda: None)
    return pipeline.run(executor, checkpoint_path=path)


def test_checkpoint_path_is_kept_as_our_checkpoint(tmp_path, monkeypatch):
    listed = tmp_path / "listed"
    listed.write_text("1 2")
    pipeline = Pipeline("it", stages=[Listing(listed), Add()])
    first = run_with_checkpoint_path(pipeline, LocalExecutor(), tmp_path, monkeypatch)
    assert first.accounting.admitted == 2
    listed.write_text("3 2 1")
    again = run_with_checkpoint_path(pipeline, LocalExecutor(), tmp_path, monkeypatch)
    assert (again.accounting.admitted, sorted(again.accounting.resumed)) == (1, ["content1", "content2"])
    assert data_of(again) == [[4]]


def test_checkpoint_path_beside_a_checkpoint_is_an_error(tmp_path, monkeypatch):
    executor = LocalExecutor().with_(checkpoint=tmp_path / "ours")
    with pytest.raises(ConfigurationError, match="two settings for checkpoint"):
        run_with_checkpoint_path(Pipeline("it", stages=[Source(2), Add()]), executor, tmp_path, monkeypatch)


def test_shards_of_nemo_curator_share_the_source(tmp_path, monkeypatch):
    found, left = [], []
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "3")
    for index in range(3):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(index))
        pipeline, seen = Pipeline("it", stages=[NamedSource(range(12)), Add(0)]), Recorder()
        executor = LocalExecutor().with_(observers=[seen])
        found.append(data_of(run_with_checkpoint_path(pipeline, executor, tmp_path, monkeypatch)))
        left += [report.metrics["tasks_of_other_jobs"] for report in seen.batches if report.stage_name == "source"]
    assert all(found)
    assert sorted(data for shard in found for data in shard) == [[n] for n in range(12)]
    assert left == [12 - len(shard) for shard in found]


@pytest.mark.parametrize("settings", [{"shard": "auto"}, {"checkpoint": "here"}])
def test_settings_that_conflict_with_a_slurm_array_are_an_error(settings, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "3")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    with pytest.raises(ConfigurationError, match=f"two settings for {next(iter(settings))}"):
        Pipeline("it", stages=[NamedSource(range(12)), Add()]).run(LocalExecutor().with_(**settings))


@pytest.mark.parametrize("index", range(3))
def test_failed_task_of_a_source_is_an_error_in_each_job_of_an_array(index, monkeypatch):
    class Bad(NamedSource):
        name = "bad"

        def process(self, _: Any) -> list[Any]:
            return [numbers(1), FailedTask()]

    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "3")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(index))
    with pytest.raises(ContractError, match="the source returned a FailedTask"):
        Pipeline("it", stages=[Bad([]), Add()]).run(LocalExecutor())


def test_pipeline_inside_a_stage_does_not_inherit_the_checkpoint(tmp_path, monkeypatch):
    class Inner(Add):
        name = "inner"

        def process(self, task: Numbers) -> Numbers:
            inner = Pipeline("inside", stages=[NamedSource(task.data), Add()]).run(LocalExecutor())
            assert inner.pipeline_name == "inside"
            return numbers(*inner[0].data)

    pipeline = Pipeline("outside", stages=[NamedSource([1, 2]), Inner()])
    result = run_with_checkpoint_path(pipeline, LocalExecutor(), tmp_path, monkeypatch)
    assert (result.pipeline_name, data_of(result)) == ("outside", [[2], [3]])


def test_another_version_of_nemo_curator_is_a_warning():
    code = """
        from importlib import metadata
        real = metadata.version
        metadata.version = lambda name: "1.9.0" if name == "nemo-curator" else real(name)
        import curator_core._nemo.dialect
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert "NeMo Curator 1.9.0 is installed; its pipelines were tested here with 1.4.x" in done.stderr


# --- refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "what"), [("is_raft_actor", "RAFT"), ("is_lsh_stage", "LSH"), ("is_shuffle_stage", "a shuffle")]
)
def test_stages_that_talk_to_each_other_are_refused(key, what):
    stage = Add().with_(name="together", ray_stage_spec={key: True})
    with pytest.raises(StageDefinitionError, match=f"needs {what}") as caught:
        Plan.from_stages([Source(), stage])
    assert caught.value.stage == "together"
    assert "RayActorPoolExecutor" in str(caught.value.hint)


def test_gpu_stages_are_refused_while_an_inference_server_is_active(monkeypatch):
    stage = Add().with_(name="on_gpu", resources=Resources(cpus=1, gpus=1))
    Plan.from_stages([Source(), stage])
    monkeypatch.setattr(server, "_active_servers", {"default"})
    with pytest.raises(StageDefinitionError, match="inference server") as caught:
        Plan.from_stages([Source(), stage])
    assert "RayDataExecutor" in str(caught.value.hint)


def test_pipelines_that_mix_frameworks_are_refused():
    @processing_stage()
    def ours(task: Any) -> Any:
        return task

    with pytest.raises(PipelineError, match="mixes stages of several frameworks"):
        Plan.from_stages([Source(), ours, Add()])


def test_initial_task_of_another_framework_is_refused():
    with pytest.raises(ConfigurationError, match="is not a task of NeMo Curator"):
        curator_core.Pipeline("it", [Add()]).run(initial_tasks=[curator_core.Task([1])])


def test_single_task_instead_of_a_list_is_refused():
    with pytest.raises(ConfigurationError, match="initial_tasks is not a list of tasks"):
        LocalExecutor().execute([Add()], numbers(1))


def test_two_sources_are_refused():
    first, second = Add().with_(name="a"), Add().with_(name="b")
    first.is_source_stage = second.is_source_stage = True
    with pytest.raises(PipelineError, match="several stages set is_source_stage"):
        Plan.from_stages([first, second])


def test_object_that_is_no_stage_is_an_error():
    with pytest.raises(StageDefinitionError, match="stage 1 is not a ProcessingStage"):
        Plan.from_stages([processing_stage()(lambda task: task), numbers(1)])
