# SPDX-License-Identifier: Apache-2.0
"""XennaExecutor passes the kit that every executor passes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from curator_core.testing import ExecutorConformance
from curator_core.testing.conformance import EdgeConformance, WorkingConformance
from curator_core.testing.failures import FailureConformance
from curator_xenna import XennaConfig, XennaExecutor


class TestXennaExecutor(ExecutorConformance):
    """The `executor` fixture is the shared one: see conftest.py."""


class TestXennaExecutorPlain(WorkingConformance, EdgeConformance, FailureConformance):
    """The same with fusion and bundles off, on the same Ray.

    What the kit asks about dead letters, crashes and checkpoints is left out: the driver and the adapters see to that,
    and are the same however tasks travel.
    """

    @pytest.fixture(scope="class")
    @classmethod
    def executor(cls, executor: XennaExecutor) -> Iterator[XennaExecutor]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(executor, "config", XennaConfig(fuse=False, bundle=False))
            yield executor
