# SPDX-License-Identifier: Apache-2.0
"""A run on two raylets of this machine, of which one is killed; prints what came of it, as JSON."""

import json
import os
import sys
import threading
import time

os.environ |= {"RAY_MAX_LIMIT_FROM_API_SERVER": "40000", "RAY_MAX_LIMIT_FROM_DATA_SOURCE": "40000"}

import ray
from ray.cluster_utils import Cluster

from curator_core import Pipeline, ProcessingStage, Resources, RunObserver, Task
from curator_xenna import XennaConfig, XennaExecutor

SOURCES = 300
BEFORE = 20  # batches on the node, before it is killed


class Work(ProcessingStage):
    resources = Resources(cpus=0.4)
    fusible = False

    def process(self, task):
        time.sleep(0.02)  # so that neither node is done before the other has begun
        return Task(data=task.data)


class Killer(RunObserver):
    """Kills a node once there is enough of it."""

    def __init__(self, cluster, node):
        self.cluster, self.node = cluster, node
        self.seen = 0
        self.killing = threading.Thread(target=cluster.remove_node, args=[node], kwargs={"allow_graceful": False})

    def on_batch(self, report):
        self.seen += report.node_id == self.node.node_id
        if self.seen == BEFORE and self.killing.ident is None:
            self.killing.start()


def main():
    head = {"num_cpus": 2, "include_dashboard": True, "dashboard_port": 0}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        killer = Killer(cluster, cluster.add_node(num_cpus=2))
        options = {"num_workers_per_node": 1}
        stages = [Work().with_(name=name, xenna_stage_spec=options) for name in ("first", "second")]
        executor = XennaExecutor(XennaConfig(address=cluster.address, bundle=False, **json.loads(sys.argv[1])))
        tasks = [Task(data=number) for number in range(SOURCES)]
        result = Pipeline("node lost", stages).run(executor, tasks, [killer])
        killer.killing.join()
        said = {
            "numbers": sorted(task.data for task in result),
            "restarts": result.accounting.restarts,
            "complete": result.complete,
            "counts": [(stage.tasks_in, stage.tasks_out) for stage in result.stages],
        }
        ray.shutdown()
    finally:
        cluster.shutdown()
    print(json.dumps(said))


if __name__ == "__main__":
    main()
