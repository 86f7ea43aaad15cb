# SPDX-License-Identifier: Apache-2.0
"""Estimates of the clocks of a cluster's nodes, from the travel times of reports to the driver's node.

A delivery is stamped when it leaves and when it arrives. The difference between the stamps is the travel time plus the
amount by which the sending node's clock is behind the driver's. A travel time cannot be negative, so the smallest
difference of many trips is the clock offset plus the shortest travel time, which is 1 to 2 ms and stays in the result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from curator_core.backends import ReportColumns
from curator_core.observers import WorkerReport

if TYPE_CHECKING:
    from curator_core import BatchReport
    from curator_core.backends import AnyReport

__all__ = ["NodeClocks"]

_NEVER = 1 << 63  # longer than any trip
_NOISE_NS = 5_000_000  # what a busy node or a slow network can add even to the shortest of many trips
_MANY = 30  # trips; the shortest of them is reliable
_WINDOW_NS = 60_000_000_000  # in this time a clock that runs 50 ppm fast, as unsynchronized clocks can, gains 3 ms
# Thresholds for a single trip. No trip ends before it began, but on a busy machine some take more than 0.1 s.
_AHEAD_NS = 100_000_000
_BEHIND_NS = 1_000_000_000


class NodeClocks:
    """Learns how far each node's clock differs from the clock of the driver's node, and corrects reports.

    A node is corrected if its clock differs by more than 5 ms after 30 trips from it, or from its first trip on if its
    clock is ahead by more than 100 ms or behind by more than 1 s. The error of a corrected node's times is then the
    shortest travel time; the error of a node that is not corrected is at most that plus 5 ms. A clock that is set back
    during the run is detected after one to two minutes, and one that is set forward is detected immediately.

    Trips from the driver's own node measure the travel time only. If even the shortest of them is long because the
    driver's node is overloaded, the threshold for other nodes rises to twice that time. In any case, a node's offset
    must exceed its shortest round trip.

    Calls must come from one thread at a time.

    Args:
        home: The driver's node, which is never corrected.

    Attributes:
        corrections: The seconds that were last added to each node's times, by node. Contains only nodes that were
            corrected at some point.
    """

    def __init__(self, home: str) -> None:
        self._home = home
        self._noise = _NOISE_NS
        self._trips: dict[str, _Trips] = {}
        self._there_and_back: dict[str, int] = {}
        self._offsets: dict[str, int] = {}  # only of corrected nodes: usually empty
        self.corrections: dict[str, float] = {}

    def observe(self, node_id: str, sent_unix_ns: int, received_unix_ns: int, round_trip_ns: int = 0) -> None:
        """Record the travel time of a delivery.

        Args:
            node_id: The node that sent it.
            sent_unix_ns: When it left, by that node's clock.
            received_unix_ns: When it arrived, by the clock of the driver's node.
            round_trip_ns: How long an earlier delivery and its reply took together; 0 if there was none.
        """
        trips = self._trips.get(node_id)
        if trips is None:
            trips = self._trips[node_id] = _Trips(received_unix_ns)
        trips.add(received_unix_ns - sent_unix_ns, received_unix_ns)
        if node_id == self._home:
            self._noise = max(_NOISE_NS, 2 * trips.least)
            return
        if round_trip_ns:
            self._there_and_back[node_id] = min(round_trip_ns, self._there_and_back.get(node_id, _NEVER))
        if trips.show_more_than(max(self._noise, self._there_and_back.get(node_id, 0))):
            self._offsets[node_id] = trips.least
            self.corrections[node_id] = trips.least / 1e9
        else:
            self._offsets.pop(node_id, None)

    def offset_ns(self, node_id: str) -> int:
        """Return the offset to add to a node's times; 0 if the node is not corrected."""
        return self._offsets.get(node_id, 0)

    def corrected(self, report: AnyReport) -> AnyReport:
        """Return a report with its times on the clock of the driver's node; the same object if nothing changes."""
        if not self._offsets:
            return report
        if isinstance(report, ReportColumns):
            return report.shifted(self.offset_ns)
        if isinstance(report, WorkerReport):
            start = self.offset_ns(report.node_id)
            return report._replace(start_unix_ns=report.start_unix_ns + start) if start else report
        return self._corrected(report)

    def _corrected(self, report: BatchReport) -> BatchReport:
        offsets = self._offsets
        start = offsets.get(report.node_id, 0)
        # 0 means that it is unknown when the inputs were ready, so it stays 0.
        ready = offsets.get(report.ready_node_id, 0) if report.ready_unix_ns else 0
        if not start and not ready:
            return report
        return report._replace(
            start_unix_ns=report.start_unix_ns + start,
            ready_unix_ns=report.ready_unix_ns + ready,
        )


class _Trips:
    """The shortest of the recent trips from one node, kept for the open window and the one before it.

    A window closes after a minute, but not before it has enough trips, so it is longer if a node seldom reports.

    Args:
        since: When the first trip ended, in Unix nanoseconds.
    """

    __slots__ = ("_before", "_count", "_now", "_since")

    def __init__(self, since: int) -> None:
        self._before = self._now = _NEVER
        self._count = 0  # in the open window
        self._since = since

    def add(self, trip_ns: int, received_unix_ns: int) -> None:
        # The absolute difference, because the driver's clock can also be set back.
        if self._count >= _MANY and abs(received_unix_ns - self._since) >= _WINDOW_NS:
            self._before, self._now = self._now, _NEVER
            self._count, self._since = 0, received_unix_ns
        self._count += 1
        self._now = min(self._now, trip_ns)

    @property
    def least(self) -> int:
        """The shortest trip of both windows, in nanoseconds; negative if the node's clock is ahead."""
        return min(self._before, self._now)

    def show_more_than(self, noise_ns: int) -> bool:
        """Whether the node's clock differs by more than the noise can explain."""
        if self._before != _NEVER or self._count >= _MANY:
            return abs(self.least) > noise_ns
        return not -_AHEAD_NS <= self.least <= _BEHIND_NS
