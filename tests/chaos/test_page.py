# SPDX-License-Identifier: Apache-2.0
"""The table of results: a run changes only the rows that it tested, and records its commit and seed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from curator_chaos import page
from curator_chaos.page import BEGIN, END, Row, made_with
from curator_chaos.results import Results, is_whole, row_of

COLUMN = page.environment()
MADE_WITH = ("commit and seed", "")
HERE = Path(__file__).parent


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(f"before\n{BEGIN}\n{END}\nafter\n")
    return path


def column(path, name=COLUMN):
    return page.parse(path.read_text())[name]


def test_rows_are_replaced_and_the_rest_of_the_page_is_kept(path):
    page.update(path, [Row("one", "local", True, "3 kills", 4.4), Row("two", "xenna", False, "", 9.0)], "`a`, seed 1")
    first = path.read_text()
    page.update(path, [Row("two", "xenna", True, "", 7.0)], "`a`, seed 1")
    assert first.startswith(f"before\n{BEGIN}\n")
    assert first.endswith(f"{END}\nafter\n")
    assert page.parse(first)[COLUMN] == {
        MADE_WITH: "`a`, seed 1",
        ("one", "local"): "3 kills; 4 s",
        ("two", "xenna"): "**did not hold**; 9 s",
    }
    assert path.read_text() == first.replace("**did not hold**; 9 s", "held; 7 s")


def test_executors_of_a_fault_are_next_to_each_other(path):
    tried = [("two", "Xenna"), ("one", "Xenna"), ("two", "local"), ("one", "local, two workers"), ("one", "local")]
    page.update(path, [Row(fault, on, True, "", 1.0) for fault, on in tried], "`a`, seed 1")
    assert [*column(path)][1:] == [
        *(("one", on) for on in ("local", "local, two workers", "Xenna")),
        tried[2],
        tried[0],
    ]


def test_other_columns_are_kept(monkeypatch, path):
    page.update(path, [Row("one", "local", True, "", 1.0), Row("two", "local", True, "", 1.0)], "`a`, seed 1")
    before = column(path)
    monkeypatch.setattr(page, "environment", lambda: "another")
    page.update(path, [Row("one", "local", True, "", 2.0)], "`b`, seed 2", whole=True)
    assert column(path) == before
    assert column(path, "another") == {MADE_WITH: "`b`, seed 2", ("one", "local"): "held; 2 s"}


def test_a_whole_run_drops_faults_that_no_longer_exist(path):
    page.update(path, [Row("one", "local", True, "", 1.0), Row("two", "local", True, "", 1.0)], "`a`, seed 1")
    page.update(path, [Row("two", "local", True, "", 2.0)], "`b`, seed 2", whole=True)
    assert column(path) == {MADE_WITH: "`b`, seed 2", ("two", "local"): "held; 2 s"}


def test_a_skipped_fault_loses_its_earlier_result(path):
    page.update(path, [Row("one", "local", True, "", 1.0)], "`a`, seed 1")
    page.update(path, [Row("one", "local", None, "", 0.1)], "`a`, seed 1")
    assert column(path)["one", "local"] == "not tried"


def test_a_column_of_several_runs_is_marked(path):
    for made in ["`a`, seed 1", "`b`, seed 2", "`a`, seed 1", "`b`, seed 2"]:
        page.update(path, [Row("one", "local", True, "", 1.0)], made)
    assert column(path)[MADE_WITH] == "`a`, seed 1; in part `b`, seed 2"


def test_a_column_of_unknown_origin_says_so(path):
    path.write_text(f"{BEGIN}\n\n{page.render({COLUMN: {('one', 'local'): 'held; 1 s'}})}\n{END}")
    page.update(path, [Row("two", "local", True, "", 1.0)], "`a`, seed 1")
    assert column(path)[MADE_WITH] == "unknown; in part `a`, seed 1"


def test_made_with_names_the_commit_and_the_seed(monkeypatch, path):
    says = {"--show-toplevel": str(path.parent), "HEAD": path.name, "--short": "abc1234"}
    monkeypatch.setattr(page, "_git", lambda *arguments: next(says[each] for each in arguments if each in says))
    assert made_with(path, 7) == "`abc1234`, seed 7"
    says["HEAD"] = f"{path.name}\nother.py"
    assert made_with(path, 7) == "`abc1234` with changes, seed 7"


def test_a_page_without_markers_is_rejected(path):
    path.write_text(BEGIN)
    with pytest.raises(ValueError, match="lacks the markers"):
        page.update(path, [Row("one", "local", True, "", 1.0)], "`a`, seed 1")


def report(outcome, when="call", **told):
    """Return pytest's report of a test that recorded these properties."""
    return pytest.TestReport(
        "test", ("test.py", 1, "test"), {}, outcome, None, when, user_properties=[*told.items()], duration=1.0
    )


@pytest.mark.parametrize(("outcome", "held"), [("passed", True), ("failed", False), ("skipped", None)])
def test_a_test_becomes_a_row(outcome, held):
    assert row_of(report(outcome, fault="one", on="local-2")) == Row("one", "local, two workers", held, "", 1.0)


def test_a_known_failure_becomes_a_row():
    known = report("skipped", fault="one", on="local")
    known.wasxfail = "reason: it does"
    assert row_of(known) == Row("one", "local", True, "**known**: it does", 1.0)


def test_reports_without_a_fault_become_no_row():
    assert row_of(report("passed")) is None
    assert row_of(report("passed", when="teardown", fault="one", on="local")) is None


@pytest.mark.parametrize("left_out", [False, True])
def test_results_of_several_processes_are_in_the_page(monkeypatch, path, left_out):
    page.update(path, [Row("earlier", "local", True, "", 1.0)], "`a`, seed 1")
    monkeypatch.setattr("curator_chaos.results.made_with", lambda page, seed: f"`b`, seed {seed}")
    results = Results(path, 2)
    for fault in ("one", "two"):
        results.pytest_runtest_logreport(report("passed", fault=fault, on="local"))
        results.pytest_testnodedown(SimpleNamespace(workeroutput={"some_left_out": left_out and fault == "one"}), None)
    config = SimpleNamespace(args=[str(HERE)])
    session = SimpleNamespace(config=config, shouldfail=False, shouldstop=False)
    results.pytest_sessionfinish(session, pytest.ExitCode.OK)
    kept = [("earlier", "local")] if left_out else []
    assert [*column(path)] == [MADE_WITH, *kept, ("one", "local"), ("two", "local")]


@pytest.mark.parametrize(
    ("asked", "changes", "whole"),
    [
        (HERE, {}, True),
        (HERE, {"status": pytest.ExitCode.TESTS_FAILED}, True),
        (HERE, {"status": pytest.ExitCode.INTERRUPTED}, False),
        (HERE, {"shouldfail": "stopping after 1 failures"}, False),
        (HERE, {"some_left_out": True}, False),
        (HERE / "test_page.py", {}, False),
        (f"{HERE / 'test_page.py'}::test_a_page_without_markers_is_rejected", {}, False),
    ],
)
def test_a_whole_run_is_recognized(asked, changes, whole):
    given = {"shouldfail": False, "status": pytest.ExitCode.OK, "some_left_out": False, **changes}
    config = SimpleNamespace(args=[str(asked)])
    session = SimpleNamespace(config=config, shouldfail=given["shouldfail"], shouldstop=False)
    assert is_whole(session, given["status"], some_left_out=given["some_left_out"]) is whole
