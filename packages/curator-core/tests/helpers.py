# SPDX-License-Identifier: Apache-2.0
"""Shared helpers. Worker processes import this module, so it needs only the package."""

from __future__ import annotations

from typing import Any

from curator_core import Task


def tasks(*data: Any) -> list[Task[Any]]:
    return [Task(data=one) for one in data]
