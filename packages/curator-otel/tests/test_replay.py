# SPDX-License-Identifier: Apache-2.0
"""Traces made from finished tasks."""

from __future__ import annotations

import dataclasses
import time

import pytest

from curator_core import ConfigurationError, DataError, StagePerfStats
from curator_otel import Replayed, replay

SECOND = 1_000_000_000
T0 = 1_700_000_000 * SECOND


def test_replay_creates_the_same_batches_as_the_observer(memory, run):
    result = run(memory.observer())

    def shape():
        return sorted(
            (span.name, span.start_time, span.end_time - span.start_time, span.kind, len(span.links))
            for span in memory.spans
            if span.name.startswith("process_batch")
        )

    live = shape()
    memory.exporter.clear()
    replayed = replay(result, memory.tracer_provider, "p")
    assert replayed == Replayed(replayed.trace_id, 7, 0)
    assert [(n, s, k, links) for n, s, _, k, links in shape()] == [(n, s, k, links) for n, s, _, k, links in live]
    # Seconds as a float may lose a nanosecond.
    assert [took for _, _, took, _, _ in shape()] == pytest.approx([took for _, _, took, _, _ in live], abs=2)
    assert memory.one("00 fan_out").attributes["curator.batch.ended"] == 2
    assert memory.one("01 Pairs").attributes["curator.batch.ended"] == 5
    root = memory.one("run p")
    assert f"{root.context.trace_id:032x}" == replayed.trace_id
    assert root.attributes["curator.run.state"] == "replayed"
    assert root.attributes["curator.slowest.stage"] in ("fan_out", "Pairs")
    assert memory.named("process_batch Pairs")[0].attributes["curator.metric.seen"] == 2
    # Tasks do not know how many others were dropped or failed: an invented zero would be worse than no attribute.
    assert {name for span in memory.spans for name in span.attributes if name.startswith("curator.task.")} == set()


def test_shared_statistics_count_once_even_as_copies(memory, finished):
    shared = StagePerfStats("s", 2.0, num_items_processed=3, start_time_unix_ns=T0, batch_id="0/3:x")
    copies = [dataclasses.replace(shared) for _ in range(2)]
    assert replay(map(finished, [shared, shared, *copies]), memory.tracer_provider).batches == 1
    assert memory.one("process_batch s").attributes["curator.item.count"] == 3
    assert memory.one("00 s").attributes["curator.process.time"] == 2.0


def test_batch_without_a_start_is_counted_without_a_span(memory, finished):
    known = StagePerfStats("a", 1.0, start_time_unix_ns=T0, batch_id="0/0")
    unknown = StagePerfStats("b", 5.0, num_items_processed=2, batch_id="1/0")
    mixed = StagePerfStats("a", 3.0, batch_id="0/1")
    replayed = replay([finished(known, unknown), finished(mixed)], memory.tracer_provider)
    assert replayed[1:] == (3, 2)
    assert memory.names() == {"run replay": 1, "00 a": 1, "process_batch a": 1}
    stage, root = memory.one("00 a"), memory.one("run replay")
    assert (stage.start_time, stage.end_time) == (T0, T0 + SECOND)
    assert stage.attributes["curator.batch.without_start"] == 1
    assert stage.attributes["curator.batch.ended"] == 2
    assert stage.attributes["curator.process.time"] == 4.0
    assert root.attributes["curator.batch.without_start"] == 2
    assert root.attributes["curator.batch.ended"] == 3
    assert root.attributes["curator.slowest.stage"] == "b"
    assert (root.start_time, root.end_time) == (T0, T0 + SECOND)


@pytest.mark.parametrize("tasks", [0, 1])
def test_tasks_without_batches_make_no_trace(memory, finished, tasks):
    assert replay([finished()] * tasks, memory.tracer_provider) == Replayed("", 0, 0)
    assert not memory.spans


def test_without_start_times_spans_have_totals_and_no_duration(memory, finished):
    before = time.time_ns()
    replayed = replay([finished(StagePerfStats("a", 1.5, batch_id="0/0"))], memory.tracer_provider)
    assert replayed[1:] == (1, 1)
    assert memory.names() == {"run replay": 1, "00 a": 1}
    for name in ("run replay", "00 a"):
        span = memory.one(name)
        assert before <= span.start_time == span.end_time <= time.time_ns()
        assert span.attributes["curator.batch.without_start"] == 1
    assert memory.one("00 a").attributes["curator.process.time"] == 1.5


@dataclasses.dataclass
class TheirStats:
    """Statistics as in NeMo Curator 1.4."""

    stage_name: str
    process_time: float = 0.0
    actor_idle_time: float = 0.0
    input_data_size_mb: float = 0.0
    num_items_processed: int = 0
    custom_metrics: dict[str, float] = dataclasses.field(default_factory=dict)


class TheirTask:
    """A task of NeMo Curator, with only the attributes that replay uses."""

    def __init__(self, *perf: TheirStats) -> None:
        self._stage_perf = list(perf)


def test_tasks_of_nemo_curator_count_shared_records_once_and_have_no_size(memory):
    shared = TheirStats("Read", 2.0, 0.5, 3 / 2**20, 3, {"files": 1.0})
    copied = dataclasses.replace(shared, custom_metrics={"files": 1.0})  # as received from another process
    other = TheirStats("Read", 2.25, 0.5, 1 / 2**20, 1)
    tasks = [TheirTask(perf, TheirStats("Filter", 0.001 * n, 0.0, 0.0, 1)) for n, perf in
             enumerate([shared, shared, copied, other])]  # fmt: skip
    replayed = replay(tasks, memory.tracer_provider)
    assert replayed[1:] == (6, 6)  # two of one stage, four of the other
    assert memory.names() == {"run replay": 1, "00 Read": 1, "01 Filter": 1}
    read = memory.one("00 Read").attributes
    assert read["curator.batch.ended"] == 2
    assert read["curator.process.time"] == 4.25
    assert read["curator.idle.time"] == 1.0
    assert read["curator.item.count"] == 4
    assert "curator.task.in" not in read
    assert memory.one("run replay").attributes["curator.slowest.stage"] == "Read"
    assert not any("size" in name for span in memory.spans for name in span.attributes)


def test_other_objects_are_rejected():
    with pytest.raises(DataError, match="not a task"):
        replay([object()])


def test_attributes_unknown_to_tasks_are_omitted(memory, finished):
    perf = StagePerfStats("a", 1.0, start_time_unix_ns=T0, batch_id="0/0", worker_id="w", startup_time=2.0)
    replay([finished(perf)], memory.tracer_provider)
    batch = memory.one("process_batch a").attributes
    assert batch["curator.worker.id"] == "w"
    assert batch["curator.setup.time"] == 2.0
    known = {*batch, *memory.one("00 a").attributes, *memory.one("run replay").attributes}
    for name in ("process.pid", "curator.outcome", "curator.batch.attempt", "curator.task.in", "curator.cpu.time"):
        assert name not in known


def test_replayed_stages_are_in_the_order_of_the_histories(memory, finished):
    rows = [StagePerfStats(name, 1.0, start_time_unix_ns=T0 + n, batch_id=f"{n}/0") for n, name in enumerate("abc")]
    # The first task was an input of the second stage only.
    replay([finished(rows[1]), finished(*rows)], memory.tracer_provider)
    assert {"00 a", "01 b", "02 c"} <= set(memory.names())


def test_replay_keeps_the_span_limit(memory, finished):
    rows = [StagePerfStats("a", 1.0, start_time_unix_ns=T0 + n, batch_id=f"0/{n}") for n in range(100)]
    replay([finished(row) for row in rows], memory.tracer_provider, max_spans=20)
    assert len(memory.spans) <= 20
    assert memory.one("00 a").attributes["curator.batch.ended"] == 100


def test_invalid_limit_is_rejected():
    with pytest.raises(ConfigurationError, match="max_spans"):
        replay([], max_spans=0)
