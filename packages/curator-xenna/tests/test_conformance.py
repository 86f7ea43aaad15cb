# SPDX-License-Identifier: Apache-2.0
"""XennaExecutor passes the kit that every executor passes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from curator_core.testing import ExecutorConformance
from curator_xenna import XennaConfig, XennaExecutor


class TestXennaExecutor(ExecutorConformance):
    """The `executor` fixture is the shared one: see conftest.py."""


class TestXennaExecutorPlain(ExecutorConformance):
    """The same with fusion and bundles off, on the same Ray."""

    @pytest.fixture(scope="class")
    @classmethod
    def executor(cls, executor: XennaExecutor) -> Iterator[XennaExecutor]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(executor, "config", XennaConfig(fuse=False, bundle=False))
            yield executor
