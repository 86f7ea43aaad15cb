# SPDX-License-Identifier: Apache-2.0
"""The input of Xenna: tickets for bundles, which are filled only when they are sent.

Xenna takes its input as a list before the run, and pickles each item only when it sends it to a worker. The items are
therefore tickets: by the time a ticket is pickled, the run has measured how long tasks take, and the bundle that is
sent in its place gets a suitable number of tasks.
"""

from __future__ import annotations

import math
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Any

from curator_core.backends import Bundle, Pace, estimated_bytes, within_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from curator_core.backends import BundlePlan

__all__ = ["InputQueue", "Inputs", "Tickets"]

# Unused tickets are sent empty, all at once, and cost 0.1 to 0.5 ms each. With too few tickets, the bundles of long
# runs get too large; with 32 or more for each slot, the last bundle is at most a thirtieth of a slot's work.
_FEW, _MANY = 256, 4096
_TASKS_A_TICKET = 32
_TICKETS_A_SLOT = 32


class InputQueue:
    """The tasks of a run that have not been sent to a worker yet.

    Args:
        tasks: The tasks; the queue drops each when it is sent.
        plan: The limits of bundles.

    Attributes:
        pace: Learns how long tasks take.
        num_tickets: The maximum number of bundles.
    """

    def __init__(self, tasks: Sequence[Any], plan: BundlePlan) -> None:
        self._tasks = deque(tasks)
        self._plan = plan
        self.pace = Pace(plan)
        by_count = max(min(max(_FEW, len(tasks) // _TASKS_A_TICKET), _MANY), _TICKETS_A_SLOT * plan.slots)
        # If the limit of bytes splits bundles, any two consecutive bundles together exceed the limit.
        self._reserve = 2 * estimated_bytes(tasks) // plan.max_bytes
        most = math.ceil(len(tasks) / plan.batch_size) if plan.full else len(tasks)
        self.num_tickets = min(most, by_count + self._reserve)
        self._tickets_left = self.num_tickets

    @property
    def is_empty(self) -> bool:
        """Whether all tasks have been sent."""
        return not self._tasks

    def take(self) -> Bundle:
        """Return the next bundle, for one ticket; empty if no tasks are left."""
        remaining, tickets = len(self._tasks), self._tickets_left
        self._tickets_left -= 1
        if not remaining:
            return Bundle([])
        if tickets <= 1:
            tasks = [*self._tasks]
        else:
            # A smaller bundle would leave too many tasks for the other tickets, not counting the reserve for splits by
            # bytes. The first bundles are small anyway, to find out soon how long tasks take.
            is_early = self.num_tickets - tickets < 2 * self._plan.slots
            scarce = tickets < remaining and not is_early
            fair = self._plan.whole_batches(remaining / max(1, tickets - self._reserve)) if scarce else 1
            size = max(self.pace.next_size(remaining), fair)
            tasks = within_bytes([*islice(self._tasks, size)], self._plan)
        for _ in tasks:
            self._tasks.popleft()
        return Bundle(tasks)

    def bundles(self) -> list[Bundle]:
        """Return all bundles, for a mode in which Xenna sends everything at the start."""
        made = []
        while not self.is_empty:
            made.append(self.take())
        return made


class Ticket:
    """A place in Xenna's input queue. It pickles as a bundle, which it takes when it is first pickled."""

    __slots__ = ("_bundle", "_queue")

    def __init__(self, queue: InputQueue) -> None:
        self._queue = queue
        self._bundle: Bundle | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        self._bundle = self._bundle or self._queue.take()
        return self._bundle.__reduce__()


class Inputs(list[Any]):
    """Input items that stay uncopied when Xenna copies the specification, which would copy all payloads."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Inputs:
        return self


class Tickets(Inputs):
    """Tickets for a queue. Each iteration creates new tickets, so that this list does not keep sent bundles alive.

    Args:
        queue: The queue.
    """

    def __init__(self, queue: InputQueue) -> None:
        super().__init__()
        self._queue = queue

    def __len__(self) -> int:
        return self._queue.num_tickets

    def __iter__(self) -> Iterator[Ticket]:
        return (Ticket(self._queue) for _ in range(len(self)))

    def __bool__(self) -> bool:
        return len(self) > 0
