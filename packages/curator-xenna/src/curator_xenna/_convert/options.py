# SPDX-License-Identifier: Apache-2.0
"""Options that are passed on to Xenna and Ray, checked against the versions that are installed.

Xenna itself checks almost none of its options: an unknown scheduler is its default scheduler, and a text in place of a
number ends the run after its first batch. So names, types, and signs are checked here, before anything starts.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from enum import Enum
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple, get_args, get_type_hints

import attrs
import ray
from cosmos_xenna.pipelines import v1 as pipelines_v1

from curator_core import ExecutorError
from curator_core.backends import is_amount, is_whole, unknown_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Set

    from curator_xenna.config import XennaConfig

__all__ = ["XennaOptions", "check_passed_on", "mismatch", "xenna_options"]

_SETTING = "use the setting {} instead"
_SERVING = "drop this option: runs do not use Xenna's serving mode"
_OURS_OF_XENNA = {
    "autoscale_interval_s": _SETTING,
    "cpu_allocation_percentage": _SETTING,
    "execution_mode": _SETTING,
    # The adapter handles failures: Xenna would silently drop a batch, or pass mutated input to a retry.
    "failures_return_nones": 'use on_error="skip", which counts failed tasks',
    "ignore_failures": _SETTING,
    "logging_interval_s": _SETTING.format("logging_interval"),
    "mode_specific": "pass the fields of StreamingSpecificSpec themselves",
    "num_run_attempts_python": "use max_attempts of a stage, whose retries see the original input",
    "reset_workers_on_failure": "drop this option: failures never reach Xenna",
    "return_last_stage_outputs": "drop this option: the result of a run has the outputs",
    "serving_drain_on_close": _SERVING,
    "serving_drain_timeout_s": _SERVING,
    "slots_per_actor": _SETTING,
}
_OURS_OF_RAY = {
    "address": _SETTING,
    "include_dashboard": _SETTING.format("dashboard"),
    "local_mode": "drop this option, and use LocalExecutor() to run in this process",
    "log_to_driver": _SETTING,
    "logging_level": _SETTING.format("verbose"),
    "num_cpus": _SETTING,
}
_ON_312 = "or later, on Python 3.12 or later"
_SINCE = {  # versions of cosmos-xenna
    "enable_backlog_aware_scaledown": "0.3.0 or later",
    "saturation_aware": f"0.5.0 {_ON_312}",
    "scale_down_grace_after_ready_s": f"0.4.2 {_ON_312}",
    "scheduler": f"0.5.0 {_ON_312}",
}
# With 0, Xenna sends nothing to the workers, receives nothing from them, does not set them up, or starts none.
_ABOVE_ZERO = (
    *("max_queued_lower_bound", "max_tasks_to_poll_per_chunk", "num_setup_attempts_python"),
    *("num_workers_per_node", "slots_per_actor"),
)
_HIDDEN = "object_spilling_directory"  # an option of ray.init that its signature does not show


class XennaOptions(NamedTuple):
    """The fields of Xenna's two classes of settings."""

    pipeline: dict[str, Any]
    streaming: dict[str, Any]


def check_passed_on(config: XennaConfig) -> None:
    """Check the options that a config passes on to Xenna and Ray.

    Raises:
        ExecutorError: The installed version does not have an option, its value is invalid, or a setting of
            `XennaConfig` is meant for it.
    """
    _check_scheduler(xenna_options(config.xenna or {}).streaming, config)
    # Ray itself checks its private options, which its signature does not show either.
    public = {name: value for name, value in (config.ray or {}).items() if not name.startswith("_")}
    parameters = inspect.signature(ray.init).parameters
    _check_names(public, {*parameters, _HIDDEN} - {"kwargs"}, _OURS_OF_RAY, "ray")
    _values(public, {name: parameter.annotation for name, parameter in parameters.items()}, "ray")


def xenna_options(given: Mapping[str, Any]) -> XennaOptions:
    """Return options of Xenna as its classes take them.

    Args:
        given: Fields of `PipelineConfig` and `StreamingSpecificSpec`. A member of an enumeration can be its name, and
            an object of settings can be a mapping.

    Raises:
        ExecutorError: See `check_passed_on`.
    """
    pipeline = get_type_hints(pipelines_v1.PipelineConfig)
    streaming = get_type_hints(pipelines_v1.StreamingSpecificSpec)
    _check_names(given, {*pipeline, *streaming}, _OURS_OF_XENNA, "xenna")
    return XennaOptions(*(_values(given, types, "xenna") for types in (pipeline, streaming)))


def _check_scheduler(streaming: Mapping[str, Any], config: XennaConfig) -> None:
    """Raise an `ExecutorError` for settings that the chosen scheduler would silently ignore."""
    is_saturation_aware = getattr(streaming.get("scheduler"), "name", "") == "SATURATION_AWARE"
    if is_saturation_aware and config.autoscale_interval_s is not None:
        raise ExecutorError(
            "the saturation-aware scheduler has its own interval",
            field="autoscale_interval_s",
            given=config.autoscale_interval_s,
            expected="None",
            hint=f'set xenna["saturation_aware"] to {{"interval_s": {config.autoscale_interval_s}}} instead',
        )
    if streaming.get("saturation_aware") is not None and not is_saturation_aware:
        raise ExecutorError(
            "settings of a scheduler that is not used",
            field="xenna.saturation_aware",
            given=streaming["saturation_aware"],
            expected="None, or the scheduler 'saturation_aware'",
            hint='add "scheduler": "saturation_aware" to xenna',
        )


def _check_names(given: Iterable[str], known: Set[str], ours: Mapping[str, str], field: str) -> None:
    free = sorted(known - ours.keys())
    for name in given:
        if name in ours:
            raise ExecutorError(
                f"{field} must not contain {name}, which XennaExecutor sets itself",
                field=f"{field}.{name}",
                expected=f"one of the options: {', '.join(free)}",
                hint=ours[name].format(name),
            )
        if name not in known:
            raise _unknown(name, free, field)


def _unknown(name: str, known: Iterable[str], field: str) -> ExecutorError:
    package = "ray" if field == "ray" else "cosmos-xenna"
    details = unknown_name("option", name, known, f"{field}.{name}")
    if field == "xenna" and name in _SINCE:
        details["hint"] = f"install {package} {_SINCE[name]}"
    return ExecutorError(f"{package} {version(package)} does not have the option {name!r}", **details)


def _values(given: Mapping[str, Any], types: Mapping[str, Any], field: str) -> dict[str, Any]:
    """Return the options that are fields of a class, as the class declares them."""
    return {name: _converted(given[name], types[name], f"{field}.{name}") for name in given if name in types}


def _converted(value: Any, declared: Any, field: str) -> Any:
    """Return a value as a type that is declared; values of types that no option of Xenna has stay unchecked."""
    kind, *_ = get_args(declared) or (declared,)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _member(value, kind, field)
    if isinstance(kind, type) and attrs.has(kind) and not isinstance(value, kind | None):
        return _object(value, kind, field)
    if expected := mismatch(value, declared, field.rpartition(".")[2]):
        raise _invalid(value, field, expected)
    return value


def mismatch(value: Any, declared: Any, name: str) -> str:
    """Return what is expected instead of a value that does not suit an option; empty if it does.

    Args:
        value: The value.
        declared: The type of the option, as its class declares it.
        name: The name of the option.
    """
    kind, *others = get_args(declared) or (declared,)
    if not isinstance(kind, type) or (value is None and type(None) in others):
        return ""
    if kind in (int, float):
        return _mismatch_of_number(value, kind, is_above_zero=name in _ABOVE_ZERO)
    if isinstance(value, kind):
        return ""
    return "True or False" if kind is bool else kind.__name__


def _member(value: Any, kind: type[Enum], field: str) -> Enum:
    members = {member.name.lower(): member for member in kind}
    name = value.name if isinstance(value, kind) else value
    if not isinstance(name, str) or name.lower() not in members:
        raise _invalid(value, field, f"one of {', '.join(map(repr, members))}")
    return members[name.lower()]


def _object(value: Any, kind: type[Any], field: str) -> Any:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise _invalid(value, field, f"a dict of settings, or a {kind.__name__}")
    types = get_type_hints(kind)
    _check_names(value, types.keys(), {}, field)
    settings = _values(value, types, field)
    try:
        return kind(**settings)
    except ValueError as exc:
        raise _invalid(value, field, str(exc.args[0])) from exc


def _mismatch_of_number(value: Any, kind: type[int | float], *, is_above_zero: bool) -> str:
    valid = is_whole(value, 0) if kind is int else is_amount(value)
    if valid and not (is_above_zero and value == 0):
        return ""
    number = "a whole number" if kind is int else "a number"
    return f"{number} above 0" if is_above_zero else f"{number}, 0 or more"


def _invalid(value: Any, field: str, expected: str) -> ExecutorError:
    return ExecutorError(
        f"invalid option of {'Ray' if field.startswith('ray.') else 'Xenna'}",
        field=field,
        given=value,
        expected=expected,
        hint="correct the value, or omit it to use the default",
    )
