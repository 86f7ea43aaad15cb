# SPDX-License-Identifier: Apache-2.0
"""Disks that are full: one that really is, and files of some processes that may not grow (``RLIMIT_FSIZE``)."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from dataclasses import replace

import pytest
from curator_chaos.checks import contents, holds, nothing_runs, temporary_files

WRITER_LIMIT = 400_000  # bytes: less than the long chapter, more than the checkpoint
CHECKPOINT_LIMIT = 20_000  # bytes: less than the checkpoint, more than any chapter
SMALL_DISK = "1m"  # less than a third of the output: each file takes a page
PACE_S = 0.003  # so that the checkpoint is synced on the way
LONG = pytest.mark.everything
EXECUTORS = [pytest.param("local", marks=LONG), "local-2", pytest.param("xenna", marks=LONG)]


@LONG
@pytest.mark.parametrize("executor", ["local", "local-2", "xenna"])
def test_no_room_for_the_writer(executor, long_scene, tell):
    tell(fault="disk full under the writer, then resumed with room", on=executor)
    scene = long_scene
    job = scene.without_failures_kept(scene.job(executor))
    failed = scene.run(job, file_limit=WRITER_LIMIT)
    assert "DataError" in (failed["error"], failed["cause"])
    assert "EFBIG" in failed["message"]
    assert "make room" in failed["message"]
    nothing_runs()
    assert temporary_files(scene) == []
    assert contents(scene.out).items() <= scene.source.written.items()
    holds(scene, scene.run(job))
    tell(saw=f"`{failed['error']}` with a `DataError`, then the run ends well")


@pytest.mark.parametrize("executor", EXECUTORS)
def test_no_room_for_the_checkpoint(executor, scene, tell):
    tell(fault="disk full under the checkpoint, then resumed with room", on=executor)
    job = scene.job(executor, PACE_S)
    failed = scene.run(replace(job, driver_limit=CHECKPOINT_LIMIT))
    assert failed["error"] == "DataError"
    assert "finished.jsonl" in failed["message"]
    assert "make room" in failed["message"]
    nothing_runs()
    assert temporary_files(scene) == []
    holds(scene, scene.run(job))
    tell(saw="`DataError`, then the run ends well")


@contextmanager
def small_disk(directory):
    """Put a directory on a disk that holds some of the output; what this gives makes room for all of it."""
    directory.mkdir()
    where = str(directory)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", where]
    tried = subprocess.run(mount, check=False, capture_output=True)
    if tried.returncode:
        pytest.skip(f"no disk can be mounted here: {tried.stderr.decode().strip()}")
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,size=64m", where], check=True)
    finally:
        subprocess.run(["umount", "-l", where], check=True)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_the_disk_is_full(executor, scene, tell):
    tell(fault="a disk that is full (ENOSPC), then resumed with room", on=executor)
    job = scene.without_failures_kept(scene.job(executor))
    with small_disk(scene.out) as make_room:
        failed = scene.run(job)
        assert "DataError" in (failed["error"], failed["cause"])
        assert "ENOSPC" in failed["message"]
        assert "make room" in failed["message"]
        nothing_runs()
        assert temporary_files(scene) == []
        assert contents(scene.out).items() <= scene.source.written.items()
        make_room()
        holds(scene, scene.run(job))
    tell(saw=f"`{failed['error']}` with a `DataError`, then the run ends well")
