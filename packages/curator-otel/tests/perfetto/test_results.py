# SPDX-License-Identifier: Apache-2.0
"""Timelines of results: they show the batches in the statistics of the tasks."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest

from curator_core import LocalExecutor, StagePerfStats

T0 = 1_700_000_000 * 1_000_000_000


def test_slices_have_the_durations_of_the_result(draw, run):
    result = run(executor=LocalExecutor(workers=2))
    viewer = draw(result)
    assert viewer.seconds() == pytest.approx({stage.name: stage.process_s for stage in result.stages}, abs=1e-7)
    assert Counter(event["name"] for event in viewer.slices) == {stage.name: stage.batches for stage in result.stages}
    assert viewer.about["left_out"] == 0


def test_run_in_one_process_has_one_track(draw, run):
    result = run()
    viewer = draw(result)
    assert viewer.tracks() == {("node local", "local")}
    assert int(viewer.about["start_unix_ns"]) == min(s.start_time_unix_ns for task in result for s in task.stage_perf)
    assert Counter((a["name"], b["name"]) for a, b in viewer.links) == {("fan_out", "Pairs"): 6}
    assert all(a["end"] <= b["start"] for a, b in viewer.links)


def test_statistics_that_tasks_share_are_drawn_once(draw, finished, perf):
    shared = perf(batch="0/3:x")
    copied = StagePerfStats(**shared.to_dict())
    viewer = draw([finished(shared), finished(shared), finished(copied)])
    assert viewer.seconds() == {"s": 1.0}


def test_batches_without_a_start_are_counted_and_not_drawn(draw, finished, perf):
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


def test_slice_has_the_details_of_its_batch(draw, finished, perf):
    known = {"idle": 1, "text": "x", "bad": float("nan")}
    stats = perf(actor_idle_time=0.25, num_items_processed=3, startup_time=2.0, custom_metrics=known)
    (event,) = draw([finished(stats)]).slices
    assert event["args"] == {
        "batch.id": "0/0",
        "item.count": 3,
        "idle.time": 0.25,
        "setup.time": 2.0,
        "metric.idle": 1,
        "metric.text": "x",
        "metric.bad": "nan",
    }
    assert (event["name"], event["cat"], event["ts"], event["dur"]) == ("s", "batch", 0, 1e6)


def test_overlapping_slices_have_separate_lines(draw, finished, perf):
    """A source works intermittently from its first task to its last, while other stages work."""
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


def test_adjacent_slices_share_a_line(draw, finished):
    """This works for 52 days, at times that a float of microseconds cannot represent."""
    chance = random.Random(5)
    stats = []
    for start in (0, *sorted(chance.randrange(2**52) for _ in range(200))):
        lengths = [chance.randrange(1, 3000) for _ in range(3)]
        for took, begin in zip(lengths, itertools.accumulate(lengths, initial=start), strict=False):
            stats.append(StagePerfStats("s", took / 1e9, start_time_unix_ns=T0 + begin, batch_id=str(len(stats))))
    viewer = draw([finished(one) for one in stats])
    assert viewer.tracks() == {("node local", "local")}
    assert [event["start"] for event in viewer.slices] == [one.start_time_unix_ns - T0 for one in stats]
    assert all(event["depth"] == 0 for event in viewer.slices)
