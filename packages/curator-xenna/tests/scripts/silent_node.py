# SPDX-License-Identifier: Apache-2.0
"""Runs on two raylets of this machine, of which one is stopped, or dead, when the run begins; says what came of it."""

import json
import os
import signal
import sys
import threading
import time

os.environ |= {
    "RAY_MAX_LIMIT_FROM_API_SERVER": "40000",
    "RAY_MAX_LIMIT_FROM_DATA_SOURCE": "40000",
    # Ray is to find out within 16 seconds that a node is dead, and not in 65.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "4",
}

import ray
from ray.cluster_utils import Cluster

from curator_core import ClusterError, Pipeline, ProcessingStage, Resources, Task
from curator_xenna import XennaConfig, XennaExecutor, nodes

STOPPED_S = 5


class Same(ProcessingStage):
    resources = Resources(cpus=0.3)

    def process(self, task):
        return task


def raylet_of(node):
    return node.all_processes["raylet"][0].process.pid


def run(executor):
    start = time.monotonic()
    try:
        result = Pipeline("silent", [Same()]).run(executor, [Task(data=number) for number in range(5)])
    except ClusterError as error:
        return {"error": error.message, "hint": error.hint, "restarts": error.result.accounting.restarts}
    return {
        "numbers": sorted(task.data for task in result),
        "restarts": result.accounting.restarts,
        "seconds": time.monotonic() - start,
    }


def goes_on_after_a_while(executor, raylet):
    os.kill(raylet, signal.SIGSTOP)
    again = threading.Timer(STOPPED_S, os.kill, [raylet, signal.SIGCONT])
    again.start()
    said = run(executor)
    again.join()
    return said


def is_silent(executor, raylet):
    nodes._PROBE_TIMEOUT_S = 3.0
    os.kill(raylet, signal.SIGSTOP)
    said = run(executor)
    os.kill(raylet, signal.SIGCONT)
    return said


def stays_silent(executor, raylet):
    os.kill(raylet, signal.SIGSTOP)  # until Ray calls it dead
    said = run(executor)
    os.kill(raylet, signal.SIGCONT)
    return said


def is_dead(executor, raylet):
    os.kill(raylet, signal.SIGKILL)  # and Ray does not know yet
    return run(executor)


def cannot_work(executor, raylet):
    def fails():
        if ray.get_runtime_context().get_node_id() != home:
            raise ModuleNotFoundError("No module named 'cosmos_xenna'")
        return []

    home = ray.get_runtime_context().get_node_id()
    nodes._gpus_of_this_node = fails
    return run(executor)


def main():
    head = {"num_cpus": 2, "include_dashboard": True, "dashboard_port": 0}
    raylets = Cluster(initialize_head=True, head_node_args=head)
    try:
        ray.init(address=raylets.address, log_to_driver=False)  # while there is only this node for the driver to be on
        other = raylets.add_node(num_cpus=2)
        executor = XennaExecutor(XennaConfig(address=raylets.address))
        said = globals()[sys.argv[1]](executor, raylet_of(other))
        said["node"] = other.node_id[:8]
        said["known_dead"] = [node["NodeID"][:8] for node in ray.nodes() if not node["Alive"]]
        ray.shutdown()
    finally:
        raylets.shutdown()
    print(json.dumps(said))


if __name__ == "__main__":
    main()
