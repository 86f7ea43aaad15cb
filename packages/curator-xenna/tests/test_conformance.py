# SPDX-License-Identifier: Apache-2.0
"""XennaExecutor passes the conformance kit."""

from __future__ import annotations

import traceback
from collections.abc import Iterator

import pytest

from curator_core.testing import ExecutorConformance
from curator_core.testing.base import Seen
from curator_core.testing.conformance import WorkingConformance
from curator_xenna import XennaConfig, XennaExecutor


class TestXennaExecutor(ExecutorConformance):
    """The `executor` fixture is the shared one: see conftest.py."""

    def test_an_error_shows_no_frames_of_the_engine(self, failed: Seen) -> None:
        assert failed.error is not None
        shown = "".join(traceback.format_exception(failed.error))
        assert "_deep_inside" in shown
        assert "cosmos_xenna" not in shown
        assert "ray.exceptions" not in shown


@pytest.mark.everything
class TestXennaExecutorPlain(WorkingConformance):
    """The same without fusion and bundles, on the same Ray: each stage has a worker, and each task travels alone.

    Skips the tests of failures, dead letters, and checkpoints: the driver and the adapters implement these, and are the
    same however tasks travel.
    """

    @pytest.fixture(scope="class")
    @classmethod
    def executor(cls, executor: XennaExecutor) -> Iterator[XennaExecutor]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(executor, "config", XennaConfig(fuse=False, bundle=False, max_workers_per_stage=1))
            yield executor
