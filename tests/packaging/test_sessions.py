# SPDX-License-Identifier: Apache-2.0
"""The repository's conftest.py: a session fails if it leaves something behind, which is removed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.tree

ROOT = Path(__file__).parents[2]
LEAKS = """
import subprocess, sys, tempfile
import pytest

sys.modules["conftest"].ENDS_WITHIN_S = 0.1

def test_leaves_a_process_and_a_file():
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    process.returncode = 0  # so that no warning is raised
    tempfile.mkstemp(prefix="left-")
    print("pid", process.pid)

@pytest.mark.everything
def test_that_takes_long():
    pass
"""


def run(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = directory / "test_leaks.py"
    path.write_text(LEAKS, encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if name != "CURATOR_TEST_SESSION"}
    options = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(directory), "-p", "conftest", "-s"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, *arguments, str(path)],
        env={**kept, "PYTHONPATH": str(ROOT)},
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )


def test_leftovers_fail_a_session_and_are_removed(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 passed, 1 deselected" in done.stdout
    pid = int(done.stdout.partition("pid ")[2].split()[0])
    assert f"process {pid}: sleep 600" in done.stdout
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    (left,) = [Path(line.removeprefix("file ")) for line in done.stdout.splitlines() if line.startswith("file ")]
    assert left.name.startswith("left-")
    assert not left.exists()


def test_the_long_session_runs_what_others_skip(tmp_path: Path) -> None:
    assert "2 passed" in run(tmp_path, "--hypothesis-profile=everything").stdout
