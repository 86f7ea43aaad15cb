# SPDX-License-Identifier: Apache-2.0
"""What many tests do. Worker processes import it as well, so that it needs nothing but the package."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from curator_core import Task

if TYPE_CHECKING:
    from collections.abc import Callable

DEADLINE_S = 120  # for what comes soon, on a machine that is busy with something else as well


def tasks(*data: Any) -> list[Task[Any]]:
    return [Task(data=one) for one in data]


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for something that happens elsewhere."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
