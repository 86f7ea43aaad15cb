# SPDX-License-Identifier: Apache-2.0
"""The runtime environment of a stage reaches its workers completely; its values do not appear in logs."""

from __future__ import annotations

import copy
import os
import pickle
from typing import Any, NamedTuple

import loguru
import pytest

from curator_core import Pipeline, ProcessingStage, Resources, Task
from curator_xenna import XennaConfig, XennaExecutor
from curator_xenna._convert.runtime_env import StageEnvironment


class Look(ProcessingStage[Task[str], Task[Any]]):
    resources = Resources(cpus=0.3)  # several fit on a core

    def num_workers(self) -> int:
        return 1  # starts faster than the maximum number of workers

    def process(self, task: Task[str]) -> Task[Any]:
        try:
            import only_in_the_working_dir as extra
        except ImportError:
            extra = None
        return Task(data=[*task.data, (os.environ.get("CURATOR_MODE"), extra and extra.ANSWER)])


class Ran(NamedTuple):
    data: Any
    shown: list[str]


@pytest.fixture(scope="module")
def ran(executor: XennaExecutor, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """One run of stages in different environments, with everything that Xenna logs about it."""
    directory = tmp_path_factory.mktemp("working-dir")
    (directory / "only_in_the_working_dir.py").write_text("ANSWER = 42\n")
    stages = [
        Look().with_(name="plain"),
        Look().with_(name="own", runtime_env={"env_vars": {"CURATOR_MODE": "hunter2"}, "working_dir": str(directory)}),
    ]
    pipeline = Pipeline("environments", stages)
    shown = [pipeline.describe(), repr(pipeline.compile())]
    sink = loguru.logger.add(shown.append, level="TRACE")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(executor, "config", XennaConfig(verbose=True))  # the shared Ray, with Xenna's output
            (result,) = pipeline.run(executor, [Task(data=[])])
    finally:
        loguru.logger.remove(sink)
    return Ran(result.data, shown)


def test_env_info_reaches_the_workers(ran: Ran) -> None:
    assert ran.data == [(None, None), ("hunter2", 42)]
    assert "CURATOR_MODE" not in os.environ


def test_values_are_not_logged(ran: Ran) -> None:
    assert any("Pipeline stats" in text for text in ran.shown), "Xenna must write logs"
    assert not any("hunter2" in text for text in ran.shown)


def test_names_are_shown_and_values_are_not() -> None:
    env = StageEnvironment({"env_vars": {"TOKEN": "hunter2"}, "pip": ["secret-package==1"]})
    for shown in (env.format(), repr(env), str(env)):
        assert "TOKEN" in shown
        assert "pip" in shown
        assert "hunter2" not in shown
        assert "secret-package" not in shown


@pytest.mark.parametrize("make", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_is_copied_as_xenna_copies_it(make: Any) -> None:
    env = StageEnvironment({"env_vars": {"A": "1"}, "conda": "other"})
    other = make(env)
    other.extra_env_vars = {"CUDA_VISIBLE_DEVICES": "0", **other.extra_env_vars}
    assert other.to_ray_runtime_env()["env_vars"] == {"CUDA_VISIBLE_DEVICES": "0", "A": "1"}
    assert other.to_ray_runtime_env()["conda"] == "other"
    assert env.extra_env_vars == {"A": "1"}
