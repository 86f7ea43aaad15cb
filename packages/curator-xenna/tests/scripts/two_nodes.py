# SPDX-License-Identifier: Apache-2.0
"""Runs on two raylets of this machine, of which one has its workers' clock set back; prints what came of it, as JSON.

Only the clock is simulated: it is set back in the workers of the node on which the driver is not.
"""

import json
import os
import sys
import time

os.environ |= {"RAY_MAX_LIMIT_FROM_API_SERVER": "40000", "RAY_MAX_LIMIT_FROM_DATA_SOURCE": "40000"}

import ray
from ray.cluster_utils import Cluster

from curator_core import Pipeline, ProcessingStage, Resources, RunObserver, Task
from curator_xenna import XennaConfig, XennaExecutor

SOURCES = 100


class Here(ProcessingStage):
    """Adds where it ran."""

    resources = Resources(cpus=0.4)
    fusible = False

    def __init__(self, home, behind):
        self.home, self.behind = home, behind

    def setup(self, worker_metadata):
        self.node = ray.get_runtime_context().get_node_id()
        if self.behind and self.node != self.home:
            right = time.time_ns
            time.time_ns = lambda: right() - self.behind

    def process(self, task):
        time.sleep(0.01)  # so that one worker does not take it all
        return Task(data=(*task.data, self.node))


class Watch(RunObserver):
    def __init__(self):
        self.reports = []

    def on_batch(self, report):
        self.reports.append(report)


def main():
    behind = int(float(sys.argv[1]) * 1e9)
    head = {"num_cpus": 2, "include_dashboard": True, "dashboard_port": 0}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        cluster.add_node(num_cpus=2)
        home, watch = cluster.head_node.node_id, Watch()
        options = {"num_workers_per_node": 1}
        stages = [Here(home, behind).with_(name=name, xenna_stage_spec=options) for name in ("first", "second")]
        executor = XennaExecutor(XennaConfig(address=cluster.address, bundle=False))
        tasks = [Task(data=(number,)) for number in range(SOURCES)]
        before = time.time_ns()
        result = Pipeline("two nodes", stages).run(executor, tasks, [watch])
        after = time.time_ns()
        visited = {node for task in result for node in task.data[1:]}
        (away,) = visited - {home}
        batches = [report for report in watch.reports if report.node_id == away]
        said = {
            "numbers": sorted(task.data[0] for task in result),
            "home_worked": home in visited,
            "batches_away": len(batches),
            "all_in_the_run": all(before <= r.start_unix_ns <= r.end_unix_ns <= after for r in watch.reports),
            "corrected": {"away" if node == away else node: off for node, off in result.clock_offsets.items()},
            "summary": [line for line in result.summary().splitlines() if "clocks" in line and away[:8] in line],
        }
        ray.shutdown()
    finally:
        cluster.shutdown()
    print(json.dumps(said))


if __name__ == "__main__":
    main()
