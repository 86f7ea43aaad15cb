# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import dataclasses
import enum
import pickle
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator_core import StagePerfStats
from curator_core._performance import StageMetrics

FULL = StagePerfStats(
    stage_name="S",
    process_time=1.5,
    actor_idle_time=0.5,
    input_data_size_mb=8.0,
    num_items_processed=10,
    custom_metrics={"tokens": 7, "model": "x"},
    start_time_unix_ns=1_000_000_000,
    startup_time=2.0,
    worker_id="w",
    node_id="n",
    batch_id="0/1",
)

stats = st.builds(
    StagePerfStats,
    stage_name=st.sampled_from(["A", "B"]),
    process_time=st.integers(0, 9),
    num_items_processed=st.integers(0, 9),
    custom_metrics=st.dictionaries(st.sampled_from("xyz"), st.integers(0, 9)),
    start_time_unix_ns=st.integers(0, 9),
    worker_id=st.sampled_from(["", "w", "v"]),
)


def test_the_fields_are_those_of_the_contract():
    names = [field.name for field in dataclasses.fields(StagePerfStats)]
    assert names[:6] == [
        "stage_name",
        "process_time",
        "actor_idle_time",
        "input_data_size_mb",
        "num_items_processed",
        "custom_metrics",
    ]
    assert names[6:] == ["start_time_unix_ns", "startup_time", "worker_id", "node_id", "batch_id"]


def test_stats_can_be_added():
    total = FULL + dataclasses.replace(FULL, process_time=0.25, start_time_unix_ns=5, node_id="m")
    assert total.process_time == 1.75
    assert total.num_items_processed == 20
    assert total.input_data_size_mb == 16.0
    assert total.custom_metrics == {"tokens": 14, "model": "x"}
    assert total.start_time_unix_ns == 5
    assert (total.stage_name, total.worker_id, total.node_id) == ("S", "w", "")


def test_stats_can_be_summed():
    assert sum([FULL]) == FULL
    assert sum([FULL, FULL, FULL]).process_time == 4.5
    assert sum([]) == 0


@given(stats, stats, stats)
def test_adding_is_associative(a, b, c):
    assert (a + b) + c == a + (b + c)


@given(stats, stats)
def test_adding_numbers_is_commutative(a, b):
    assert a + b == b + a


@pytest.mark.parametrize("other", [1, "x", None, 0.5])
def test_stats_cannot_be_added_to_other_objects(other):
    with pytest.raises(TypeError):
        FULL + other
    with pytest.raises(TypeError):
        other + FULL


def test_a_text_and_a_number_with_one_name_cannot_be_added():
    a, b = StagePerfStats("S", custom_metrics={"x": 1}), StagePerfStats("S", custom_metrics={"x": "a"})
    assert (a + b).custom_metrics == {"x": "a"}


def test_to_dict_has_all_fields_as_plain_values():
    values = FULL.to_dict()
    assert list(values) == [field.name for field in dataclasses.fields(StagePerfStats)]
    assert type(values["custom_metrics"]) is dict
    assert StagePerfStats(**values) == FULL


def test_items_are_numbers_only():
    assert dict(FULL.items()) == {
        "process_time": 1.5,
        "actor_idle_time": 0.5,
        "input_data_size_mb": 8.0,
        "num_items_processed": 10,
        "startup_time": 2.0,
        "custom.tokens": 7,
    }


def test_stats_are_deeply_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FULL.process_time = 1
    with pytest.raises(TypeError):
        FULL.custom_metrics["tokens"] = 1


def test_stats_copy_the_metrics_of_the_caller():
    given_metrics = {"x": 1}
    made = StagePerfStats("S", custom_metrics=given_metrics)
    given_metrics["x"] = 2
    assert made.custom_metrics == {"x": 1}


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_stats_can_be_copied_and_pickled(again):
    assert again(FULL) == FULL


def test_stats_are_hashable():
    assert len({FULL, copy.copy(FULL), dataclasses.replace(FULL, process_time=9)}) == 2


def test_the_end_of_a_batch_is_start_plus_duration():
    assert FULL.end_time_unix_ns == 2_500_000_000
    assert StagePerfStats("S", process_time=1.0).end_time_unix_ns == 0


class TestStageMetrics:
    def test_counts_begin_at_zero_and_values_stay(self):
        metrics = StageMetrics()
        metrics.add("n")
        metrics.add("n", 2.5)
        metrics.set("model", "a")
        metrics.set("model", "b")
        assert metrics.take() == {"n": 3.5, "model": "b"}

    def test_taking_the_metrics_resets_them(self):
        metrics = StageMetrics()
        metrics.add("n")
        taken = metrics.take()
        metrics.add("n")
        assert taken == {"n": 1}
        assert metrics.take() == {"n": 1}
        assert metrics.take() == {}

    def test_a_timer_counts_blocks_that_raise(self, monkeypatch):
        clock = iter((0.0, 1.0, 10.0, 12.0))
        monkeypatch.setattr("curator_core._performance.time", SimpleNamespace(perf_counter=clock.__next__))
        metrics = StageMetrics()
        with metrics.timer("s"):
            pass
        with pytest.raises(ValueError), metrics.timer("s"):  # noqa: PT011 - any ValueError that passes through
            raise ValueError
        assert metrics.take() == {"s": 3.0}

    def test_a_count_can_replace_a_text(self):
        metrics = StageMetrics()
        metrics.set("x", "text")
        metrics.add("x", 2)
        assert metrics.take() == {"x": 2}

    def test_numbers_of_other_libraries_become_plain_ones(self):
        class Scalar:
            def __float__(self) -> float:
                return 2.5

        metrics = StageMetrics()
        metrics.set("x", Scalar())
        assert metrics.take() == {"x": 2.5}

    def test_values_of_derived_classes_become_plain_ones(self):
        class Number(enum.IntEnum):
            ONE = 1

        class Text(str):
            __slots__ = ()

        class Seconds(float):
            __slots__ = ()

        metrics = StageMetrics()
        for name, value in (("number", Number.ONE), ("text", Text("x")), ("seconds", Seconds(0.5))):
            metrics.set(Text(name), value)
        taken = metrics.take()
        assert {type(name) for name in taken} == {str}
        assert {name: (value, type(value)) for name, value in taken.items()} == {
            "number": (1, int),
            "text": ("x", str),
            "seconds": (0.5, float),
        }

    @pytest.mark.parametrize("value", [None, [1], {"a": 1}, object()])
    def test_anything_else_is_rejected(self, value):
        with pytest.raises(TypeError, match="metric 'x' must be a number or a string"):
            StageMetrics().set("x", value)
