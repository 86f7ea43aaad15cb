# SPDX-License-Identifier: Apache-2.0
"""A case of two_nodes.py: a run on two raylets, with the clock of the workers on one of them set back.

Only the clock is simulated: it is set back in the workers on the node without the driver.
"""

import os
import tempfile
import time
from pathlib import Path

import ray
from tests.waiting import wait_until

from curator_core import Pipeline, ProcessingStage, Resources, Task
from curator_core.testing import Recorder
from curator_xenna import XennaConfig, XennaExecutor

SOURCES = 100
WORKERS = 2


class Here(ProcessingStage):
    """Adds its node."""

    resources = Resources(cpus=0.6)  # the two workers do not fit on one node: each node has one

    def __init__(self, home, behind, marks):
        self.home, self.behind, self.marks = home, behind, Path(marks)

    def setup(self, worker_metadata):
        self.node = ray.get_runtime_context().get_node_id()
        if self.behind and self.node != self.home:
            right = time.time_ns
            time.time_ns = lambda: right() - self.behind

    def process(self, task):
        # Without this, one fast worker could process everything before the other starts.
        (self.marks / str(os.getpid())).touch()
        wait_until(lambda: len(list(self.marks.iterdir())) >= WORKERS, "all workers are at work")
        return Task(data=(*task.data, self.node))


def with_a_clock_behind(cluster, behind_s):
    with tempfile.TemporaryDirectory() as marks:
        return outcome(cluster, behind_s, marks)


def outcome(cluster, behind_s, marks):
    home, watch = cluster.head_node.node_id, Recorder()
    here = Here(home, int(behind_s * 1e9), marks)
    stages = [here.with_(xenna_stage_spec={"num_workers_per_node": 1})]
    executor = XennaExecutor(XennaConfig(address=cluster.address, bundle=False))
    tasks = [Task(data=(number,)) for number in range(SOURCES)]
    before = time.time_ns()
    result = Pipeline("two nodes", stages).run(executor, tasks, [watch])
    after = time.time_ns()
    visited = {node for _, node in (task.data for task in result)}
    (away,) = visited - {home}
    return {
        "numbers": sorted(task.data[0] for task in result),
        "home_worked": home in visited,
        "batches_away": sum(report.node_id == away for report in watch.batches),
        "all_in_the_run": all(before <= r.start_unix_ns <= r.end_unix_ns <= after for r in watch.batches),
        "corrected": {"away" if node == away else node: off for node, off in result.clock_offsets.items()},
        "summary": [line for line in result.summary().splitlines() if "clocks" in line and away[:8] in line],
    }
