# SPDX-License-Identifier: Apache-2.0
"""The tests and sessions that docs/contract.md and docs/testing.md name exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.tree

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
CONTRACT = (ROOT / "docs" / "contract.md").read_text(encoding="utf-8")

# The names of the directories in docs/testing.md.
SUITES = {
    **{name: ROOT / "packages" / f"curator-{name}" / "tests" for name in ("core", "otel", "xenna")},
    **{name: ROOT / "tests" / name for name in ("integration", "packaging", "chaos", "phoenix", "nemo")},
    "kit": ROOT / "packages" / "curator-core" / "src" / "curator_core" / "testing",
}
TEST = re.compile(r"`(?P<where>[\w/.]*)::(?P<name>\w+)`")
NOT_SESSIONS = {"nox", ".ci/run"}


@cache
def names_in(path: Path) -> set[str]:
    """Return the tests and test classes in a file or anywhere below a directory."""
    files = [path] if path.suffix else sorted(path.rglob("*.py"))
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in files]
    found = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return {node.name for node in found if node.name.lower().startswith("test")}


def rows(text: str) -> list[list[str]]:
    """Return the cells of all tables in a text, without their headers."""
    tables = re.findall(r"^\|.*\|\n\|[-|]+\|\n((?:\|.*\|\n?)*)", text, re.MULTILINE)
    lines = [line for table in tables for line in table.splitlines()]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def section(title: str) -> str:
    """Return the text below a heading of the page, up to the next heading of the same level."""
    level = title.split(" ", 1)[0]
    return PAGE.partition(f"\n{title}\n")[2].partition(f"\n{level} ")[0]


# --- the contract of the adapter ------------------------------------------------------------------------


def test_every_row_of_the_contract_names_existing_tests() -> None:
    there = names_in(SUITES["xenna"])
    assert rows(CONTRACT)
    for what, does, proof in rows(CONTRACT):
        named = re.findall(r"`(test_\w+)`", proof)
        assert named, f"no test proves {what or does}"
        assert set(named) <= there, f"there are no tests {sorted(set(named) - there)}"


def test_every_contract_test_is_in_the_table() -> None:
    names = names_in(SUITES["xenna"] / "test_contract.py")
    assert {name for name in names if f"`{name}`" not in CONTRACT} == set()


# --- promises -------------------------------------------------------------------------------------------


def groups() -> dict[str, list[list[str]]]:
    """Return the rows of promises by their heading."""
    _, *parts = section("## Promises and their tests").split("\n### ")
    return {part.partition("\n")[0]: rows(part) for part in parts}


def test_every_guide_has_a_group_of_promises() -> None:
    linked = {match[1] for heading in groups() if (match := re.search(r"\((guides/.+\.md)\)$", heading))}
    assert linked == {f"guides/{path.name}" for path in (ROOT / "docs" / "guides").glob("*.md")}
    assert "README" in groups()
    assert [heading for heading, found in groups().items() if not found] == []


def test_every_promise_names_existing_tests() -> None:
    missing = []
    for promise, tests in (row for found in groups().values() for row in found):
        named = list(TEST.finditer(tests))
        assert len(named) == tests.count("`") / 2 > 0, promise
        where = ""
        for test in named:
            where = test["where"] or where
            suite, _, file = where.partition("/")
            path = SUITES[suite] / file
            if not path.exists() or test["name"] not in names_in(path):
                missing.append(f"{where}::{test['name']}")
    assert missing == []


# --- sessions -------------------------------------------------------------------------------------------


def sessions() -> tuple[set[str], list[str]]:
    """Return all sessions of the noxfile, and those that `nox` runs by default."""
    module = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8"))
    names, default = set(), []
    for node in module.body:
        if isinstance(node, ast.FunctionDef):
            for decorator in map(ast.unparse, node.decorator_list):
                if decorator.startswith("nox.session"):
                    given = re.search(r"name='([\w-]+)'", decorator)
                    names.add(given[1] if given else node.name)
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "nox.options.sessions":
            default = ast.literal_eval(node.value)
    return names, default


def test_the_table_of_sessions_matches_the_noxfile() -> None:
    there, default = sessions()
    shown = [row[0].strip("`") for row in rows(section("## Sessions"))]
    assert default
    assert set(shown) - NOT_SESSIONS <= there
    assert [name for name in shown if name in default] == default
    assert set(re.findall(r"nox -s ([\w-]+)", PAGE)) <= there
