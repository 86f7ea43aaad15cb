# SPDX-License-Identifier: Apache-2.0
"""Runs on two raylets on this machine: one cannot work, is stopped or dead at the start, or has another clock.

Its arguments are names of cases; it prints the result of each, as JSON.
"""

import json
import logging
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

# Let Ray detect within 16 seconds, instead of 65, that a node is dead.
os.environ |= {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "4",
}

import psutil
import ray
from raylets import CPUS, two_raylets
from set_clocks import with_a_clock_behind

from curator_core import ClusterError, Pipeline, ProcessingStage, Resources, Task
from curator_xenna import XennaConfig, XennaExecutor
from curator_xenna._cluster import nodes


class Same(ProcessingStage):
    resources = Resources(cpus=0.3)

    def process(self, task):
        return task


class GoesOn(logging.Handler):
    """Resumes a raylet as soon as the log says that the run waits for nodes; keeps these messages."""

    def __init__(self, raylet):
        super().__init__()
        self.raylet, self.said = raylet, []

    def emit(self, record):
        if record.getMessage().startswith("waiting for nodes"):
            self.said.append(record.getMessage())
            os.kill(self.raylet, signal.SIGCONT)


def run(executor):
    try:
        result = Pipeline("silent", [Same()]).run(executor, [Task(data=number) for number in range(5)])
    except ClusterError as error:
        return {"error": error.message, "hint": error.hint, "restarts": error.result.accounting.restarts}
    return {"numbers": sorted(task.data for task in result), "restarts": result.accounting.restarts}


@contextmanager
def changed(name, value):
    """Change an attribute of our module `nodes` temporarily."""
    before = getattr(nodes, name)
    setattr(nodes, name, value)
    try:
        yield
    finally:
        setattr(nodes, name, before)


@contextmanager
def stopped(raylet):
    os.kill(raylet, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(raylet, signal.SIGCONT)


def is_joined(executor, raylet):
    """Join the cluster from another driver."""
    script = Path(__file__).with_name("joins.py")
    address = {"RAY_ADDRESS": executor.config.address}
    joined = subprocess.run([sys.executable, script], env={**os.environ, **address}, check=True, stdout=subprocess.PIPE)
    workers = [each for each in psutil.Process().children(recursive=True) if each.name().startswith("ray::Stage")]
    _, left = psutil.wait_procs(workers, timeout=20)
    return {**json.loads(joined.stdout.splitlines()[-1]), "left": [str(worker) for worker in left]}


def cannot_work(executor, raylet):
    def fails():
        if ray.get_runtime_context().get_node_id() != home:
            raise ModuleNotFoundError("No module named 'cosmos_xenna'")
        return []

    home = ray.get_runtime_context().get_node_id()
    with changed("_gpus_of_this_node", fails):
        return run(executor)


def answers_late(executor, raylet):
    waiting = GoesOn(raylet)
    nodes.logger.addHandler(waiting)
    nodes.logger.setLevel(logging.INFO)
    try:
        with stopped(raylet):
            return {**run(executor), "waited": waiting.said}
    finally:
        nodes.logger.removeHandler(waiting)


def is_silent(executor, raylet):
    with changed("_PROBE_TIMEOUT_S", 3.0), stopped(raylet):
        return run(executor)


def stays_silent(executor, raylet):
    with stopped(raylet):  # until Ray reports it dead
        return run(executor)


def is_dead(executor, raylet):
    os.kill(raylet, signal.SIGKILL)  # Ray has not noticed yet
    return run(executor)


def outcome(case, cluster, node):
    executor = XennaExecutor(XennaConfig(address=cluster.address))
    said = case(executor, node.all_processes["raylet"][0].process.pid)
    known_dead = [each["NodeID"] for each in ray.nodes() if not each["Alive"]]
    return {**said, "node": node.node_id[:8], "known_dead": node.node_id in known_dead}


def main():
    said = {}
    with two_raylets() as (cluster, second):
        node = second
        for name in sys.argv[1:]:
            if name.startswith("behind="):
                said[name] = with_a_clock_behind(cluster, int(name.removeprefix("behind=")))
                continue
            case = globals()[name]
            known = {each["NodeID"] for each in ray.nodes() if each["Alive"]}
            if node.node_id not in known:  # an earlier case has killed it
                node = cluster.add_node(num_cpus=CPUS)
            said[name] = outcome(case, cluster, node)
    print(json.dumps(said))


if __name__ == "__main__":
    main()
