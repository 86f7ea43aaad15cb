# SPDX-License-Identifier: Apache-2.0
"""Converts pytest's reports to results for the page."""

from __future__ import annotations

from pathlib import Path

import pytest

from curator_chaos.page import EXECUTORS, Row

__all__ = ["is_whole", "row_of"]

_ALL = Path(__file__).parents[1]
_TO_THE_END = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)


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
