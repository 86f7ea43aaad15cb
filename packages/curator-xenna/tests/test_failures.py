# SPDX-License-Identifier: Apache-2.0
"""Faults on a cluster: each leads to a clear error with accounts, and leaves nothing running."""

from __future__ import annotations

import importlib
import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from curator_core import (
    ClusterError,
    Pipeline,
    ProcessingStage,
    Resources,
    ResourcesError,
    Task,
    WorkerDiedError,
)
from curator_xenna import XennaExecutor

NUMBERS = range(8)


class Same(ProcessingStage[Task[int], Task[int]]):
    resources = Resources(cpus=0.3)  # several fit on a core

    def num_workers(self) -> int:
        return 1  # starts faster than the maximum number of workers

    def process(self, task: Task[int]) -> Task[int]:
        return task


class KillsItself(Same):
    """Kills its worker."""

    def process(self, task: Task[int]) -> Task[int]:
        if task.data == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return task


class KillsTheCoordinator(Same):
    def process(self, task: Task[int]) -> Task[int]:
        import ray
        from ray.util.state import list_actors

        here = ray.get_runtime_context().gcs_address  # there may be other instances of Ray on this machine
        (coordinator,) = list_actors(here, filters=[("class_name", "=", "Coordinator"), ("state", "=", "ALIVE")])
        os.kill(coordinator.pid, signal.SIGKILL)
        return task


def run(executor: XennaExecutor, *stages: ProcessingStage[Any, Any], **options: Any) -> Any:
    return Pipeline("failures", stages).run(executor, [Task(data=n) for n in NUMBERS], **options)


@pytest.mark.parametrize("restarts", [0, 2])
def test_a_dead_worker_without_restarts_left_ends_the_run(restarts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from curator_xenna._session import session

    sessions = []

    def dies(this: session.Session) -> None:
        sessions.append(this)
        raise WorkerDiedError("a worker died", stage="Same")

    monkeypatch.setattr(session.Session, "run", dies)  # without Ray: `test_isolation` kills a real worker
    with pytest.raises(WorkerDiedError, match="a worker died") as caught:
        run(XennaExecutor({"max_restarts": restarts}), Same())
    assert len(sessions) == restarts + 1
    result = caught.value.result
    assert result is not None
    assert not result.complete
    assert result.accounting.restarts == restarts
    assert result.accounting.unfinished == tuple(map(str, NUMBERS))


# With two workers, Xenna 0.5 gives up the batch, and ends the run as if it were successful.
@pytest.mark.everything
@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_is_always_killed_ends_the_run(
    executor: XennaExecutor, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "config", replace(executor.config, max_restarts=workers - 1))
    stages = [stage.with_(num_workers=workers, isolated=False) for stage in (Same(), KillsItself())]
    with pytest.raises(WorkerDiedError) as caught:
        run(executor, *stages)
    assert caught.value.stage == "Same+KillsItself"  # they share a worker
    assert "process" in str(caught.value)
    result = caught.value.result
    assert result is not None
    assert not result.complete
    assert result.accounting.restarts == workers - 1
    assert "5" in result.accounting.unfinished
    assert result.accounting.finished + len(result.accounting.unfinished) == len(NUMBERS)


def test_the_death_of_the_coordinator_ends_the_run(executor: XennaExecutor) -> None:
    with pytest.raises(ClusterError, match="coordinator"):
        run(executor, KillsTheCoordinator(), Same())


# Workers cannot import the module of a stage or of a task.
@pytest.mark.parametrize("sent", ["Größe", pytest.param("Word", marks=pytest.mark.everything)])
def test_a_module_that_no_worker_can_import_ends_the_run_at_once(
    executor: XennaExecutor, sent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"only_here_{sent.lower().encode('ascii', 'ignore').decode()}"
    (tmp_path / f"{name}.py").write_text(
        "from curator_core import ProcessingStage, Task\n"
        "class Word(Task): pass\n"
        "class Größe(ProcessingStage):\n    def process(self, task): return task\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module(name)
    stage, task = (module.Größe(), Task(data=1)) if sent == "Größe" else (Same(), module.Word(data=1))
    with pytest.raises(ClusterError, match=f"ModuleNotFoundError: No module named '{name}'") as caught:
        Pipeline("p", [stage]).run(executor, [task])
    assert caught.value.stage == stage.name
    assert "py_modules" in str(caught.value.hint)
    assert "working_dir" in str(caught.value.hint)
    result = caught.value.result
    assert result is not None
    assert result.accounting.restarts == 0


@pytest.mark.parametrize(
    "settings",
    [{"resources": Resources(cpus=512)}, {"num_workers": 4096}, {"resources": Resources(cpus=0.1, gpus=1)}],
)
def test_requests_above_the_machine_are_rejected(executor: XennaExecutor, settings: dict[str, Any]) -> None:
    with pytest.raises(ResourcesError, match="does not fit") as caught:
        run(executor, Same(), Same().with_(name="greedy", **settings))
    assert caught.value.stage == "greedy"
    assert "available on each node:" in str(caught.value)
    assert "of 'greedy'" in str(caught.value.hint)


def test_a_worker_that_cannot_start_because_its_node_is_gone_counts_as_dead() -> None:
    import ray

    from curator_xenna._session.diagnose import explain

    # Xenna raises this when it starts a replacement for a worker that has died with its node.
    broken = RuntimeError("Actor Stage 00 - Same-2 failed during setup")
    broken.__cause__ = ray.exceptions.ActorUnschedulableError("the node doesn't exist any more")
    feed: Any = SimpleNamespace(failed_batch=None, error=None, failed_setups={})
    assert isinstance(explain(broken, feed, [], []), WorkerDiedError)  # so the next session continues without the node
