# SPDX-License-Identifier: Apache-2.0
"""What many tests do. Worker processes import this module, so it needs nothing but the package."""

from __future__ import annotations

from typing import Any

from curator_core import Task


def tasks(*data: Any) -> list[Task[Any]]:
    return [Task(data=one) for one in data]
