# SPDX-License-Identifier: Apache-2.0
"""How tests wait: for an event, never for time to pass, and with one deadline that a busy machine does not reach.

Scripts and worker processes import this as well, so it needs nothing but the standard library.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

DEADLINE_S = 120  # for what comes soon
NEVER_S = 3600  # for a limit that a run does not reach, however busy the machine is


def wait_until(condition: Callable[[], object], what: str = "", seconds: float = DEADLINE_S) -> None:
    """Wait for something that happens elsewhere.

    Args:
        condition: Whether it has happened.
        what: What that is, for the message.
        seconds: The deadline.

    Raises:
        TimeoutError: It has not happened.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"timed out after {seconds} s: {what or condition}")
        time.sleep(0.01)
