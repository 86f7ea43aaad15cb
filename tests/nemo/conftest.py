# SPDX-License-Identifier: Apache-2.0
"""Pipelines of NeMo Curator on our executors, compared with what NeMo Curator's own adapters make of them."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest

from curator_core import LocalExecutor

if TYPE_CHECKING:
    from collections.abc import Iterator

if find_spec("nemo_curator") is None:
    collect_ignore_glob = ["*.py"]  # NeMo Curator is large: nox -s nemo installs it


@pytest.fixture(scope="session")
def xenna() -> Iterator[Any]:
    """An executor on a Ray that all tests share."""
    from curator_xenna import XennaExecutor

    with XennaExecutor() as shared:
        yield shared


EXECUTORS = ["local", "two workers", pytest.param("xenna", marks=pytest.mark.xdist_group("xenna"))]


def executor_of(request: pytest.FixtureRequest) -> Any:
    """Return the executor that a parameter of a fixture names."""
    if request.param == "xenna":
        return request.getfixturevalue("xenna")
    return LocalExecutor() if request.param == "local" else LocalExecutor(workers=2)


@pytest.fixture(params=EXECUTORS)
def executor(request: pytest.FixtureRequest) -> Any:
    """Each of our executors."""
    return executor_of(request)


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of NeMo Curator in the environment are those of the test alone."""
    for name in ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "NEMO_CURATOR_FAILED_TASKS_DIR", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
