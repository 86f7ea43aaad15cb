# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def children() -> Callable[[], set[int]]:
    """A function that returns the live child processes of this process."""
    return lambda: {child.pid for child in psutil.Process().children()}
