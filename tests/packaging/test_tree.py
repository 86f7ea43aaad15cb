# SPDX-License-Identifier: Apache-2.0
"""Rules of the repository itself. The wheels session skips these tests, because it runs outside the tree."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

pytestmark = pytest.mark.tree

ROOT = Path(__file__).parents[2]
PACKAGES = ("curator-core", "curator-xenna", "curator-otel")

TOP_LEVEL = {
    ".ci", ".gitignore", "README.md", "conftest.py", "docs", "noxfile.py", "packages", "pyproject.toml", "tests",
}  # fmt: skip


def test_top_level_has_only_the_expected_files() -> None:
    # As git lists it: ignores files that tools leave behind, but includes new files.
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True)
    assert {Path(name).parts[0] for name in done.stdout.split("\0") if name} == TOP_LEVEL
    assert {path.name for path in (ROOT / "packages").iterdir()} == set(PACKAGES)


def test_top_level_pyproject_has_tool_settings_only() -> None:
    assert set(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))) == {"tool"}


def test_every_session_has_a_docstring() -> None:
    module = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8"))
    functions = [node for node in module.body if isinstance(node, ast.FunctionDef)]
    sessions = [node for node in functions if any("nox.session" in ast.unparse(d) for d in node.decorator_list)]
    assert sessions
    assert [node.name for node in sessions if not ast.get_docstring(node)] == []


def test_ci_script_is_executable() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


@pytest.mark.parametrize("name", PACKAGES)
def test_the_build_finds_the_version(name: str) -> None:
    """Ask hatchling, as `hatch version` does."""
    command = [sys.executable, "-m", "hatchling", "version"]
    done = subprocess.run(command, cwd=ROOT / "packages" / name, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == version(name)


@pytest.mark.parametrize("name", PACKAGES)
def test_changelog_starts_with_the_current_version(name: str) -> None:
    changelog = (ROOT / "packages" / name / "CHANGELOG.md").read_text(encoding="utf-8")
    first = re.search(r"^## (\S+) - (unreleased|\d{4}-\d\d-\d\d)$", changelog, re.MULTILINE)
    assert first is not None
    assert first[1] == version(name)


@pytest.mark.parametrize("name", PACKAGES)
def test_wheel_contains_only_the_package(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT / "packages" / name, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    package = name.replace("-", "_")
    assert {held_name.split("/")[0] for held_name in held} == {
        package,
        f"{package}-{version(name)}.dist-info",
    }
    sources = (ROOT / "packages" / name / "src").rglob("*.py")
    assert {path.relative_to(ROOT / "packages" / name / "src").as_posix() for path in sources} <= held
    assert f"{package}/py.typed" in held


def test_links_in_the_readme_point_to_files() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert local
    assert [link for link in local if not (ROOT / link).exists()] == []
