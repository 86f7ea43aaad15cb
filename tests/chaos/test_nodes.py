# SPDX-License-Identifier: Apache-2.0
"""A cluster of two nodes, both on this machine, that loses one. Only on Xenna."""

from __future__ import annotations

from dataclasses import replace

import pytest
from curator_chaos.checks import holds
from curator_chaos.scene import DEADLINE_S
from curator_chaos.work import RAISES

POISON = 0.01
PACE_S = 0.02  # so that neither node finishes before the other has begun
BATCHES = (5, 40)
HASTY = {  # Ray notices within 16 seconds that the node is dead, and not only after 65
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "4",
}
BALLAST = 200_000  # characters per chapter: too large for the driver, so that the outputs of a node are lost with it

pytestmark = [pytest.mark.everything, pytest.mark.timeout(600)]


def test_a_node_is_lost(scene, tell):
    tell(fault="SIGKILL of one of two nodes", on="xenna")
    scene.add_poison(POISON, RAISES)
    job = replace(
        scene.job("xenna", PACE_S),
        loses_node_after=scene.rng.randint(*BATCHES),
        config={"bundle": False},
        ballast=BALLAST,
        settings={"fusible": False, "xenna_stage_spec": {"num_workers_per_node": 1}},
    )
    # Two nodes are started, and everything runs twice, on a single machine.
    says = scene.start(job, environment=HASTY).wait(3 * DEADLINE_S)
    holds(scene, says)
    assert says["accounting"]["restarts"] >= 1
    tell(saw=f"the run succeeds, restarts: {says['accounting']['restarts']}")
