# SPDX-License-Identifier: Apache-2.0
"""A cluster of two nodes on this machine, for scripts."""

import os
from contextlib import contextmanager

import ray
from ray.cluster_utils import Cluster

from curator_xenna._cluster.ray_cluster import _NEEDED_BY_XENNA

CPUS = 2  # per node


@contextmanager
def two_raylets():
    """Yield the cluster and its second node; this process is on the first one."""
    os.environ.update(_NEEDED_BY_XENNA)
    head = {"num_cpus": CPUS, "include_dashboard": True, "dashboard_port": 0}  # Xenna queries the dashboard
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        ray.init(address=cluster.address, log_to_driver=False)  # before the second node, so that the driver is here
        yield cluster, cluster.add_node(num_cpus=CPUS)
    finally:
        ray.shutdown()
        cluster.shutdown()
