# SPDX-License-Identifier: Apache-2.0
"""Low memory: Ray's object store, and the memory of the machine. Only on Xenna."""

from __future__ import annotations

from dataclasses import replace

import psutil
import pytest
from curator_chaos.checks import holds
from curator_chaos.work import RAISES

POISON = 0.01
PACE_S = 0.003
STORE = 100 * 2**20  # bytes: about the minimum that Ray allows
BALLAST = 2**20  # characters per chapter: all chapters together are eight times the size of the store
LEAK = 8 * 2**20  # bytes per chapter: 7 GB in total
ROOM = 3 * 2**30  # bytes that a run can use before Ray begins to kill workers; without the leak it uses half of that

pytestmark = [pytest.mark.everything, pytest.mark.timeout(900)]


def test_the_object_store_spills(scene, tell):
    tell(fault="the object store filled until it spills to disk", on="xenna")
    scene.add_poison(POISON, RAISES)
    config = {"ray": {"object_store_memory": STORE}, "execution_mode": "batch"}  # all tasks are stored between stages
    job = replace(scene.job("xenna"), config=config, ballast=BALLAST, settings={"fusible": False})
    says = scene.run(job)
    holds(scene, says)
    assert says["spilled"] > 0
    tell(saw=f"the run succeeds, {says['spilled']} MiB spilled")


@pytest.mark.alone
def test_a_stage_leaks_memory(scene, tell):
    """Ray chooses which actors it kills, and may choose the coordinator."""
    tell(fault="a stage that leaks memory until Ray kills workers, resumed when that ends the run", on="xenna")
    memory = psutil.virtual_memory()
    threshold = (memory.total - memory.available + ROOM) / memory.total
    if threshold > 0.95:
        pytest.skip("too little free memory for this test")
    told = scene.outlast(
        replace(scene.job("xenna", PACE_S), leak=LEAK),
        environment={"RAY_memory_usage_threshold": f"{threshold:.4f}"},
        ends=("WorkerDiedError", "ClusterError"),
    )
    holds(scene, told[-1])
    killed = sum(says["out_of_memory"] for says in told)
    assert killed > 0
    tell(saw=f"the run succeeds; actors killed by Ray for memory: {killed}, runs: {len(told)}")
