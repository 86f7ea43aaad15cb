# SPDX-License-Identifier: Apache-2.0
"""The table of results: a run changes what it has tried, and nothing else."""

from __future__ import annotations

import pytest
from curator_chaos import page
from curator_chaos.page import BEGIN, END, Row

COLUMN = page.environment()


def test_rows_are_written_and_the_rest_stays(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(f"before\n{BEGIN}\n{END}\nafter\n")
    page.update(path, [Row("one", "local", True, "3 kills", 4.4), Row("two", "xenna", False, "", 9.0)])
    first = path.read_text()
    page.update(path, [Row("two", "xenna", True, "", 7.0)])
    assert first.startswith(f"before\n{BEGIN}\n")
    assert first.endswith(f"{END}\nafter\n")
    assert page.parse(first)[COLUMN] == {("one", "local"): "3 kills; 4 s", ("two", "xenna"): "**did not hold**; 9 s"}
    assert path.read_text() == first.replace("**did not hold**; 9 s", "held; 7 s")


def test_other_columns_stay(monkeypatch, tmp_path):
    path = tmp_path / "page.md"
    path.write_text(f"{BEGIN}{END}")
    page.update(path, [Row("one", "local", True, "", 1.0), Row("two", "local", True, "", 1.0)])
    monkeypatch.setattr(page, "environment", lambda: "another")
    page.update(path, [Row("one", "local", True, "", 2.0)])
    columns = page.parse(path.read_text())
    assert len(columns[COLUMN]) == 2
    assert columns["another"] == {("one", "local"): "held; 2 s"}


def test_a_page_without_markers(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(BEGIN)
    with pytest.raises(ValueError, match="lacks the markers"):
        page.update(path, [Row("one", "local", True, "", 1.0)])
