# SPDX-License-Identifier: Apache-2.0
"""The metrics of a run at a receiver: every relevant field of the protobuf."""

from __future__ import annotations

from collections import Counter

import pytest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality

from curator_otel.conventions import METRICS

CUMULATIVE = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE


def test_metrics_and_labels_are_those_of_the_table(received):
    sink, _ = received
    assert set(METRICS) - {"curator.batch.unrecorded"} <= set(sink.metrics)
    for name, metric in sink.metrics.items():
        described = METRICS[name]
        assert (metric.unit, metric.description) == (described.unit, described.description)
        data = metric.histogram if described.instrument == "histogram" else metric.sum
        assert data.aggregation_temporality == CUMULATIVE
        assert data.data_points
        for point in data.data_points:
            assert tuple(sorted(sink.attributes_of(point))) == tuple(sorted(described.labels))
            assert 0 < point.start_time_unix_nano <= point.time_unix_nano


def test_exemplars_of_histograms_are_batches_that_have_arrived(received):
    sink, _ = received
    spans = {span.span_id: span for span in sink.spans}
    found = 0
    for metric in sink.metrics.values():
        assert not any(point.exemplars for point in metric.sum.data_points)
        for point in metric.histogram.data_points:
            for exemplar in point.exemplars:
                span = spans[exemplar.span_id]
                assert exemplar.trace_id == span.trace_id
                assert span.name == f"process_batch {sink.attributes_of(point)['curator.stage.name']}"
                assert point.min <= exemplar.as_double <= point.max
                assert not exemplar.filtered_attributes
                found += 1
    assert found


def test_counters_are_monotonic_and_agree_with_the_result(received):
    sink, result = received
    values = {}
    for name, metric in sink.metrics.items():
        if metric.HasField("sum"):
            assert metric.sum.is_monotonic
            for point in metric.sum.data_points:
                field = "as_double" if metric.unit == "s" else "as_int"
                assert point.WhichOneof("value") == field, name
                values[name, *sink.attributes_of(point).values()] = getattr(point, field)
    assert values["curator.run.count", "ok"] == 1
    for stage in result.stages:
        assert values["curator.task.out", stage.name] == stage.tasks_out
        assert values["curator.item.count", stage.name] == stage.items
        assert values["curator.process.time", stage.name] == pytest.approx(stage.process_s)
        assert values["curator.cpu.time", stage.name] == pytest.approx(stage.cpu_s)
        assert values["curator.idle.time", stage.name] == pytest.approx(stage.idle_s)
        assert values["curator.batch.count", stage.name, "ok"] == stage.batches - stage.tasks_failed
    assert values["curator.batch.count", "sieve", "failed"] == 2
    by_outcome = [values["curator.task.count", "sieve", outcome] for outcome in ("out", "filtered", "failed")]
    assert by_outcome == [4, 2, 2]


def test_histograms_have_the_boundaries_of_the_table_and_add_up(received):
    sink, result = received
    seen = Counter()
    for name, metric in sink.metrics.items():
        for point in metric.histogram.data_points:
            assert tuple(point.explicit_bounds) == METRICS[name].boundaries
            assert len(point.bucket_counts) == len(point.explicit_bounds) + 1
            assert sum(point.bucket_counts) == point.count
            assert 0 <= point.min <= point.max <= point.sum <= point.count * point.max
            seen[name] += point.count
    assert seen["curator.batch.duration"] == seen["curator.batch.idle"] == sum(s.batches for s in result.stages)
    assert seen["curator.setup.duration"] == 3


def test_label_values_are_stages_and_outcomes_only(received):
    sink, _ = received
    values = {
        value
        for metric in sink.metrics.values()
        for point in (*metric.sum.data_points, *metric.histogram.data_points)
        for value in sink.attributes_of(point).values()
    }
    assert values == {"split", "sieve", "pair", "ok", "failed", "out", "filtered"}
