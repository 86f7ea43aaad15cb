# SPDX-License-Identifier: Apache-2.0
"""Timelines of results: they show the batches that the tasks' statistics tell of."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator_core import LocalExecutor, StagePerfStats
from curator_otel.perfetto import _microseconds

T0 = 1_700_000_000 * 1_000_000_000


@pytest.mark.parametrize("workers", [1, 2])
def test_the_slices_of_a_stage_are_as_long_as_the_result_says(draw, workers, run):
    if workers > 1:
        pytest.importorskip("loky")
    result = run(executor=LocalExecutor(workers=workers))
    viewer = draw(result)
    assert viewer.seconds() == pytest.approx({stage.name: stage.process_s for stage in result.stages}, abs=1e-7)
    assert Counter(event["name"] for event in viewer.slices) == {stage.name: stage.batches for stage in result.stages}
    assert viewer.about["left_out"] == 0


def test_the_in_process_executor_has_one_track(draw, run):
    result = run()
    viewer = draw(result)
    assert viewer.tracks() == {("node local", "local")}
    assert int(viewer.about["start_unix_ns"]) == min(s.start_time_unix_ns for task in result for s in task.stage_perf)


def test_links_lead_from_the_batches_that_made_the_inputs(draw, run):
    viewer = draw(run())
    assert Counter((a["name"], b["name"]) for a, b in viewer.links) == {("fan_out", "Pairs"): 6}
    assert all(a["end"] <= b["start"] for a, b in viewer.links)


def test_statistics_that_tasks_share_are_drawn_once(draw, finished, perf):
    shared = perf(batch="0/3:x")
    copied = StagePerfStats(**shared.to_dict())
    viewer = draw([finished(shared), finished(shared), finished(copied)])
    assert viewer.seconds() == {"s": 1.0}


def test_batches_that_do_not_say_when_they_began_are_counted_and_not_drawn(draw, finished, perf):
    known, unknown = perf("a"), StagePerfStats("b", 5.0, batch_id="1/0")
    viewer = draw([finished(known, unknown), finished(StagePerfStats("a", 3.0, batch_id="0/1"))])
    assert viewer.seconds() == {"a": 1.0}
    assert viewer.about["left_out"] == 2
    assert viewer.links == []


def test_nodes_are_processes_and_workers_are_tracks(draw, finished, perf):
    viewer = draw(
        [
            finished(perf("a", 0, node_id="n1", worker_id="w1", batch="0"), perf("b", 2, node_id="n2", worker_id="w1")),
            finished(perf("a", 0.5, node_id="n1", worker_id="w2", batch="1"), perf("b", 4)),
        ]
    )
    assert viewer.tracks() == {("node n1", "w1"), ("node n1", "w2"), ("node n2", "w1"), ("node local", "local")}
    orders = {event["args"]["sort_index"] for event in viewer.events if event["name"] == "thread_sort_index"}
    assert len(orders) == 4


def test_what_a_batch_knows_is_shown(draw, finished, perf):
    known = {"idle": 1, "text": "x", "bad": float("nan")}
    stats = perf(actor_idle_time=0.25, num_items_processed=3, startup_time=2.0, custom_metrics=known)
    (event,) = draw([finished(stats)]).slices
    assert event["args"] == {
        "batch.id": "0/0",
        "batch.items": 3,
        "batch.idle_time": 0.25,
        "batch.startup_time": 2.0,
        "metric.idle": 1,
        "metric.text": "x",
        "metric.bad": "nan",
    }
    assert (event["name"], event["cat"], event["ts"], event["dur"]) == ("s", "batch", 0, 1e6)


def test_slices_that_overlap_have_a_line_each(draw, finished, perf):
    """A source is at work, on and off, from its first task to its last, while others work."""
    stats = [
        ("short", 0, 0.5),
        ("source", 0, 4),
        ("inside", 1, 2),
        ("across", 3, 2),
        ("again", 3.5, 2),
        ("after", 5.5, 1),
    ]
    viewer = draw([finished(perf(name, start, took, batch=name)) for name, start, took in stats])
    lines = {event["name"]: (event["thread"], event["depth"]) for event in viewer.slices}
    assert lines == {
        "source": ("local", 0),
        "short": ("local", 1),
        "inside": ("local", 1),
        "across": ("local (2)", 0),
        "again": ("local (3)", 0),
        "after": ("local", 0),
    }
    assert viewer.seconds() == {name: took for name, _, took in stats}


def test_neighbours_that_touch_share_a_line(draw, finished):
    """To the nanosecond, at times that no float of microseconds can say."""
    stats, start = [], 0
    for number in range(200):
        took = 1001 + 7919 * number % 1013
        stats.append(StagePerfStats("s", took / 1e9, start_time_unix_ns=T0 + start, batch_id=str(number)))
        start += took
    viewer = draw([finished(one) for one in stats])
    assert viewer.tracks() == {("node local", "local")}
    assert [event["start"] for event in viewer.slices] == [one.start_time_unix_ns - T0 for one in stats]
    assert all(event["depth"] == 0 for event in viewer.slices)


@given(st.integers(0, 10**17))
def test_a_viewer_that_cuts_to_nanoseconds_reads_the_time_that_was(ns):
    read = int(_microseconds(ns) * 1000)
    assert abs(read - ns) <= ns // 2**52  # exact for 52 days; then as exact as floats are
    if ns < 2**52:
        assert read == ns
