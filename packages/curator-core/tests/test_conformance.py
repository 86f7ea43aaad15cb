# SPDX-License-Identifier: Apache-2.0
"""LocalExecutor passes the kit, in this process and on several, and the kit cannot be bypassed."""

from __future__ import annotations

import pytest

from curator_core import LocalExecutor
from curator_core.testing import ExecutorConformance


@pytest.mark.xdist_group("kit in this process")
class TestLocalExecutor(ExecutorConformance):
    ordered = True

    @pytest.fixture(scope="class")
    @classmethod
    def executor(cls) -> LocalExecutor:
        return LocalExecutor()


@pytest.mark.xdist_group("kit on processes")
class TestLocalExecutorOnProcesses(ExecutorConformance):
    ordered = True

    @pytest.fixture(scope="class")
    @classmethod
    def executor(cls) -> LocalExecutor:
        return LocalExecutor(workers=2)


def test_overriding_a_contract_test_is_rejected() -> None:
    with pytest.raises(
        TypeError, match="test_an_empty_input_gives_an_empty_result overrides a test of EdgeConformance"
    ):

        class Lax(ExecutorConformance):
            def test_an_empty_input_gives_an_empty_result(self) -> None:  # type: ignore[override]
                """Check nothing."""


def test_overriding_needs_a_reason() -> None:
    with pytest.raises(TypeError, match=r"xfail\(reason="):

        class Silent(ExecutorConformance):
            @pytest.mark.xfail
            def test_an_empty_input_gives_an_empty_result(self) -> None:  # type: ignore[override]
                """Fail without a reason."""


def test_overriding_with_a_reason_is_allowed() -> None:
    class Honest(ExecutorConformance):
        @pytest.mark.xfail(reason="this engine cannot start without work")
        def test_an_empty_input_gives_an_empty_result(self) -> None:  # type: ignore[override]
            """Fail with a reason."""

    assert issubclass(Honest, ExecutorConformance)


def test_additional_tests_are_allowed() -> None:
    class More(ExecutorConformance):
        def test_something_else(self) -> None:
            """Have a name that no test of the kit has."""

    assert issubclass(More, ExecutorConformance)
