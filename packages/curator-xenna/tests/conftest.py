# SPDX-License-Identifier: Apache-2.0
"""One embedded Ray for all tests that can share it; other tests run a separate script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from curator_xenna import XennaExecutor

# Titles of Ray's worker processes that are idle or serve Ray itself.
HARMLESS = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")
SCRIPTS = Path(__file__).parent / "scripts"
PATHS = [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")]  # scripts import tests.waiting


@pytest.fixture(scope="session")
def executor() -> Iterator[XennaExecutor]:
    with XennaExecutor() as shared:
        yield shared


@pytest.fixture(scope="session")
def run_script() -> Callable[..., Any]:
    """A function that runs a script of `scripts/` and returns its last line of output, parsed as JSON."""

    def run(name: str, *args: str, env: dict[str, str] | None = None, timeout: float = 240) -> Any:
        done = subprocess.run(
            [sys.executable, str(SCRIPTS / name), *args],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, PATHS)), **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout.strip().splitlines()[-1])

    return run


@pytest.fixture(autouse=True)
def leaves_no_workers(
    request: pytest.FixtureRequest, workers_left: Callable[[psutil.Process], list[str]]
) -> Iterator[None]:
    """Check after every test with an engine, however it ended, that it left no worker on the Ray of this process."""
    yield
    if ray.is_initialized() or "executor" in request.fixturenames:
        assert workers_left(psutil.Process()) == []


@pytest.fixture(scope="session")
def workers_left() -> Callable[[psutil.Process], list[str]]:
    """A function that waits for workers below a process to end, and returns the titles of those that do not."""

    def left(above: psutil.Process) -> list[str]:
        busy = [process for process in above.children(recursive=True) if is_busy(title(process))]
        # A process that was killed may stay in the process table for a moment.
        _, late = psutil.wait_procs(busy, timeout=20)
        return [name for name in map(title, late) if is_busy(name)]

    return left


def is_busy(name: str) -> bool:
    return name.startswith("ray::") and not name.startswith(HARMLESS)


def title(process: psutil.Process) -> str:
    """Return the title of a process; empty if it has ended."""
    try:
        if process.status() == psutil.STATUS_ZOMBIE:  # its parent has not waited for it yet
            return ""
        return "".join(process.cmdline()[:1]).rstrip("\0 ")
    except psutil.Error:
        return ""
