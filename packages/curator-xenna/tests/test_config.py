# SPDX-License-Identifier: Apache-2.0
"""Settings: every key is checked, errors for unknown keys name the nearest one, and each key works."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator_core import DeadLetter, ExecutorError
from curator_xenna import XennaConfig, XennaExecutor

NEMO_KEYS = {
    "logging_interval": 30,
    "ignore_failures": True,
    "max_workers_per_stage": 3,
    "execution_mode": "batch",
    "cpu_allocation_percentage": 0.8,
    "autoscale_interval_s": 20,
}


def test_accepts_the_keys_of_nemo_curator() -> None:
    config = XennaExecutor(NEMO_KEYS).config
    assert {key: getattr(config, key) for key in NEMO_KEYS} == NEMO_KEYS


def test_accepts_a_config() -> None:
    config = XennaConfig(verbose=True)
    assert XennaExecutor(config).config is config
    assert XennaExecutor().config == XennaConfig()


@pytest.mark.parametrize(
    ("key", "nearest"), [("loging_interval", "logging_interval"), ("max_workers", "max_workers_per_stage")]
)
def test_an_unknown_key_suggests_the_nearest(key: str, nearest: str) -> None:
    with pytest.raises(ExecutorError) as caught:
        XennaExecutor({key: 1})
    assert caught.value.field == key
    assert nearest in str(caught.value.hint)


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("max_queued_multiplier", "pass xenna={'max_queued_multiplier': …} instead"),
        ("scheduler", "pass xenna={'scheduler': …} instead"),
        ("object_store_memory", "pass ray={'object_store_memory': …} instead"),
    ],
)
def test_an_option_that_is_passed_on_is_not_a_setting(key: str, hint: str) -> None:
    with pytest.raises(ExecutorError, match="unknown setting") as caught:
        XennaExecutor({key: 1})
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("logging_interval", 0),
        ("logging_interval", "60"),
        ("logging_interval", True),
        ("autoscale_interval_s", -1),
        ("execution_mode", "serving"),
        ("cpu_allocation_percentage", 95),
        ("cpu_allocation_percentage", 0),
        ("max_workers_per_stage", 0),
        ("max_workers_per_stage", 1.5),
        ("slots_per_actor", 0),
        ("max_bundle_bytes", None),
        ("ignore_failures", "yes"),
        ("verbose", None),
        ("log_to_driver", "yes"),
        ("num_cpus", 0),
        ("address", 6379),
        ("codec_engines", {"H100": 7}),
        ("xenna", "saturation_aware"),
        ("ray", "num_gpus"),
    ],
)
def test_an_invalid_value_is_rejected(key: str, value: Any) -> None:
    with pytest.raises(ExecutorError) as caught:
        XennaExecutor({key: value})
    assert caught.value.field == key
    assert caught.value.given == repr(value)
    assert caught.value.expected


@pytest.mark.parametrize("config", [3, "verbose", [("verbose", True)]])
def test_an_object_that_is_not_a_config_is_rejected(config: Any) -> None:
    with pytest.raises(ExecutorError, match="invalid configuration"):
        XennaExecutor(config)


@given(st.text(min_size=1))
def test_unknown_keys_are_rejected(key: str) -> None:
    known = XennaConfig.__dataclass_fields__
    if key not in known:
        with pytest.raises(ExecutorError):
            XennaConfig.of({key: 1})


@pytest.mark.parametrize(
    ("verbose", "log_to_driver", "shows"), [(False, None, False), (True, None, True), (True, False, False)]
)
def test_worker_output_is_off_by_default(verbose: bool, log_to_driver: bool | None, shows: bool) -> None:
    assert XennaConfig(verbose=verbose, log_to_driver=log_to_driver).shows_worker_output is shows


def test_importing_loads_neither_ray_nor_xenna() -> None:
    code = (
        "import sys, os; before = dict(os.environ); import curator_xenna; "
        "from curator_xenna import XennaConfig, XennaExecutor; "
        "XennaExecutor({'verbose': True}); XennaConfig(ray={'num_gpus': 2}); "
        "assert not {'ray', 'cosmos_xenna', 'loguru'} & set(sys.modules), sys.modules; assert before == os.environ"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_checking_options_does_not_change_the_environment() -> None:
    code = (
        "import sys, os; before = dict(os.environ); from curator_xenna import XennaExecutor; "
        "XennaExecutor({'xenna': {'max_queued_multiplier': 2.0}}); "
        "assert 'cosmos_xenna' in sys.modules; assert before == os.environ"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_neither_a_config_nor_an_error_shows_the_options_of_ray() -> None:
    options: dict[Any, Any] = {"runtime_env": {"env_vars": {"TOKEN": "secret"}}}
    assert "secret" not in repr(XennaConfig(ray=options))
    with pytest.raises(ExecutorError) as caught:
        XennaConfig(ray={**options, 4: "num_gpus"})
    assert caught.value.given == "['runtime_env', 4]"


def test_public_names() -> None:
    import curator_xenna

    assert sorted(curator_xenna.__all__) == [
        "CapacityPlan",
        "ClusterSpec",
        "GroupCapacity",
        "LimitKind",
        "XennaConfig",
        "XennaExecutor",
        "XennaStageAdapter",
        "__version__",
        "create_named_xenna_stage_adapter",
        "plan_capacity",
    ]
    assert all(getattr(curator_xenna, name) for name in curator_xenna.__all__)
    with pytest.raises(AttributeError):
        curator_xenna.XennaStage  # noqa: B018


def test_ignore_failures_skips_failures_unless_the_run_keeps_them() -> None:
    executor = XennaExecutor({"ignore_failures": True})
    assert executor.failure_policy("raise") == "skip"
    letters = DeadLetter("/dead")
    assert executor.failure_policy(letters) is letters
    assert XennaExecutor().failure_policy("raise") == "raise"
