# SPDX-License-Identifier: Apache-2.0
"""The clocks of a cluster's nodes, told from the reports' own trips to the driver's node.

A delivery is stamped where it leaves and where it arrives. What lies between the stamps is how long it took, and by how
much its node's clock is behind the driver's. It cannot take less than no time: so the least of many trips is what the
clock is behind, and the least time that one takes, which is 1 to 2 ms and stays in the result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from curator_core.observers import WorkerReport

if TYPE_CHECKING:
    from curator_core import BatchReport

__all__ = ["NodeClocks"]

_NEVER = 1 << 63  # longer than any trip
_NOISE_NS = 5_000_000  # what a busy node or a slow network may add even to the least of many trips
_MANY = 30  # trips, of which the least can be relied on
_WINDOW_NS = 60_000_000_000  # a clock that runs fast by 50 ppm, as those left to themselves may, gains 3 ms in it
# What one trip alone shows. None ends before it began; but on a busy machine some take more than 0.1 s.
_AHEAD_NS = 100_000_000
_BEHIND_NS = 1_000_000_000


class NodeClocks:
    """Learns by how much the nodes' clocks differ from that of the driver's node, and corrects reports.

    A node is corrected where it differs by more than 5 ms, once there were 30 trips from it; from its first trip on
    where its clock is ahead by more than 100 ms, or behind by more than 1 s. Its times are then those of the driver's
    node but for the least trip; those of a node that is left alone, but for that and 5 ms. A clock that is set back
    during the run is found out after one to two minutes, and one that is set forward at once.

    Trips from the driver's own node show how long they take and nothing else. Where even the least of them takes long,
    because the driver's node has too much to do, nodes have to differ by twice that; and in any case by more than the
    least time that there and back took them.

    Calls must come from one thread at a time.

    Args:
        home: The driver's node, which is never corrected.

    Attributes:
        corrections: By node, the seconds that were last added to its times. Only nodes that were ever corrected.
    """

    def __init__(self, home: str) -> None:
        self._home = home
        self._noise = _NOISE_NS
        self._trips: dict[str, _Trips] = {}
        self._there_and_back: dict[str, int] = {}
        self._offsets: dict[str, int] = {}  # only of nodes that are corrected: mostly there are none
        self.corrections: dict[str, float] = {}

    def observe(self, node_id: str, sent_unix_ns: int, received_unix_ns: int, round_trip_ns: int = 0) -> None:
        """A delivery has come.

        Args:
            node_id: Where from.
            sent_unix_ns: When it left, by that node's clock.
            received_unix_ns: When it arrived, by the clock of the driver's node.
            round_trip_ns: How long an earlier one and its answer took together; 0 where there was none.
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
        """What is to be added to a node's times; 0 where they are left as they are."""
        return self._offsets.get(node_id, 0)

    def corrected(self, report: BatchReport | WorkerReport) -> BatchReport | WorkerReport:
        """A report in the time of the driver's node; the same object where there is nothing to correct."""
        offsets = self._offsets
        if not offsets:
            return report
        start = offsets.get(report.node_id, 0)
        if isinstance(report, WorkerReport):
            return report._replace(start_unix_ns=report.start_unix_ns + start) if start else report
        # 0 says that nobody knows when the inputs were ready: that stays.
        ready = offsets.get(report.ready_node_id, 0) if report.ready_unix_ns else 0
        if not start and not ready:
            return report
        return report._replace(
            start_unix_ns=report.start_unix_ns + start,
            ready_unix_ns=report.ready_unix_ns + ready,
        )


class _Trips:
    """The least of the latest trips from one node, in two windows: the old ones go when the next two are full.

    A window is over after a minute, and not before it has had enough trips: where a node seldom reports it is longer.

    Args:
        since: When the first trip ended.
    """

    __slots__ = ("_before", "_count", "_now", "_since")

    def __init__(self, since: int) -> None:
        self._before = self._now = _NEVER
        self._count = 0  # in the window that is open
        self._since = since

    def add(self, trip_ns: int, received_unix_ns: int) -> None:
        # Either way: the driver's clock may be set back, too.
        if self._count >= _MANY and abs(received_unix_ns - self._since) >= _WINDOW_NS:
            self._before, self._now = self._now, _NEVER
            self._count, self._since = 0, received_unix_ns
        self._count += 1
        self._now = min(self._now, trip_ns)

    @property
    def least(self) -> int:
        """Of both windows, in nanoseconds; negative where the node's clock is ahead."""
        return min(self._before, self._now)

    def show_more_than(self, noise_ns: int) -> bool:
        """Whether the node's clock certainly differs."""
        if self._before != _NEVER or self._count >= _MANY:
            return abs(self.least) > noise_ns
        return not -_AHEAD_NS <= self.least <= _BEHIND_NS
