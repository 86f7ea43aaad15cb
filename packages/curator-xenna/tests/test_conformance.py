# SPDX-License-Identifier: Apache-2.0
"""XennaExecutor passes the kit that every executor passes."""

from __future__ import annotations

from curator_core.testing import ExecutorConformance


class TestXennaExecutor(ExecutorConformance):
    """The `executor` fixture is the shared one: see conftest.py."""
