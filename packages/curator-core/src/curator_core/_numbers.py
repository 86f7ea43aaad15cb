# SPDX-License-Identifier: Apache-2.0
"""Checks of numbers that users pass. True and False are not numbers here, although Python's bool is an int."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import TypeGuard

__all__ = ["is_amount", "is_whole"]


def is_whole(value: Any, least: float = -math.inf) -> TypeGuard[int]:
    """Whether a value is a whole number, and not below the least one."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_amount(value: Any) -> TypeGuard[float]:
    """Whether a value is a finite number, 0 or more."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
