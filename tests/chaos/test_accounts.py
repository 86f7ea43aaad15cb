# SPDX-License-Identifier: Apache-2.0
"""The accounts without an engine: random events, many more than in their own tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MACHINE = "packages/curator-core/tests/run/test_accounting_machine.py"
STEPS = 100_000
DEADLINE_S = 3_000  # the test has its own time limit, which is shorter


@pytest.mark.everything
@pytest.mark.timeout(DEADLINE_S + 60)
def test_the_accounts_at_random(pytestconfig, tell):
    what = "random kills, retries, fan-outs, filters, and failures, on the accounts without an engine"
    tell(fault=f"{what}, {STEPS:,} steps", on="none")
    seed = pytestconfig.getoption("--seed")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", MACHINE, f"--hypothesis-seed={seed}"],
        cwd=ROOT,
        env={**os.environ, "CURATOR_ACCOUNTING_STEPS": str(STEPS)},
        check=False,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    tell(saw="the accounts match a plain model")
