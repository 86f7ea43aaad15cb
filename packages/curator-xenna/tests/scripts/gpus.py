# SPDX-License-Identifier: Apache-2.0
"""Runs pipelines that ask for GPUs on the real Xenna with simulated GPUs; prints what each worker saw, as JSON.

Its argument is a directory for the marks of workers.
"""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from tests.waiting import wait_until

from curator_core import Pipeline, ProcessingStage, Resources, ResourcesError, Task
from curator_xenna import XennaExecutor


class Report(ProcessingStage):
    """Adds what its worker sees to the task; waits until all workers of the stage have started."""

    def __init__(self, directory):
        self.directory = directory

    def setup(self, worker_metadata):
        self.worker = worker_metadata
        (Path(self.directory) / f"{self.name}-{worker_metadata.worker_id.replace('/', '_')}").touch()

    def process(self, task):
        up = f"{self.name}-*"
        wait_until(lambda: len(list(Path(self.directory).glob(up))) >= self.num_workers(), "all workers are up")
        gpus = [(gpu.index, gpu.used_fraction) for gpu in self.worker.allocation.gpus]
        seen = {
            "stage": self.name,
            "worker": self.worker.worker_id,
            "gpus": gpus,
            "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "rank": os.environ.get("RANK"),
            "world_size": os.environ.get("WORLD_SIZE"),
        }
        return Task(data=[*task.data, seen])


def stage(name, workers=1, options=None, **resources):
    return Report(DIRECTORY).with_(
        name=name,
        resources=Resources(**{"cpus": 0.1, **resources}),
        num_workers=workers,
        xenna_stage_spec=options or {},
    )


DIRECTORY = sys.argv[1]
CASES = {
    # Six GPUs in total, so the two halves can only be placed on the same one.
    "all": [
        stage("cpu"),
        stage("half", gpus=0.5),
        stage("decode", nvdecs=1),
        stage("entire", entire_gpu=True),
        stage("pair", gpus=2),
        stage("group", 1, {"is_spmd": True}, gpus=2),
    ],
    "too_many": [stage("too_many", 7, gpus=1)],
    "too_large": [stage("too_large", gpus=16)],
}


def outcome(executor, stages):
    try:
        result = Pipeline("gpus", stages).run(executor, [Task(data=[]) for _ in range(12)])
    except ResourcesError as error:
        return {"error": str(error), "stage": error.stage}
    return {"seen": [seen for task in result for seen in task.data], "stages": [asdict(s) for s in result.stages]}


def main():
    results = {}
    with XennaExecutor({"num_cpus": 8}) as executor:
        for name, stages in CASES.items():
            results[name] = outcome(executor, stages)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
