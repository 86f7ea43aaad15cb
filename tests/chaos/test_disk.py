# SPDX-License-Identifier: Apache-2.0
"""Full disks: a real one, and a size limit on the files of some processes (``RLIMIT_FSIZE``)."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from dataclasses import replace

import pytest
from curator_chaos.checks import contents, holds, nothing_runs, temporary_files

WRITER_LIMIT = 400_000  # bytes: less than the long chapter, more than the checkpoint
CHECKPOINT_LIMIT = 20_000  # bytes: less than the checkpoint, more than any chapter
SMALL_DISK = "1m"  # less than a third of the output: each file takes a page
PACE_S = 0.003  # so that the checkpoint is synced during the run
LONG = pytest.mark.everything
EXECUTORS = [pytest.param("local", marks=LONG), "local-2", pytest.param("xenna", marks=LONG)]


@LONG
@pytest.mark.parametrize("executor", ["local", "local-2", "xenna"])
def test_no_room_for_the_writer(executor, long_scene, tell):
    tell(fault="disk full for the writer, then resumed with free space", on=executor)
    scene = long_scene
    job = scene.without_failures_kept(scene.job(executor))
    failed = scene.run(job, file_limit=WRITER_LIMIT)
    assert "DataError" in (failed["error"], failed["cause"])
    assert "EFBIG" in failed["message"]
    assert "free up space" in failed["message"]
    nothing_runs()
    assert temporary_files(scene) == []
    assert contents(scene.out).items() <= scene.source.written.items()
    holds(scene, scene.run(job))
    tell(saw=f"`{failed['error']}` with a `DataError`, then the run succeeds")


@pytest.mark.parametrize("executor", EXECUTORS)
def test_no_room_for_the_checkpoint(executor, scene, tell):
    tell(fault="disk full for the checkpoint, then resumed with free space", on=executor)
    job = scene.job(executor, PACE_S)
    failed = scene.run(replace(job, driver_limit=CHECKPOINT_LIMIT))
    assert failed["error"] == "DataError"
    assert "finished.jsonl" in failed["message"]
    assert "free up space" in failed["message"]
    nothing_runs()
    assert temporary_files(scene) == []
    holds(scene, scene.run(job))
    tell(saw="`DataError`, then the run succeeds")


@contextmanager
def small_disk(directory):
    """Mount a disk that fits only some of the output; yield a function that makes room for all of it."""
    directory.mkdir()
    where = str(directory)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", where]
    tried = subprocess.run(mount, check=False, capture_output=True)
    if tried.returncode:
        pytest.skip(f"cannot mount a disk: {tried.stderr.decode().strip()}")
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,size=64m", where], check=True)
    finally:
        subprocess.run(["umount", "-l", where], check=True)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_the_disk_is_full(executor, scene, tell):
    tell(fault="full disk (ENOSPC), then resumed with free space", on=executor)
    job = scene.without_failures_kept(scene.job(executor))
    with small_disk(scene.out) as make_room:
        failed = scene.run(job)
        assert "DataError" in (failed["error"], failed["cause"])
        assert "ENOSPC" in failed["message"]
        assert "free up space" in failed["message"]
        nothing_runs()
        assert temporary_files(scene) == []
        assert contents(scene.out).items() <= scene.source.written.items()
        make_room()
        holds(scene, scene.run(job))
    tell(saw=f"`{failed['error']}` with a `DataError`, then the run succeeds")
