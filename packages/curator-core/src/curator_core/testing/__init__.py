# SPDX-License-Identifier: Apache-2.0
"""Tests that every executor has to pass; needs the extra ``testing``.

    import pytest
    from curator_core.testing import ExecutorConformance

    class TestMyExecutor(ExecutorConformance):
        @pytest.fixture(scope="class")
        @classmethod
        def executor(cls):
            with MyExecutor() as executor:
                yield executor

That is all: the tests come with the base class. They make few runs, since a run may start processes, and look
at each from many sides. A test that an executor cannot pass may be overridden only by one that is marked
``@pytest.mark.xfail(reason=…)``; anything else is refused when the class is defined.
"""

import pytest

# Before the modules are imported: so that their asserts show what they compared.
pytest.register_assert_rewrite(
    "curator_core.testing.conformance", "curator_core.testing.failures", "curator_core.testing.reliability"
)

from curator_core.testing.conformance import ExecutorConformance  # noqa: E402 - see above
from curator_core.testing.recorder import Journal, Recorder  # noqa: E402

__all__ = ["ExecutorConformance", "Journal", "Recorder"]
