# SPDX-License-Identifier: Apache-2.0
"""Nodes whose clocks disagree: the accuracy of estimates, and what is corrected or left alone."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator_core import ProcessingStage, Task
from curator_core._plan.bundles import BundlePlan, Pace
from curator_core._plan.plan import Plan
from curator_core._reports.batch import BatchReport, InputOutcome, WorkerReport, input_fields
from curator_core._reports.columns import ReportColumns
from curator_core._reports.wire import pack_reports
from curator_core._run.run import Run
from curator_core._run.settings import RunSettings
from curator_core.results import RunResult
from curator_core.testing import Recorder
from curator_xenna._session.clocks import NodeClocks
from curator_xenna._session.coordinator import Coordinator, CoordinatorLink, Delivery, Work
from curator_xenna._session.report_reader import ReportReader

MS, S = 1_000_000, 1_000_000_000
T0 = 1_700_000_000 * S
NOISE = 5 * MS
HOME, FAR = "home", "far"

behinds = st.integers(-3600 * S, 3600 * S)
latencies = st.lists(st.integers(0, 50 * MS), min_size=30, max_size=100)


def observe(clocks: NodeClocks, node: str, behind: int, trips: Iterable[int], every: int = 10 * MS) -> None:
    """Observe deliveries from a node whose clock is behind the driver's, each with its latency."""
    for number, latency in enumerate(trips):
        left = T0 + number * every
        clocks.observe(node, left - behind, left + latency)


def batch(start: int = T0, node: str = FAR, ready: int = 0, ready_node: str = "", **fields: Any) -> BatchReport:
    inputs = input_fields([InputOutcome("0", "out", 1)])
    report = BatchReport("r", 0, "Same", "0/0", f"w-{node}", node, 1, 0, start, S, **inputs)
    return report._replace(ready_unix_ns=ready, ready_node_id=ready_node, **fields)


def ready(start: int = T0, node: str = FAR) -> WorkerReport:
    return WorkerReport("r", 0, "Same", f"w-{node}", node, 1, "ready", start, S)


# --- the estimate ---------------------------------------------------------------------------------------


@given(behinds, latencies)
def test_a_clock_is_estimated_within_the_minimum_latency(behind: int, trips: list[int]) -> None:
    clocks = NodeClocks(HOME)
    observe(clocks, FAR, behind, trips)
    seen = behind + min(trips)
    assert clocks.offset_ns(FAR) == (seen if abs(seen) > NOISE else 0)
    wrong = behind - clocks.offset_ns(FAR)
    assert abs(wrong) <= (min(trips) if clocks.offset_ns(FAR) else NOISE + min(trips))


@given(st.integers(-NOISE, NOISE), st.data())
def test_offsets_within_the_noise_are_not_corrected(behind: int, data: st.DataObject) -> None:
    least = data.draw(st.integers(0, NOISE - behind))
    trips = [least, *data.draw(st.lists(st.integers(least, 500 * MS), max_size=100))]
    clocks = NodeClocks(HOME)
    for known in range(1, len(trips) + 1):
        observe(clocks, FAR, behind, trips[known - 1 : known])
        assert clocks.offset_ns(FAR) == 0
    assert clocks.corrections == {}


@given(behinds, latencies)
def test_the_node_of_the_driver_is_never_corrected(behind: int, trips: list[int]) -> None:
    clocks = NodeClocks(FAR)
    observe(clocks, FAR, behind, trips)
    report = batch()
    assert clocks.offset_ns(FAR) == 0
    assert clocks.corrected(report) is report
    assert clocks.corrections == {}


@given(st.integers(-100 * MS, S), st.integers(1, 29))
def test_a_few_possibly_slow_messages_prove_no_offset(trip: int, count: int) -> None:
    clocks = NodeClocks(HOME)
    observe(clocks, FAR, 0, [trip] * count)
    assert clocks.offset_ns(FAR) == 0


@pytest.mark.parametrize("trip", [-100 * MS - 1, S + 1])
def test_one_message_from_the_future_proves_an_offset(trip: int) -> None:
    clocks = NodeClocks(HOME)
    observe(clocks, FAR, 0, [trip])
    assert clocks.offset_ns(FAR) == trip
    assert clocks.corrections == {FAR: trip / 1e9}


@given(behinds, latencies, st.randoms(use_true_random=False))
def test_the_order_of_deliveries_does_not_matter(behind: int, trips: list[int], random: Any) -> None:
    stamps = [(T0 + n * 10 * MS - behind, T0 + n * 10 * MS + latency) for n, latency in enumerate(trips)]
    in_order, shuffled = NodeClocks(HOME), NodeClocks(HOME)
    for sent, received in stamps:
        in_order.observe(FAR, sent, received)
    random.shuffle(stamps)
    for sent, received in stamps:
        shuffled.observe(FAR, sent, received)
    assert shuffled.offset_ns(FAR) == in_order.offset_ns(FAR)


def test_a_slow_network_is_not_mistaken_for_a_slow_clock() -> None:
    """If there are no workers on the driver's node, only the round trip is available for comparison."""
    slow, behind = NodeClocks(HOME), NodeClocks(HOME)
    for number in range(40):
        slow.observe(FAR, number * S, number * S + 8 * MS, 16 * MS if number else 0)
        behind.observe(FAR, number * S, number * S + 28 * MS, 16 * MS if number else 0)
    assert slow.offset_ns(FAR) == 0
    assert behind.offset_ns(FAR) == 28 * MS


@given(behinds, behinds, latencies)
def test_nodes_have_separate_clocks(here: int, there: int, trips: list[int]) -> None:
    both, one = NodeClocks(HOME), NodeClocks(HOME)
    observe(both, "a", here, trips)
    observe(both, "b", there, trips)
    observe(one, "b", there, trips)
    assert both.offset_ns("b") == one.offset_ns("b")


@given(st.integers(0, S), st.integers(-S, S), latencies)
def test_a_busy_driver_node_widens_the_noise(least: int, behind: int, trips: list[int]) -> None:
    clocks = NodeClocks(HOME)
    observe(clocks, HOME, 0, [least, 2 * S])
    observe(clocks, FAR, behind, trips)
    seen = behind + min(trips)
    assert clocks.offset_ns(FAR) == (seen if abs(seen) > max(NOISE, 2 * least) else 0)


# --- clocks that drift or are set -----------------------------------------------------------------------


def longest(every: int) -> int:
    """Return the maximum age of a trip that still counts, given the interval of trips: two windows."""
    return 2 * (max(60 * S, 30 * every) + every)


@given(
    st.integers(-200, 200),
    st.integers(50 * MS, 20 * S),
    st.lists(st.integers(0, 20 * MS), min_size=40, max_size=200),
)
def test_a_clock_that_drifts_is_followed(ppm: int, every: int, trips: list[int]) -> None:
    clocks = NodeClocks(HOME)
    begins, behind = 30 * S, 0
    for number, latency in enumerate(trips):
        left = T0 + number * every
        behind = begins + number * every * ppm // 1_000_000
        clocks.observe(FAR, left - behind, left + latency)
    wrong = clocks.offset_ns(FAR) - behind
    slack = longest(every) * abs(ppm) // 1_000_000 + len(trips)
    assert -slack <= wrong <= min(trips[-30:]) + slack


@given(behinds, behinds, latencies, st.integers(200 * MS, 20 * S))
def test_a_clock_that_is_set_is_detected(first: int, then: int, trips: list[int], every: int) -> None:
    clocks = NodeClocks(HOME)
    observe(clocks, FAR, first, trips, every)
    since = T0 + len(trips) * every
    for number, latency in zip(itertools.count(), itertools.cycle(trips)):
        left = since + number * every
        clocks.observe(FAR, left - then, left + latency)
        if number >= 60 and left > since + longest(every) + max(trips):
            break
    offset = clocks.offset_ns(FAR)
    assert 0 <= offset - then <= max(trips) if offset else abs(then) <= NOISE + max(trips)


def test_a_clock_that_is_set_forward_is_detected_at_once() -> None:
    clocks = NodeClocks(HOME)
    observe(clocks, FAR, 0, [MS] * 30)
    observe(clocks, FAR, -20 * MS, [MS])
    assert clocks.offset_ns(FAR) == -19 * MS


def test_a_clock_that_becomes_correct_is_no_longer_corrected_but_listed() -> None:
    clocks = NodeClocks(HOME)
    observe(clocks, FAR, S, [MS] * 30)
    assert clocks.corrections == {FAR: 1.001}
    observe(clocks, FAR, 0, [MS])
    report = batch()
    assert clocks.corrected(report) is report
    assert clocks.corrections == {FAR: 1.001}


# --- reports --------------------------------------------------------------------------------------------


@pytest.fixture
def clocks() -> NodeClocks:
    """Clocks of three nodes: one is 2 s behind, one is 3 s ahead, one is correct."""
    clocks = NodeClocks(HOME)
    observe(clocks, "behind", 2 * S, [0])
    observe(clocks, "ahead", -3 * S, [0])
    observe(clocks, "right", 0, [MS] * 30)
    return clocks


def test_a_batch_is_corrected_by_both_nodes(clocks: NodeClocks) -> None:
    report = batch(T0, "behind", T0 + 4 * S, "ahead", metrics={"loss": 0.5})
    corrected = clocks.corrected(report)
    assert corrected == report._replace(start_unix_ns=T0 + 2 * S, ready_unix_ns=T0 + S)
    assert corrected.end_unix_ns == T0 + 3 * S


def test_one_of_the_nodes_of_a_batch_can_be_correct(clocks: NodeClocks) -> None:
    report = batch(T0, "right", T0, "ahead")
    assert clocks.corrected(report) == report._replace(ready_unix_ns=T0 - 3 * S)
    report = batch(T0, "ahead", T0 - 4 * S, HOME)
    assert clocks.corrected(report) == report._replace(start_unix_ns=T0 - 3 * S)


def test_inputs_of_unknown_age_are_unchanged(clocks: NodeClocks) -> None:
    corrected = clocks.corrected(batch(T0, "behind", 0, "ahead"))
    assert (corrected.start_unix_ns, corrected.ready_unix_ns) == (T0 + 2 * S, 0)


def test_worker_reports_are_corrected(clocks: NodeClocks) -> None:
    report = ready(T0, "ahead")
    assert clocks.corrected(report) == report._replace(start_unix_ns=T0 - 3 * S)


@pytest.mark.parametrize("make", [batch, ready])
@pytest.mark.parametrize("node", ["right", HOME, "never heard of"])
def test_a_report_without_correction_is_the_same_object(
    make: Callable[..., Any], node: str, clocks: NodeClocks
) -> None:
    report = make(T0, node)
    assert clocks.corrected(report) is report


@pytest.mark.parametrize(("node", "ready_node"), [("ahead", "behind"), ("behind", HOME), ("right", "ahead")])
def test_columns_are_corrected_as_single_reports_are(node: str, ready_node: str, clocks: NodeClocks) -> None:
    reports = [batch(T0 + number, node, (T0 - number) * (number > 1), ready_node) for number in range(4)]
    assert [*clocks.corrected(ReportColumns.of(reports))] == [*map(clocks.corrected, reports)]


def test_columns_without_correction_are_the_same_object(clocks: NodeClocks) -> None:
    columns = ReportColumns.of([batch(T0 + number, "right") for number in range(4)])
    assert clocks.corrected(columns) is columns


# --- the feed, with deliveries from two simulated nodes --------------------------------------------------


class Same(ProcessingStage[Task[int], Task[int]]):
    def process(self, task: Task[int]) -> Task[int]:
        return task


class Node:
    """Sends deliveries to a coordinator, with a clock that is behind the coordinator's."""

    def __init__(self, coordinator: Coordinator, name: str, behind: int) -> None:
        self.coordinator, self.name, self.behind = coordinator, name, behind
        self.sent = 0

    def shown(self, unix_ns: int) -> int:
        """Return what its clock shows at a time."""
        return unix_ns - self.behind

    async def send(self, *reports: BatchReport | WorkerReport) -> None:
        self.sent += 1
        await self.coordinator.deliver(
            Delivery(
                f"w-{self.name}",
                self.name,
                0,
                f"{self.name}-{self.sent}",
                Work(),
                pack_reports(reports),
                None,
                None,
                is_primary=True,
                sent_unix_ns=self.shown(time.time_ns()),
            )
        )

    async def send_batches(self, number: int, ready_node: Node) -> None:
        """Send batches that began a second ago, with inputs that had waited for two seconds."""
        for count in range(number):
            name, now = f"{self.name}-{count}", time.time_ns()
            report = batch(self.shown(now - S), self.name, ready_node.shown(now - 3 * S), ready_node.name)
            inputs = input_fields([InputOutcome(name, "out", 1)])
            await self.send(report._replace(batch_id=f"0/{name}", sequence=count, **inputs))


def waits(watch: Recorder, node: str) -> list[int]:
    return [report.start_unix_ns - report.ready_unix_ns for report in watch.batches if report.node_id == node]


def feed_through(watch: Recorder, send: Callable[[Node, Node, Node], Any], behind: Sequence[int]) -> RunResult:
    """Return a run with the deliveries of three nodes, the first of which is the driver's."""
    coordinator = Coordinator(1, fed=10_000)
    nodes = [Node(coordinator, name, off) for name, off in zip((HOME, "near", "far"), (0, *behind), strict=True)]

    async def gather() -> list[Delivery]:
        await send(*nodes)
        return await coordinator.pull(0.0)

    run = Run(Plan.from_stages([Same()], fed=True), "by hand", [watch], RunSettings())
    feed = ReportReader(CoordinatorLink(1, 0), run, Pace(BundlePlan()), NodeClocks(HOME))
    with feed:
        for delivery in asyncio.run(gather()):
            feed.enter(delivery, [])
    assert feed.error is None
    return run.finish(None)


def test_every_report_is_in_the_time_of_the_driver() -> None:
    async def send(home: Node, near: Node, far: Node) -> None:
        for node in (home, near, far):
            await node.send(ready(node.shown(time.time_ns() - 2 * S), node.name))
        await near.send_batches(5, ready_node=far)
        await far.send_batches(5, ready_node=near)
        await home.send_batches(5, ready_node=far)

    watch = Recorder()
    before = time.time_ns()
    result = feed_through(watch, send, (40 * S, -7 * S))
    latest = time.time_ns()
    slack = latest - before  # the duration of this test: no trip took longer
    assert len(watch.batches) == 15
    for report in watch.batches:
        assert before - S <= report.start_unix_ns <= latest - S + slack
        assert before - 3 * S <= report.ready_unix_ns <= latest - 3 * S + slack
    assert [before - 2 * S <= report.start_unix_ns <= latest - 2 * S + slack for report in watch.workers] == [True] * 3
    assert set(result.clock_offsets) == {"near", "far"}
    assert 40 <= result.clock_offsets["near"] <= 40 + slack / S
    assert -7 <= result.clock_offsets["far"] <= -7 + slack / S
    assert result.stages[0].tasks_out == 15
    assert "clocks corrected: node near by +40.0" in result.summary()


def test_a_small_difference_is_corrected_once_it_is_certain() -> None:
    async def send(home: Node, near: Node, far: Node) -> None:
        await far.send_batches(29, ready_node=home)
        await near.send_batches(60, ready_node=home)
        await far.send_batches(11, ready_node=home)

    watch = Recorder()
    result = feed_through(watch, send, (0, -60 * MS))
    assert set(result.clock_offsets) == {"far"}
    assert result.clock_offsets["far"] == pytest.approx(-0.06, abs=0.03)
    assert waits(watch, "near") == [2 * S] * 60
    far = waits(watch, "far")
    assert far[:29] == [2 * S + 60 * MS] * 29
    assert all(2 * S <= wait < 2 * S + 55 * MS for wait in far[29:])
    assert far[29:] == sorted(far[29:], reverse=True)  # the shortest trip becomes shorter


def test_a_run_with_matching_clocks_is_unchanged() -> None:
    async def send(home: Node, near: Node, far: Node) -> None:
        await home.send_batches(40, ready_node=home)

    result = feed_through(Recorder(), send, (0, 0))
    assert result.clock_offsets == {}
    assert "clocks" not in result.summary()
