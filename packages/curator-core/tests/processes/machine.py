# SPDX-License-Identifier: Apache-2.0
"""What the machine has of a run: processes and files."""

from __future__ import annotations

import tempfile
from pathlib import Path

LOKY = b"popen_loky"  # in the command of a worker process


def processes() -> list[tuple[int, int, int, bytes]]:
    """All living ones: process, parent, group, and command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            status, command = (path / "stat").read_text(), (path / "cmdline").read_bytes()
        except OSError:  # it has just ended
            continue
        state, parent, group = status.rpartition(")")[2].split()[:3]
        if state not in "ZX":
            found.append((int(path.name), int(parent), int(group), command))
    return found


def workers_of(driver: int) -> list[int]:
    """Its worker processes. (loky's two resource trackers stay as long as it does, for all its users.)"""
    return [pid for pid, parent, _, command in processes() if parent == driver and LOKY in command]


def files_of(driver: int) -> list[Path]:
    places = ("/dev/shm", tempfile.gettempdir())  # noqa: S108 - where they may be
    return [path for place in places for path in Path(place).glob(f"curator-{driver}-*")]
