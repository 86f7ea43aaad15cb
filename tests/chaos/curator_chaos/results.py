# SPDX-License-Identifier: Apache-2.0
"""Converts pytest's reports to results for the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from curator_chaos.page import EXECUTORS, Row, made_with, update

__all__ = ["SOME_LEFT_OUT", "Results", "is_whole", "row_of"]

SOME_LEFT_OUT = "some_left_out"
"""Key in the output of a process of pytest-xdist that has deselected tests."""

_ALL = Path(__file__).parents[1]
_TO_THE_END = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)


class Results:
    """A plugin that gathers the outcomes of the tests, whichever process runs them, and writes them into a page.

    Args:
        page: The page; None to write none.
        seed: Determines the faults.
    """

    def __init__(self, page: Path | None, seed: int) -> None:
        self._page = page
        self._made_with = "" if page is None else made_with(page, seed)  # of the commit at the start of the run
        self._rows: list[Row] = []
        self._some_left_out = False

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        self._some_left_out |= bool(items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        self._some_left_out |= getattr(node, "workeroutput", {}).get(SOME_LEFT_OUT, False)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if row := row_of(report):
            self._rows.append(row)

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if self._page is not None and self._rows:
            whole = is_whole(session, exitstatus, some_left_out=self._some_left_out)
            update(self._page, self._rows, self._made_with, whole=whole)


def row_of(report: pytest.TestReport) -> Row | None:
    """Return the result of a test's fault; None if the test recorded no fault, or has not ended yet."""
    told = dict(report.user_properties)
    if report.when != "call" or "fault" not in told:
        return None
    known = str(getattr(report, "wasxfail", ""))
    held = None if report.skipped and not known else bool(report.passed or known)
    saw = f"**known**: {known.removeprefix('reason: ')}" if known else str(told.get("saw", ""))
    return Row(str(told["fault"]), EXECUTORS[str(told["on"])], held, saw, report.duration)


def is_whole(session: pytest.Session, status: int, *, some_left_out: bool) -> bool:
    """Whether a session was requested to test all faults, and was not cut short.

    Args:
        session: The session.
        status: The exit status.
        some_left_out: Whether any test was deselected.
    """
    is_cut_short = status not in _TO_THE_END or session.shouldfail or session.shouldstop
    asked = [Path(argument).resolve() for argument in session.config.args]
    return _ALL in asked and not (some_left_out or is_cut_short)
