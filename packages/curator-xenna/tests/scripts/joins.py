# SPDX-License-Identifier: Apache-2.0
"""Joins the Ray at RAY_ADDRESS, if any, runs, and prints what it left behind, as JSON."""

import json
import logging
import os

from curator_core import Pipeline, ProcessingStage, Resources, ResourcesError, Task


class Same(ProcessingStage):
    resources = Resources(cpus=0.3)

    def num_workers(self):
        return 1

    def process(self, task):
        return task


def main():
    before = dict(os.environ)
    from curator_xenna import XennaExecutor

    warnings = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warnings.append(record.getMessage())
    logging.getLogger("curator_xenna._cluster.ray_cluster").addHandler(handler)
    executor = XennaExecutor({"num_cpus": 64, "dashboard": True, "ray": {"num_gpus": 8}})
    said = {"size": len(Pipeline("joined", [Same()]).run(executor, [Task(data=n) for n in range(5)]))}
    try:
        Pipeline("too large", [Same().with_(resources=Resources(cpus=2))]).run(XennaExecutor(), [Task(data=0)])
    except ResourcesError as error:  # 95% of two CPUs, rounded down, are used
        said["planned_with"] = error.expected.splitlines()[-1].strip()
    import ray

    said |= {"environ_kept": before == dict(os.environ), "connected": ray.is_initialized(), "warnings": warnings}
    print(json.dumps(said))


if __name__ == "__main__":
    main()
