# SPDX-License-Identifier: Apache-2.0
"""Conditions that must be true after every completed run, whatever its faults."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curator_chaos.processes import wait_until_alone
from curator_chaos.work import FILES
from curator_core import DocumentBatch, deadletter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from curator_chaos.scene import Driver, Scene

__all__ = ["contents", "holds", "nothing_runs", "shared_memory", "temporary_files"]

_ALONE_S = 120.0  # Ray's processes may take a while to notice that their driver was killed
_SHARED_MEMORY = Path("/dev/shm")
_OF_RAY = "pymp-*"  # left by its dashboard, which Ray kills


def holds(scene: Scene, says: Mapping[str, Any]) -> None:
    """Check the documents, dead letters, and accounts, and that nothing is left behind.

    Args:
        scene: The scene of the test.
        says: The report of the last driver, whose run is complete.
    """
    assert says["error"] == "", says["message"]
    documents_are_those_of_an_undisturbed_run(scene)
    poison_is_kept_once(scene)
    accounts_add_up(scene, says)
    nothing_runs()
    assert temporary_files(scene) == []


def documents_are_those_of_an_undisturbed_run(scene: Scene) -> None:
    """Check that the files are the same, byte by byte, without the poison: one document per file, so no duplicates.

    If files contain several documents, check that each document is in one file.
    """
    expected = {
        name: data for name, data in scene.source.written.items() if json.loads(data)["name"] not in scene.poison
    }
    found = contents(scene.out)
    if scene.target_size:
        lines = Counter(line for data in found.values() for line in data.splitlines(keepends=True))
        assert lines == Counter(expected.values())
        return
    assert found.keys() ^ expected.keys() == set()
    assert [name for name in expected if found[name] != expected[name]] == []


def poison_is_kept_once(scene: Scene) -> None:
    """Check that each poisoned chapter is in one letter, and nothing else is in any letter."""
    if not scene.dead.exists():
        assert not scene.poison
        return
    kept = Counter(
        task.data[0]["name"]
        for task in (deadletter.load(scene.dead) if scene.poison else [])
        if isinstance(task, DocumentBatch)
    )
    assert kept == Counter(scene.poison.keys())
    assert len(deadletter.read(scene.dead)) == len(scene.poison)


def accounts_add_up(scene: Scene, says: Mapping[str, Any]) -> None:
    """Check the counts of each stage and between stages, and that all source tasks are finished."""
    assert (says["complete"], says["lost"]) == (True, [])
    accounting, stages = says["accounting"], says["stages"]
    assert accounting["unfinished"] == []
    assert accounting["admitted"] + accounting["resumed"] == FILES
    for stage in stages:
        assert stage["tasks_in"] == stage["tasks_passed"] + stage["tasks_filtered"] + stage["tasks_failed"], stage
    handed_on = [stage["tasks_out"] for stage in stages[:-1]]
    handed_on[0] -= accounting["resumed"]
    assert handed_on == [stage["tasks_in"] for stage in stages[1:]]
    failed = {stage["name"]: stage["tasks_failed"] for stage in stages if stage["tasks_failed"]}
    assert {name: len(set(ids)) for name, ids in accounting["failed"].items() if ids} == failed
    # The result also contains the files of earlier runs.
    assert sorted(says["files"]) == sorted(contents(scene.out))


def nothing_runs() -> None:
    """Check that no driver, worker, or process of Ray is left."""
    left = wait_until_alone(_ALONE_S)
    assert left == [], left  # pytest does not explain assertions of this module


def contents(directory: Path) -> dict[str, bytes]:
    """Return the complete files in a directory."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if not path.name.startswith(".")}


def temporary_files(scene: Scene) -> list[Path]:
    """Return incomplete files, and files that are left in the temporary directory or in shared memory."""
    begun = [path for path in scene.directory.rglob("*") if path.name.endswith(".tmp")]
    assert [path for path in begun if not path.name.startswith(".")] == []
    temporary = [path for path in scene.temporary.iterdir() if not path.match(_OF_RAY)]
    return begun + temporary + [path for driver in scene.drivers for path in shared_memory(driver)]


def shared_memory(driver: Driver) -> list[Path]:
    """Return the files that the processes of a driver's `LocalExecutor` share."""
    return [*_SHARED_MEMORY.glob(f"curator-{driver.pid}-*")]
