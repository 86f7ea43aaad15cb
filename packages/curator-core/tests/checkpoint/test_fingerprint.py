# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import logging
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator_core import Plan, ProcessingStage, Task, processing_stage
from curator_core._checkpoint.fingerprint import difference, fingerprint, is_fingerprint


class Filter(ProcessingStage[Task[str], Task[str]]):
    """Has settings, like other stages."""

    def __init__(self, min_length: int = 1, **more: Any) -> None:
        self.min_length = min_length
        self.__dict__.update(more)

    def process(self, task):
        return task


class OtherFilter(Filter):
    pass


class WithSlots(Filter):
    __slots__ = ("extra",)

    def __init__(self, extra):
        super().__init__()
        self.extra = extra


class WithoutItsCache(Filter):
    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name != "cache"}


class InAFormOfItsOwn(Filter):
    def __getstate__(self):
        return [self.min_length]

    def __setstate__(self, state):
        (self.min_length,) = state


@processing_stage()
def upper(task):
    return task


def at_least(length):
    @processing_stage()
    def long_enough(task):
        return task if len(task.data) >= length else None

    return long_enough


def taken(*stages):
    return fingerprint(Plan.from_stages(stages).stages)


def changes(old, new):
    return difference(taken(*old), taken(*new))


# --- compared settings ----------------------------------------------------------------------------------


def test_a_fingerprint_is_json_without_values():
    found = taken(Filter(3, key="s3cret"), upper)
    assert json.loads(json.dumps(found)) == found
    assert is_fingerprint(found)
    assert "s3cret" not in json.dumps(found)
    assert [stage["name"] for stage in found] == ["Filter", "upper"]
    assert found[0]["class"] == f"{__name__}.Filter"
    assert set(found[0]["settings"]) == {"min_length", "key"}
    assert set(found[1]["settings"]) == {"function"}


def test_equal_stages_have_equal_fingerprints():
    assert changes([Filter(3, names={"a", "b"}), at_least(2)], [Filter(3, names={"b", "a"}), at_least(2)]) == []


def test_attributes_of_python_and_the_framework_do_not_affect_the_fingerprint():
    used, fresh = Filter(), Filter()
    used.metrics.add("n", 1)
    used.__doc__ = "other words"
    assert changes([used], [fresh]) == []


@pytest.mark.parametrize(
    ("old", "new", "change"),
    [
        (Filter(1), Filter(2), "stage 'Filter': min_length has changed"),
        (Filter(1), Filter(True), "stage 'Filter': min_length has changed"),
        (Filter(_path="a"), Filter(_path="b"), "stage 'Filter': path has changed"),
        (Filter(), Filter(threshold=1), "stage 'Filter': threshold was added"),
        (Filter(threshold=1), Filter(), "stage 'Filter': threshold was removed"),
        (WithSlots(1), WithSlots(2), "stage 'WithSlots': extra has changed"),
        (WithoutItsCache(1), WithoutItsCache(2), "stage 'WithoutItsCache': min_length has changed"),
        (InAFormOfItsOwn(1), InAFormOfItsOwn(2), "stage 'InAFormOfItsOwn': state has changed"),
        (at_least(1), at_least(2), "stage 'long_enough': function has changed"),
        (upper.with_(name="f"), at_least(1).with_(name="f"), "stage 'f': function has changed"),
        (Filter(check=len), Filter(check=max), "stage 'Filter': check has changed"),
    ],
)
def test_a_changed_setting_is_listed(old, new, change):
    assert change in changes([old], [new])


def test_attributes_left_out_of_the_pickle_do_not_affect_the_fingerprint(caplog):
    assert changes([WithoutItsCache(cache=threading.Lock())], [WithoutItsCache()]) == []
    assert not caplog.records


def test_an_attribute_without_a_digest_is_logged_and_left_out(caplog):
    circle: list[Any] = ["s3cret"]
    circle.append(circle)
    with caplog.at_level(logging.WARNING):
        assert changes([Filter(near=circle)], [Filter(near=[circle])]) == []
    assert "stage 'Filter': the checkpoint will not notice changes of near[1]" in caplog.text
    assert "s3cret" not in caplog.text


# --- descriptions ---------------------------------------------------------------------------------------


def named(*names):
    return [Filter().with_(name=name) for name in names]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("ab", "ab", []),
        ("ab", "ac", ["stage 1 is now 'c' instead of 'b'"]),
        ("ab", "acb", ["stage 'c' was added"]),
        ("ab", "abc", ["stage 'c' was added"]),
        ("abc", "ac", ["stage 'b' was removed"]),
        ("abc", "ab", ["stage 'c' was removed"]),
        ("ab", "ba", ["the order of stages is now b, a instead of a, b"]),
        ("abc", "cxa", ["stage 1 is now 'x' instead of 'b'", "the order of stages is now c, a instead of a, c"]),
        ("a", "xyz", ["stage 0 is now 'x' instead of 'a'", "stage 'y' was added", "stage 'z' was added"]),
    ],
)
def test_added_removed_and_moved_stages_are_listed(old, new, told):
    assert changes(named(*old), named(*new)) == told


def test_a_changed_class_is_listed():
    assert changes([Filter()], [OtherFilter().with_(name="Filter")]) == [
        f"stage 'Filter' is now of class {__name__}.OtherFilter instead of {__name__}.Filter"
    ]


parts = st.tuples(st.sampled_from("abc"), st.sampled_from("CD"), st.sampled_from([{}, {"x": "1"}, {"x": "2"}]))
stages = st.lists(parts, unique_by=lambda part: part[0]).map(
    lambda found: [dict(zip(("name", "class", "settings"), part, strict=True)) for part in found]
)


@given(stages, stages)
def test_every_difference_is_listed(old, new):
    assert bool(difference(old, new)) == (old != new)


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        [1],
        [{}],
        [{"name": "a", "class": "C"}],
        [{"name": "a", "class": "C", "settings": []}],
        [{"name": "a", "class": "C", "settings": {"x": 1}}],
        [{"name": 1, "class": "C", "settings": {}}],
        [{"name": "a", "class": "C", "settings": {}, "more": 1}],
    ],
)
def test_invalid_fingerprints_are_recognized(value):
    assert not is_fingerprint(value)
