# SPDX-License-Identifier: Apache-2.0
"""The effects of settings in a real run, and where stages run."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from tests.waiting import wait_until

from curator_core import (
    ExecutorError,
    Pipeline,
    ProcessingStage,
    Resources,
    ResourcesError,
    RunObserver,
    StageDefinitionError,
    Task,
)
from curator_core._reports.batch import BatchReport
from curator_core.testing import Recorder
from curator_xenna import XennaConfig, XennaExecutor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Numbers(ProcessingStage[Any, Task[Any]]):
    """A source that records its process."""

    def process(self, task: Any) -> Iterator[Task[Any]]:
        for number in range(12):
            yield Task(data={"number": number, "source_pid": os.getpid()})


class Odd(ProcessingStage[Task[Any], Task[Any]]):
    """Raises on odd numbers."""

    resources = Resources(cpus=0.3)  # several fit on a core

    def num_workers(self) -> int:
        return 1  # starts faster than the maximum number of workers

    def process(self, task: Task[Any]) -> Task[Any]:
        if task.data["number"] % 2:
            msg = f"odd: {task.data['number']}"
            raise ValueError(msg)
        return task


class Worker(ProcessingStage[Task[Any], Task[Any]]):
    """Records its process and its teardown."""

    resources = Resources(cpus=0.3)  # several fit on a core

    def num_workers(self) -> int:
        return 1  # starts faster than the maximum number of workers

    def __init__(self, directory: str = "", wait_for: int = 0) -> None:
        self.directory, self.wait_for = directory, wait_for

    def setup(self, worker_metadata: Any) -> None:
        if self.directory:
            (Path(self.directory) / f"up-{self.name}-{os.getpid()}").touch()

    def process(self, task: Task[Any]) -> Task[Any]:
        # Without this, one fast worker could process everything before the others start.
        wait_until(lambda: len(list(Path(self.directory).glob(f"up-{self.name}-*"))) >= self.wait_for)
        return Task(data={**task.data, "pid": os.getpid()})

    def teardown(self) -> None:
        if self.directory:
            (Path(self.directory) / f"down-{self.name}-{os.getpid()}").touch()


class Ran(NamedTuple):
    result: Any
    seen: Recorder
    torn_down: set[str]
    environ_kept: bool


@pytest.fixture(scope="module", params=["streaming", pytest.param("batch", marks=pytest.mark.everything)])
def ran(request: pytest.FixtureRequest, executor: XennaExecutor, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    directory = tmp_path_factory.mktemp("torn-down")
    stages = [
        Numbers(),
        Worker(str(directory), wait_for=2).with_(
            name="Many", resources=Resources(cpus=0.05), num_workers=None, min_workers=2
        ),
        Worker(str(directory)).with_(name="Single", num_workers=None, max_workers=1),
    ]
    seen = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        # The shared Ray with other settings.
        patch.setattr(executor, "config", XennaConfig(execution_mode=request.param, max_workers_per_stage=2))
        patch.setenv("RAY_MAX_LIMIT_FROM_API_SERVER", "123")
        before = dict(os.environ)
        result = Pipeline("p", stages).run(executor, observers=[seen])
        kept = dict(os.environ) == before
    return Ran(result, seen, {path.name.removeprefix("down-") for path in directory.glob("down-*")}, kept)


def test_a_source_without_requests_runs_in_the_driver(ran: Ran) -> None:
    assert {task.data["source_pid"] for task in ran.result} == {os.getpid()}
    assert {r.worker_id for r in ran.seen.batches if r.stage_name == "Numbers"} == {"driver"}
    assert {task.task_id for task in ran.result} == {str(number) for number in range(12)}
    assert os.getpid() not in {task.data["pid"] for task in ran.result}


def test_every_worker_is_torn_down(ran: Ran) -> None:
    workers = [report for report in ran.seen.workers if report.worker_id != "driver"]
    set_up = {f"{report.stage_name}-{report.pid}" for report in workers if report.event == "ready"}
    assert ran.torn_down == set_up
    assert {f"{report.stage_name}-{report.pid}" for report in workers if report.event == "ended"} == set_up


def test_numbers_of_workers_are_within_the_limits_of_executor_and_stage(ran: Ran) -> None:
    assert [stage.workers for stage in ran.result.stages] == [1, 2, 1]


def test_the_environment_is_restored(ran: Ran) -> None:
    assert ran.environ_kept


def test_a_pipeline_of_only_a_source_starts_no_ray() -> None:
    result = Pipeline("p", [Numbers()]).run(XennaExecutor({"address": "no-such-host:1"}))
    assert [task.data["number"] for task in result] == list(range(12))


def test_limits_that_xenna_cannot_keep_are_an_error_before_anything_starts() -> None:
    stage = Odd().with_(num_workers=None, initial_workers=2)
    with pytest.raises(StageDefinitionError, match="does not support initial_workers"):
        Pipeline("p", [Numbers(), stage]).run(XennaExecutor({"address": "no-such-host:1"}))


class RunsAnother(RunObserver):
    """Starts a second run during the first."""

    def __init__(self) -> None:
        self.errors: list[ExecutorError] = []

    def on_batch(self, report: BatchReport) -> None:
        if report.stage_name == "Odd" and not self.errors:
            try:
                Pipeline("second", [Worker()]).run(XennaExecutor(), [Task(data={})])
            except ExecutorError as error:
                self.errors.append(error)


@pytest.fixture(scope="module")
def ignoring(executor: XennaExecutor) -> tuple[Any, RunsAnother]:
    """A run that ignores failures, with a source in a worker, during which another run is started."""
    another = RunsAnother()
    stages = [Numbers().with_(resources=Resources(cpus=0.5)), Odd()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executor, "config", XennaConfig(ignore_failures=True))
        return Pipeline("p", stages).run(executor, observers=[another]), another


def test_ignored_failures_are_counted(ignoring: tuple[Any, RunsAnother]) -> None:
    result, _ = ignoring
    assert sorted(task.data["number"] for task in result) == [0, 2, 4, 6, 8, 10]
    odd = result.stages[1]
    assert (odd.tasks_in, odd.tasks_passed, odd.tasks_failed) == (12, 6, 6)


def test_a_source_that_requests_resources_runs_in_a_worker(ignoring: tuple[Any, RunsAnother]) -> None:
    result, _ = ignoring
    assert os.getpid() not in {task.data["source_pid"] for task in result}
    assert {task.task_id for task in result} == {str(number) for number in range(0, 12, 2)}


def test_a_concurrent_second_run_is_rejected(ignoring: tuple[Any, RunsAnother]) -> None:
    _, another = ignoring
    assert [error.message for error in another.errors] == ["another run on Xenna is in progress in this process"]


def test_a_plan_that_does_not_fit_is_an_error_before_the_source_runs(executor: XennaExecutor, tmp_path: Path) -> None:
    class Lists(ProcessingStage[Any, Task[Any]]):
        def process(self, task: Any) -> list[Task[Any]]:
            (tmp_path / "listed").touch()
            return [Task(data={})]

    with pytest.raises(ResourcesError, match="one worker is larger than any node"):
        Pipeline("p", [Lists(), Worker().with_(resources=Resources(cpus=1000))]).run(executor)
    assert not (tmp_path / "listed").exists()


class Script(NamedTuple):
    """The results of a user's script.

    Attributes:
        said: The output of the script.
        texts: Files that were left in the home directory, by path.
    """

    said: Any
    texts: dict[str, str]


@pytest.fixture(scope="module")
def script(run_script: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Script:
    """A script on one core, with its own home directory, on a machine where an earlier Ray has left its address."""
    home = tmp_path_factory.mktemp("home")
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as directory:  # short, for Ray's sockets
        note = Path(directory) / "ray" / "ray_current_cluster"  # where a head writes its address
        note.parent.mkdir()
        note.write_text("127.0.0.1:9")
        said = run_script("users_script.py", env={"HOME": str(home), "RAY_TMPDIR": directory, "RAY_ADDRESS": ""})
    return Script(said, {str(path): path.read_text(errors="replace") for path in home.rglob("*") if path.is_file()})


def test_stages_that_do_not_fit_one_core_share_a_worker(script: Script) -> None:
    assert script.said["shared"]["groups"] == ["Look+Größe"]
    assert script.said["shared"]["ids"] == ["0", "1"]


def test_ray_is_restarted_with_more_cpus_for_stages_that_refuse_to_share(script: Script) -> None:
    assert script.said["apart"]["groups"] == ["Größe", "Look"]
    assert script.said["apart"]["ids"] == ["0", "1"]
    assert (script.said["shared"]["cpus"], script.said["apart"]["cpus"]) == (1, 2)


def test_each_ray_has_its_own_token_and_none_is_left(script: Script) -> None:
    tokens = [script.said[run]["token"] for run in ("shared", "apart")]
    assert all(tokens)
    assert tokens[0] != tokens[1]
    assert [path for path, text in script.texts.items() if any(token in text for token in tokens)] == []
    assert script.said["asks_for_no_token"]


def test_classes_of_a_script_are_restored(script: Script) -> None:
    assert script.said["is_mine"]
    assert script.said["equals_mine"]
    assert script.said["cause_is_mine"]
    assert script.said["apart"]["failed"] == {"Größe": ["2"]}  # its output cannot be sent


def test_process_bound_objects_are_looked_up_again_in_workers(script: Script) -> None:
    assert script.said["pickled_there"] == ["a", 24.0]
    assert script.said["lock_kept"]
    assert script.said["refused"] == "stage.process's global connection"


def test_a_running_ray_is_not_joined_unless_requested(script: Script) -> None:
    assert script.said["connected"] is False
    assert script.said["environ_kept"]
