# SPDX-License-Identifier: Apache-2.0
"""Tests that every executor must pass. Requires the extra ``testing``.

    import pytest
    from curator_core.testing import ExecutorConformance

    class TestMyExecutor(ExecutorConformance):
        @pytest.fixture(scope="class")
        @classmethod
        def executor(cls):
            with MyExecutor() as executor:
                yield executor

That is all: the base class contains the tests. They share a few runs, because a run may start processes, and each test
checks one aspect of a run. A test that an executor cannot pass can be overridden only by a test marked
``@pytest.mark.xfail(reason=…)``; any other override raises an error when the class is defined.
"""

import pytest

# Before the modules are imported, so that their assertions show the compared values.
pytest.register_assert_rewrite(
    "curator_core.testing.conformance", "curator_core.testing.failures", "curator_core.testing.reliability"
)

from curator_core.testing.conformance import ExecutorConformance  # noqa: E402 - see above
from curator_core.testing.recorder import Journal, Recorder  # noqa: E402

__all__ = ["ExecutorConformance", "Journal", "Recorder"]
