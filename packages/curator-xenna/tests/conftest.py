# SPDX-License-Identifier: Apache-2.0
"""One embedded Ray for all tests that can share it; other tests run a separate script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
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

# The slowest modules are distributed first, so that they do not run alone at the end. `test_cluster` is the first
# module of its process, because some of its tests need a process without Ray.
FIRST = ("test_conformance", "test_cluster", "test_executor", "test_two_nodes", "test_transport", "test_gpu")
FIRST += ("test_isolation", "test_failures", "test_security", "test_restarts", "test_rolling")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    order = {here / f"{name}.py": number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


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


@pytest.fixture(scope="session")
def ray_servers() -> Callable[[], str]:
    """A function that returns the joined command lines of Ray's processes below this process."""

    def servers() -> str:
        lines = []
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):  # it has just ended
                lines.append(" ".join(child.cmdline()))
        return "\n".join(lines)

    return servers


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
