# SPDX-License-Identifier: Apache-2.0
"""How tests wait: for an event, never for a fixed time, and with a deadline that a busy machine does not reach.

Scripts and worker processes import this module too, so it needs only the standard library.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

DEADLINE_S = 120  # for events that happen soon
NEVER_S = 3600  # a limit that a run does not reach, however busy the machine is


def wait_until(condition: Callable[[], object], what: str = "", seconds: float = DEADLINE_S) -> None:
    """Wait until a condition is true.

    Args:
        condition: The condition.
        what: Description of the condition, for the message.
        seconds: The deadline.

    Raises:
        TimeoutError: The condition did not become true.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"timed out after {seconds} s: {what or condition}")
        time.sleep(0.01)
