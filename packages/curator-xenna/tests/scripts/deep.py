# SPDX-License-Identifier: Apache-2.0
"""Run twelve stages that ask for a CPU each on so many cores, all in one worker and each in its own."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[1])])  # before anything counts them

from curator_core import Pipeline, ProcessingStage, RunObserver, Task  # noqa: E402
from curator_xenna import XennaExecutor  # noqa: E402


class AddOne(ProcessingStage[Task[int], Task[int]]):
    def process(self, task: Task[int]) -> Task[int]:
        return Task(data=task.data + 1)


class Groups(RunObserver):
    """Which stages have shared a worker."""

    def __init__(self) -> None:
        self.stages: dict[str, list[str]] = {}

    def on_worker(self, report: Any) -> None:
        names = self.stages.setdefault(report.worker_id, [])
        if report.stage_name not in names:
            names.append(report.stage_name)


def run(executor: XennaExecutor, **settings: Any) -> list[Any]:
    seen = Groups()
    stages = [AddOne().with_(name=f"s{number}", **settings) for number in range(12)]
    result = Pipeline("deep", stages).run(executor, [Task(data=number) for number in range(3)], observers=[seen])
    groups = {"+".join(names) for names in seen.stages.values()}
    outputs = {task.task_id: task.data for task in result}
    return [sorted(groups, key=lambda name: int(name.partition("+")[0][1:])), dict(sorted(outputs.items()))]


if __name__ == "__main__":
    with XennaExecutor() as executor:
        print(json.dumps({"fused": run(executor), "apart": run(executor, fusible=False)}))
