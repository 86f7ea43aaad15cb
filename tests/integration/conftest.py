# SPDX-License-Identifier: Apache-2.0
"""Shared fixtures: a Ray that is already running, and the comparison of outputs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from curator_core import Pipeline, Task, processing_stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@processing_stage()
def same(task: Task[int]) -> Task[int]:
    return task


@pytest.fixture(scope="session")
def xenna() -> Iterator[Any]:
    """An executor whose Ray is started before the first test, so that the start is not part of any run."""
    curator_xenna = pytest.importorskip("curator_xenna")
    with curator_xenna.XennaExecutor() as shared:
        Pipeline("first", [same]).run(shared, [Task(data=0)])
        yield shared


def without_what_differs(text: str) -> str:
    text = re.sub(r"\b[0-9a-f]{32}\b", "<run id>", text)
    text = re.sub(r"\b[\d.]+ (us|ms|s|min)\b", "<time>", text)
    text = re.sub(r"\b\d+ windows, activity: [▁-█]+", "<windows>", text)
    text = re.sub(r"(?<=% of the time in all stages)[,;] .*", " <advice>", text)  # depends on the load of the machine
    text = re.sub(r"(?<= {2})\d[\d,]*\.\d+\b|\b\d+%", "<number>", text)  # in tables; ids contain dots too
    return re.sub(r"-{5,}", "-----", text)


@pytest.fixture
def masked() -> Callable[[str], str]:
    """A function that masks the parts of an output that differ from run to run."""
    return without_what_differs
