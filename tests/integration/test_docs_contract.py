# SPDX-License-Identifier: Apache-2.0
"""The page of the contract names tests that are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.tree

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "packages" / "curator-xenna" / "tests"
ROW = re.compile(r"^\|(?P<what>[^|]*)\|(?P<does>[^|]*)\|(?P<proof>[^|]*)\|$", re.MULTILINE)


def rows() -> list[re.Match[str]]:
    page = (ROOT / "docs" / "contract.md").read_text(encoding="utf-8")
    return list(ROW.finditer(page))[2:]  # after the header and its rule


def names_of_tests() -> set[str]:
    return {
        node.name
        for path in TESTS.rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_every_row_names_a_test_and_every_test_is_there() -> None:
    there = names_of_tests()
    assert rows()
    for row in rows():
        named = re.findall(r"`(test_\w+)`", row["proof"])
        assert named, f"no test proves {row['what'].strip() or row['does'].strip()}"
        assert set(named) <= there, f"there are no tests {sorted(set(named) - there)}"


def test_no_test_of_the_contract_is_left_out() -> None:
    page = (ROOT / "docs" / "contract.md").read_text(encoding="utf-8")
    module = ast.parse((TESTS / "test_contract.py").read_text(encoding="utf-8"))
    names = {node.name for node in module.body if isinstance(node, ast.FunctionDef)}
    assert {name for name in names if name.startswith("test_") and f"`{name}`" not in page} == set()
