# SPDX-License-Identifier: Apache-2.0
"""Two nodes on one machine, one of which is lost."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ray
from ray.cluster_utils import Cluster

from curator_core import RunObserver
from curator_xenna import XennaExecutor
from curator_xenna._cluster.ray_cluster import _NEEDED_BY_XENNA

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from curator_core import BatchReport

__all__ = ["two_nodes"]

CPUS = 2  # per node


class Loss(RunObserver):
    """Kills a node, its raylet first, after it has done some work.

    Args:
        cluster: The cluster.
        node: The node.
        batches: Number of reports from the node until it is killed.
    """

    def __init__(self, cluster: Cluster, node: Any, batches: int) -> None:
        self.node_id: str = node.node_id
        self.left = batches
        self.killing = threading.Thread(target=cluster.remove_node, args=[node], kwargs={"allow_graceful": False})

    def on_batch(self, report: BatchReport) -> None:
        self.left -= report.node_id == self.node_id
        if self.left <= 0 and self.killing.ident is None:
            self.killing.start()


@contextmanager
def two_nodes(batches: int, config: Mapping[str, Any]) -> Iterator[tuple[XennaExecutor, Sequence[RunObserver]]]:
    """Yield an executor on a cluster of two nodes, and the observer that kills the second one.

    Args:
        batches: See `Loss`.
        config: Further settings of the executor.
    """
    os.environ.update(_NEEDED_BY_XENNA)
    head = {"num_cpus": CPUS, "include_dashboard": True, "dashboard_port": 0}  # Xenna queries the dashboard
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        ray.init(address=cluster.address, log_to_driver=False)  # before the second node, so that the driver is here
        loss = Loss(cluster, cluster.add_node(num_cpus=CPUS), batches)
        yield XennaExecutor({"address": cluster.address, **config}), [loss]
        loss.killing.join()  # raises if the thread was never started: the node was not lost
    finally:
        ray.shutdown()
        cluster.shutdown()
