# SPDX-License-Identifier: Apache-2.0
"""What pytest says of the tests, as results for the page."""

from __future__ import annotations

from pathlib import Path

import pytest

from curator_chaos.page import EXECUTORS, Row

__all__ = ["is_whole", "row_of"]

_ALL = Path(__file__).parents[1]
_TO_THE_END = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)


def row_of(report: pytest.TestReport) -> Row | None:
    """What came of the fault that a test has told; None where it has told none, or has not ended yet."""
    told = dict(report.user_properties)
    if report.when != "call" or "fault" not in told:
        return None
    known = str(getattr(report, "wasxfail", ""))
    held = None if report.skipped and not known else bool(report.passed or known)
    saw = f"**known**: {known.removeprefix('reason: ')}" if known else str(told.get("saw", ""))
    return Row(str(told["fault"]), EXECUTORS[str(told["on"])], held, saw, report.duration)


def is_whole(session: pytest.Session, status: int, *, some_left_out: bool) -> bool:
    """Whether a session was to try all faults there are, and nothing has cut it short.

    Args:
        session: The session.
        status: How it ended.
        some_left_out: Whether any test was deselected.
    """
    is_cut_short = status not in _TO_THE_END or session.shouldfail or session.shouldstop
    asked = [Path(argument).resolve() for argument in session.config.args]
    return _ALL in asked and not (some_left_out or is_cut_short)
