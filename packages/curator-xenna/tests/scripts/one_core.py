# SPDX-License-Identifier: Apache-2.0
"""Runs stages that ask for a CPU each on one core, in one worker and in separate workers; prints the results.

The second run needs more CPUs than the Ray of the first run declares, so this process starts a second Ray.
"""

from __future__ import annotations

import json
import os
from typing import Any

for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
    os.environ.pop(name, None)
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])  # before any code counts them

import ray  # noqa: E402

from curator_core import Pipeline, ProcessingStage, RunObserver, Task  # noqa: E402
from curator_xenna import XennaExecutor  # noqa: E402

STAGES = 2


class AddOne(ProcessingStage[Task[Any], Task[Any]]):
    def process(self, task: Task[Any]) -> Task[Any]:
        number, _ = task.data
        return Task(data=(number + 1, os.environ.get("RAY_AUTH_TOKEN", "")))


class Groups(RunObserver):
    """Records which stages share a worker."""

    def __init__(self) -> None:
        self.stages: dict[str, list[str]] = {}

    def on_worker(self, report: Any) -> None:
        names = self.stages.setdefault(report.worker_id, [])
        if report.stage_name not in names:
            names.append(report.stage_name)


def run(executor: XennaExecutor, **settings: Any) -> dict[str, Any]:
    seen = Groups()
    stages = [AddOne().with_(name=f"s{number}", **settings) for number in range(STAGES)]
    result = Pipeline("one core", stages).run(executor, [Task(data=(n, "")) for n in range(3)], observers=[seen])
    return {
        "groups": sorted({"+".join(names) for names in seen.stages.values()}),
        "outputs": {task.task_id: task.data[0] for task in result},
        "token": {token for _, token in (task.data for task in result)}.pop(),
        "cpus": ray.cluster_resources()["CPU"],
    }


def asks_for_no_token() -> bool:
    """Whether a Ray without tokens can be joined afterward."""
    from ray import _raylet

    return _raylet.get_authentication_mode() == _raylet.AuthenticationMode.DISABLED


if __name__ == "__main__":
    with XennaExecutor() as executor:
        said = {"fused": run(executor), "apart": run(executor, fusible=False)}
    print(json.dumps({**said, "asks_for_no_token": asks_for_no_token()}))
