# SPDX-License-Identifier: Apache-2.0
"""Joins the Ray at RAY_ADDRESS, if any, runs, and says what it left behind, as JSON."""

import json
import os

from curator_core import Pipeline, ProcessingStage, Resources, Task


class Same(ProcessingStage):
    resources = Resources(cpus=0.3)

    def process(self, task):
        return task


def main():
    before = dict(os.environ)
    from curator_xenna import XennaExecutor

    size = len(Pipeline("joined", [Same()]).run(XennaExecutor(), [Task(data=n) for n in range(5)]))
    import ray

    print(json.dumps({"size": size, "environ_kept": before == dict(os.environ), "connected": ray.is_initialized()}))


if __name__ == "__main__":
    main()
