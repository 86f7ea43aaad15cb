# SPDX-License-Identifier: Apache-2.0
"""Memory that is short: Ray's object store, and that of the machine. On Xenna only."""

from __future__ import annotations

from dataclasses import replace

import psutil
import pytest
from curator_chaos.checks import holds
from curator_chaos.work import RAISES

POISON = 0.01
PACE_S = 0.003
STORE = 100 * 2**20  # bytes: about the least that Ray allows
BALLAST = 2**20  # characters of each chapter: all of them are eight times as much
LEAK = 8 * 2**20  # bytes of each chapter: all of them are 7 GB
ROOM = 3 * 2**30  # bytes that a run has until Ray begins to kill workers; it takes half of that without any leak

pytestmark = [pytest.mark.everything, pytest.mark.timeout(900)]


def test_the_object_store_spills(scene, tell):
    tell(fault="the object store filled until it spills to disk", on="xenna")
    scene.add_poison(POISON, RAISES)
    config = {"object_store_memory": STORE, "execution_mode": "batch"}  # one stage after the other: all is held between
    job = replace(scene.job("xenna"), config=config, ballast=BALLAST, settings={"fusible": False})
    says = scene.run(job)
    holds(scene, says)
    assert says["spilled"] > 0
    tell(saw=f"the run ends well, {says['spilled']} MiB spilled")


def test_a_stage_leaks_memory(scene, tell):
    """Ray kills whom it likes, the actor that gathers the reports included."""
    tell(fault="a stage that leaks until Ray kills workers, resumed when that ends the run", on="xenna")
    memory = psutil.virtual_memory()
    threshold = (memory.total - memory.available + ROOM) / memory.total
    if threshold > 0.95:
        pytest.skip("there is too little memory to be short of")
    told = scene.outlast(
        replace(scene.job("xenna", PACE_S), leak=LEAK),
        environment={"RAY_memory_usage_threshold": f"{threshold:.4f}"},
        ends=("WorkerDiedError", "ClusterError"),
    )
    holds(scene, told[-1])
    killed = sum(says["out_of_memory"] for says in told)
    assert killed > 0
    tell(saw=f"the run ends well; actors killed by Ray for memory: {killed}, runs: {len(told)}")
