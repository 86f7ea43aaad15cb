# SPDX-License-Identifier: Apache-2.0
"""Runs on two raylets of this machine, of which one has its workers' clock set back; prints what came of it, as JSON.

Only the clock is simulated: it is set back in the workers of the node on which the driver is not, in each run by one of
the numbers of seconds that the script is given.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import ray
from raylets import two_raylets
from tests.waiting import wait_until

from curator_core import Pipeline, ProcessingStage, Resources, Task
from curator_core.testing import Recorder
from curator_xenna import XennaConfig, XennaExecutor

SOURCES = 100
WORKERS = 2  # of each stage


class Here(ProcessingStage):
    """Adds where it ran."""

    resources = Resources(cpus=0.4)  # all four workers do not fit on one node: both have some
    fusible = False

    def __init__(self, home, behind, marks):
        self.home, self.behind, self.marks = home, behind, Path(marks)

    def setup(self, worker_metadata):
        self.node = ray.get_runtime_context().get_node_id()
        if self.behind and self.node != self.home:
            right = time.time_ns
            time.time_ns = lambda: right() - self.behind

    def process(self, task):
        # Fast as it is, one worker could do all before the other is there.
        (self.marks / f"{self.name}-{os.getpid()}").touch()
        wait_until(lambda: len(list(self.marks.glob(f"{self.name}-*"))) >= WORKERS, "all workers are at work")
        return Task(data=(*task.data, self.node))


def outcome(cluster, behind_s, marks):
    home, watch = cluster.head_node.node_id, Recorder()
    here = Here(home, int(behind_s * 1e9), marks)
    stages = [here.with_(name=name, xenna_stage_spec={"num_workers_per_node": 1}) for name in ("first", "second")]
    executor = XennaExecutor(XennaConfig(address=cluster.address, bundle=False))
    tasks = [Task(data=(number,)) for number in range(SOURCES)]
    before = time.time_ns()
    result = Pipeline("two nodes", stages).run(executor, tasks, [watch])
    after = time.time_ns()
    visited = {node for task in result for node in task.data[1:]}
    (away,) = visited - {home}
    return {
        "numbers": sorted(task.data[0] for task in result),
        "home_worked": home in visited,
        "batches_away": sum(report.node_id == away for report in watch.batches),
        "all_in_the_run": all(before <= r.start_unix_ns <= r.end_unix_ns <= after for r in watch.batches),
        "corrected": {"away" if node == away else node: off for node, off in result.clock_offsets.items()},
        "summary": [line for line in result.summary().splitlines() if "clocks" in line and away[:8] in line],
    }


def main():
    said = {}
    with two_raylets() as (cluster, _):
        for behind_s in map(int, sys.argv[1:]):
            with tempfile.TemporaryDirectory() as marks:
                said[behind_s] = outcome(cluster, behind_s, marks)
    print(json.dumps(said))


if __name__ == "__main__":
    main()
