# SPDX-License-Identifier: Apache-2.0
"""What these tests share: a Ray that has started already, and how outputs are compared."""

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
    """An executor that keeps its Ray, started before the first test: how long that takes is part of no run."""
    curator_xenna = pytest.importorskip("curator_xenna")
    with curator_xenna.XennaExecutor() as shared:
        Pipeline("first", [same]).run(shared, [Task(data=0)])
        yield shared


def without_what_differs(text: str) -> str:
    text = re.sub(r"\b[0-9a-f]{32}\b", "<run id>", text)
    text = re.sub(r"\b[\d.]+ (us|ms|s|min)\b", "<time>", text)
    text = re.sub(r"\b\d+ windows, activity: [▁-█]+", "<windows>", text)
    text = re.sub(r"(?<=% of the time in all stages)[,;] .*", " <advice>", text)  # also on how busy the machine is
    text = re.sub(r"(?<= {2})\d[\d,]*\.\d+\b|\b\d+%", "<number>", text)  # in tables; ids have points as well
    return re.sub(r"-{5,}", "-----", text)


@pytest.fixture
def masked() -> Callable[[str], str]:
    """What a program said, without what differs from run to run."""
    return without_what_differs
