# SPDX-License-Identifier: Apache-2.0
"""One embedded Ray for all tests that can share it; those that cannot run a script of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from curator_xenna import XennaExecutor

SCRIPTS = Path(__file__).parent / "scripts"


@pytest.fixture(scope="session")
def executor() -> Iterator[XennaExecutor]:
    with XennaExecutor() as shared:
        yield shared


@pytest.fixture(scope="session")
def run_script() -> Callable[..., Any]:
    """Run a script of `scripts/` in a process of its own; what its last line of output says, from JSON."""

    def run(name: str, *args: str, env: dict[str, str] | None = None, timeout: float = 240) -> Any:
        done = subprocess.run(
            [sys.executable, str(SCRIPTS / name), *args],
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout.strip().splitlines()[-1])

    return run
