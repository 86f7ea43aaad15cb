# SPDX-License-Identifier: Apache-2.0
"""The page about telemetry matches the tables in the code."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("curator_otel")

from curator_otel.conventions import ATTRIBUTES, EVENTS, METRICS, SPANS

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
AGAIN = "docs/reference/telemetry.md is not what the tables say: run `python docs/reference/telemetry.py`"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(REFERENCE / "telemetry.py"))


def test_the_page_matches_the_tables(script: dict[str, Any]) -> None:
    page = (REFERENCE / "telemetry.md").read_text(encoding="utf-8")
    assert page.splitlines() == script["render"]().splitlines(), AGAIN


def test_every_name_has_one_row(script: dict[str, Any]) -> None:
    rows = re.findall(r"^\| `([^`]+)` \|", script["render"](), re.MULTILINE)
    assert sorted(rows) == sorted([*SPANS, *EVENTS, *ATTRIBUTES, *METRICS])


def test_a_row_has_as_many_cells_as_its_header(script: dict[str, Any]) -> None:
    row = script["_row"]
    assert row(["a | b", "c"]) == r"| a \| b | c |"
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in script["render"]().splitlines() if line.startswith("|")]
    assert set(widths) <= {3, 5, 7}


def test_running_the_script_writes_the_page(tmp_path: Path) -> None:
    copy = tmp_path / "telemetry.py"
    copy.write_text((REFERENCE / "telemetry.py").read_text(encoding="utf-8"), encoding="utf-8")
    written = runpy.run_path(str(copy), run_name="__main__")
    assert (tmp_path / "telemetry.md").read_text(encoding="utf-8") == written["render"]()
