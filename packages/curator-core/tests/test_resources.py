# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator_core import Resources, ResourcesError

AMOUNTS = ["cpus", "gpus", "gpu_memory_gb"]
ENGINES = ["nvdecs", "nvencs"]


def test_one_cpu_is_the_default():
    assert dataclasses.astuple(Resources()) == (1.0, 0.0, 0.0, 0, 0, False)
    assert not Resources().requires_gpu


@pytest.mark.parametrize(
    "wants",
    [
        {"gpus": 0.5},
        {"gpus": 1},
        {"gpus": 8},
        {"gpu_memory_gb": 10},
        {"nvdecs": 1},
        {"nvencs": 2},
        {"entire_gpu": True},
        {"entire_gpu": True, "gpus": 1},
        {"entire_gpu": True, "nvdecs": 3},
        {"cpus": 0, "gpus": 1},
    ],
)
def test_requires_gpu_follows_from_the_request(wants):
    assert Resources(**wants).requires_gpu


@pytest.mark.parametrize("field", AMOUNTS + ENGINES)
def test_invalid_amounts_are_rejected(field):
    for value in (-1, math.nan, math.inf, "1", None, True, [1]):
        with pytest.raises(ResourcesError) as raised:
            Resources(**{field: value})
        assert raised.value.field == field
        assert raised.value.given == repr(value)
        assert raised.value.expected
        assert raised.value.hint


@pytest.mark.parametrize("field", ENGINES)
def test_codec_engines_are_whole(field):
    with pytest.raises(ResourcesError, match="whole number"):
        Resources(**{field: 0.5})


@pytest.mark.parametrize("value", [1, 0, "yes", None])
def test_entire_gpu_is_true_or_false(value):
    with pytest.raises(ResourcesError, match="True or False"):
        Resources(entire_gpu=value)


def test_a_fraction_above_one_suggests_a_whole_number():
    with pytest.raises(ResourcesError, match=r"use gpus=2"):
        Resources(gpus=1.5)


def test_contradictory_gpu_requests_are_rejected():
    with pytest.raises(ResourcesError, match="at most one of the two"):
        Resources(gpus=1, gpu_memory_gb=10)


@pytest.mark.parametrize("wants", [{"gpus": 0.5}, {"gpus": 2}, {"gpu_memory_gb": 1}])
def test_an_entire_gpu_is_one(wants):
    with pytest.raises(ResourcesError, match="exactly one whole GPU"):
        Resources(entire_gpu=True, **wants)


def test_a_request_of_nothing_is_not_placeable():
    with pytest.raises(ResourcesError, match="cannot be placed"):
        Resources(cpus=0)


def test_resources_are_frozen_values():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Resources().cpus = 2
    assert Resources(cpus=2) == Resources(cpus=2.0)
    assert len({Resources(), Resources(cpus=1)}) == 1
    assert pickle.loads(pickle.dumps(Resources(gpus=0.5))) == Resources(gpus=0.5)


numbers = st.one_of(st.integers(-2, 9), st.floats(), st.booleans())


@given(cpus=numbers, gpus=numbers, memory=numbers, nvdecs=numbers, nvencs=numbers, entire=st.booleans())
def test_a_request_is_placeable_or_an_error_that_names_a_field(cpus, gpus, memory, nvdecs, nvencs, entire):
    error, made = None, Resources()
    try:
        made = Resources(cpus, gpus, memory, nvdecs, nvencs, entire)
    except ResourcesError as raised:
        error = raised
    assert error is None or (error.field and error.expected and error.hint)
    amounts = dataclasses.astuple(made)[:5]
    assert all(math.isfinite(amount) and amount >= 0 for amount in amounts)
    assert made.gpus <= 1 or made.gpus == int(made.gpus)
    assert not (made.gpus and made.gpu_memory_gb)
    assert made.cpus or made.requires_gpu
