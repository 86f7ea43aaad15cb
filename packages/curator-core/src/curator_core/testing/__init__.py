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

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from curator_core.testing.recorder import Journal, Recorder

if TYPE_CHECKING:
    from curator_core.testing.conformance import ExecutorConformance

__all__ = ["ExecutorConformance", "Journal", "Recorder"]


def __getattr__(name: str) -> Any:
    """Import the tests when they are asked for: worker processes need the kit's stages, and not pytest."""
    if name != "ExecutorConformance":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import pytest  # noqa: PLC0415 - an extra, and heavy

    # Before the modules are imported: so that their asserts show what they compared.
    pytest.register_assert_rewrite(*(f"{__name__}.{module}" for module in ("conformance", "failures", "reliability")))
    from curator_core.testing.conformance import ExecutorConformance  # noqa: PLC0415 - see above

    return ExecutorConformance
