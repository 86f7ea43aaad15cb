# SPDX-License-Identifier: Apache-2.0
"""Options that are passed on to Xenna and Ray: names and values are checked, and those that are accepted arrive."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import attrs
import loguru
import pytest
from cosmos_xenna.pipelines import v1 as pipelines_v1

from curator_core import ExecutorError, Pipeline, ProcessingStage, Task
from curator_xenna import XennaConfig, XennaExecutor
from curator_xenna._session.inputs import Inputs
from curator_xenna._session.specification import pipeline_spec

IS_0_5 = "scheduler" in attrs.fields_dict(pipelines_v1.StreamingSpecificSpec)
from_0_5 = pytest.mark.skipif(not IS_0_5, reason="needs cosmos-xenna 0.5.0 or later")
before_0_5 = pytest.mark.skipif(IS_0_5, reason="needs a cosmos-xenna before 0.5.0")


def refused(**config: Any) -> ExecutorError:
    with pytest.raises(ExecutorError) as caught:
        XennaExecutor(config)
    return caught.value


def passed_on(**options: Any) -> Any:
    """Return the configuration that Xenna gets for these options."""
    config = XennaExecutor({"xenna": options}).config
    return pipeline_spec((), (), Inputs(), config, streaming=True, cpu_share=1.0, autoscale_interval_s=5.0).config


# --- Xenna ----------------------------------------------------------------------------------------------


def test_options_of_both_classes_arrive() -> None:
    config = passed_on(
        max_queued_multiplier=2, max_queued_lower_bound=3, worker_max_lifetime_m=60, max_setup_failure_percentage=None
    )
    assert (config.mode_specific.max_queued_multiplier, config.mode_specific.max_queued_lower_bound) == (2, 3)
    assert (config.worker_max_lifetime_m, config.max_setup_failure_percentage) == (60, None)
    assert config.mode_specific.autoscale_interval_s == 5.0


def test_options_replace_defaults_of_the_executor() -> None:
    assert passed_on().enable_work_stealing
    assert not passed_on(enable_work_stealing=False).enable_work_stealing
    assert passed_on(monitoring_verbosity_level="debug").monitoring_verbosity_level == pipelines_v1.VerbosityLevel.DEBUG
    quiet = pipelines_v1.VerbosityLevel.NONE
    assert passed_on(executor_verbosity_level=quiet).mode_specific.executor_verbosity_level == quiet


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("ignore_failures", "the setting ignore_failures"),
        ("logging_interval_s", "the setting logging_interval"),
        ("slots_per_actor", "the setting slots_per_actor"),
        ("num_run_attempts_python", "max_attempts"),
        ("return_last_stage_outputs", "the result"),
        ("mode_specific", "the fields"),
    ],
)
def test_options_of_xenna_that_the_executor_sets_are_rejected(name: str, hint: str) -> None:
    error = refused(xenna={name: 1})
    assert error.field == f"xenna.{name}"
    assert hint in str(error.hint)


def test_an_unknown_option_names_the_version_and_the_nearest() -> None:
    error = refused(xenna={"max_queued_multiplyer": 2})
    assert f"cosmos-xenna {version('cosmos-xenna')}" in str(error)
    assert error.field == "xenna.max_queued_multiplyer"
    assert error.hint == "did you mean 'max_queued_multiplier'?"


@before_0_5
@pytest.mark.parametrize(
    ("name", "since"),
    [("scheduler", "0.5.0"), ("saturation_aware", "0.5.0"), ("scale_down_grace_after_ready_s", "0.4.2")],
)
def test_an_option_of_a_later_version_names_that_version(name: str, since: str) -> None:
    error = refused(xenna={name: "saturation_aware"})
    assert f"cosmos-xenna {version('cosmos-xenna')} does not have the option '{name}'" in str(error)
    assert error.hint == f"install cosmos-xenna {since} or later, on Python 3.12 or later"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("max_queued_multiplier", "2", "a number, 0 or more"),
        ("max_queued_multiplier", -1, "a number, 0 or more"),
        ("max_queued_multiplier", float("nan"), "a number, 0 or more"),
        ("max_queued_multiplier", None, "a number, 0 or more"),
        ("max_queued_lower_bound", 0, "a whole number above 0"),
        ("max_queued_lower_bound", 2.5, "a whole number above 0"),
        ("worker_max_lifetime_m", True, "a whole number, 0 or more"),
        ("enable_work_stealing", 1, "True or False"),
        ("autoscaler_verbosity_level", "loud", "one of 'none', 'info', 'debug'"),
        ("autoscaler_verbosity_level", 1, "one of 'none', 'info', 'debug'"),
    ],
)
def test_an_invalid_value_is_rejected(name: str, value: Any, expected: str) -> None:
    error = refused(xenna={name: value})
    assert (error.field, error.given, error.expected) == (f"xenna.{name}", repr(value), expected)


# --- the saturation-aware scheduler -----------------------------------------------------------------------


@from_0_5
def test_nested_settings_are_a_dict_or_an_object_of_xenna() -> None:
    options = {"scheduler": "saturation_aware", "saturation_aware": {"interval_s": 2.0}}
    config = passed_on(**options, enable_backlog_aware_scaledown=True, scale_down_grace_after_ready_s=0.0)
    specific = config.mode_specific
    assert (specific.scheduler.name, specific.saturation_aware.interval_s) == ("SATURATION_AWARE", 2.0)
    assert (specific.enable_backlog_aware_scaledown, specific.scale_down_grace_after_ready_s) == (True, 0.0)
    again = passed_on(scheduler=specific.scheduler, saturation_aware=specific.saturation_aware)
    assert again.mode_specific.saturation_aware == specific.saturation_aware


@from_0_5
@pytest.mark.parametrize(
    ("settings", "field", "says"),
    [
        ({"intervals": 2.0}, ".intervals", "did you mean 'interval_s'?"),
        ({"interval_s": "2"}, ".interval_s", "a number, 0 or more"),
        ({"interval_s": 0}, "", "'interval_s' must be > 0.0"),
        ({"speed_estimation_averaging_samples": 2}, "", "must be >= speed_estimation_min_data_points"),
        ({"scheduler": 2}, ".scheduler", "use a known option"),
        (2.0, "", "a dict of settings"),
        ({2: 2.0}, "", "a dict of settings"),
    ],
)
def test_an_invalid_nested_setting_is_rejected(settings: Any, field: str, says: str) -> None:
    error = refused(xenna={"scheduler": "saturation_aware", "saturation_aware": settings})
    assert error.field == f"xenna.saturation_aware{field}"
    assert says in f"{error.expected} {error.hint}"


@from_0_5
def test_settings_that_the_scheduler_ignores_are_rejected() -> None:
    ours = refused(autoscale_interval_s=20, xenna={"scheduler": "saturation_aware"})
    assert ours.field == "autoscale_interval_s"
    assert ours.hint == 'set xenna["saturation_aware"] to {"interval_s": 20} instead'
    theirs = refused(xenna={"saturation_aware": {"interval_s": 20}})
    assert theirs.field == "xenna.saturation_aware"
    assert '"scheduler": "saturation_aware"' in str(theirs.hint)


class Same(ProcessingStage[Task[int], Task[int]]):
    def process(self, task: Task[int]) -> Task[int]:
        return task


@from_0_5
def test_the_saturation_aware_scheduler_decides_in_a_run(
    executor: XennaExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    sink = loguru.logger.add(said.append, filter="cosmos_xenna.pipelines.private.scheduling_py")
    options = {"scheduler": "saturation_aware", "enable_backlog_aware_scaledown": True}
    monkeypatch.setattr(executor, "config", XennaConfig(verbose=True, xenna=options))
    try:
        result = Pipeline("p", [Same()]).run(executor, [Task(data=number) for number in range(50)])
    finally:
        loguru.logger.remove(sink)
    assert sorted(task.data for task in result) == list(range(50))
    assert any("saturation-aware decision" in line for line in said)


# --- Ray ------------------------------------------------------------------------------------------------


def test_options_of_ray_are_those_of_the_installed_version() -> None:
    XennaExecutor({"ray": {"num_gpus": 4, "object_store_memory": None, "resources": {"disk": 1}, "_node_name": "a"}})
    error = refused(ray={"num_gpu": 4})
    assert f"ray {version('ray')}" in str(error)
    assert (error.field, error.hint) == ("ray.num_gpu", "did you mean 'num_gpus'?")
    assert refused(ray={"scheduler": "spread"}).hint == "remove it, or use a known option"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("num_cpus", "the setting num_cpus"),
        ("include_dashboard", "the setting dashboard"),
        ("logging_level", "the setting verbose"),
        ("local_mode", "LocalExecutor()"),
    ],
)
def test_options_of_ray_that_the_executor_sets_are_rejected(name: str, hint: str) -> None:
    error = refused(ray={name: 1})
    assert error.field == f"ray.{name}"
    assert hint in str(error.hint)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("num_gpus", -1, "a whole number, 0 or more"),
        ("object_store_memory", "1 GB", "a whole number, 0 or more"),
        ("configure_logging", "no", "True or False"),
    ],
)
def test_an_invalid_value_of_ray(name: str, value: Any, expected: str) -> None:
    error = refused(ray={name: value})
    assert (error.field, error.given, error.expected) == (f"ray.{name}", repr(value), expected)
