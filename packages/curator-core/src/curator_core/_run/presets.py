# SPDX-License-Identifier: Apache-2.0
"""Settings for runs that are started without them, because another framework starts the run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from curator_core._dead_letter import DeadLetter
from curator_core._run.installed import instance
from curator_core.errors import ExecutorError, unknown_name

__all__ = ["PRESETS", "checked_presets", "presets_of_environment"]

PRESETS: dict[str, Any] = {
    "name": "pipeline",
    "stages": {},
    "observers": (),
    "on_error": "raise",
    "max_failures": None,
    "checkpoint": None,
    "collect": True,
    "shard": None,
    "shutdown_grace_s": 10.0,
}
"""The settings of a run with their defaults: except ``name`` and ``stages``, arguments of `BaseExecutor.execute`."""


def checked_presets(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings for `BaseExecutor.with_`, with installed observers in place of their names.

    Raises:
        ExecutorError: A setting is unknown or of the wrong type, or no observer of that name is installed.
    """
    for setting in settings:
        if setting not in PRESETS:
            raise ExecutorError("with_() got an unknown setting", **unknown_name("setting", setting, PRESETS))
    presets = dict(settings)
    if "observers" in presets:
        observers = presets["observers"]
        if isinstance(observers, str) or not isinstance(observers, Iterable):
            raise ExecutorError(
                "observers is not a list of observers",
                field="observers",
                given=observers,
                expected="a list of observers, or of names of installed ones",
                hint=f"pass observers=[{observers!r}]",
            )
        presets["observers"] = tuple(instance("observer", observer) for observer in observers)
    if "stages" in presets:
        stages = presets["stages"]
        if not (_is_by_name(stages) and all(map(_is_by_name, stages.values()))):
            raise ExecutorError(
                "stages is not a dict of settings by stage",
                field="stages",
                given=stages,
                expected="a dict from names of stages to dicts of settings",
                hint='for example, pass stages={"name": {"timeout_s": 60.0}}',
            )
        presets["stages"] = {name: dict(of_stage) for name, of_stage in stages.items()}
    return presets


def _is_by_name(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)


def presets_of_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings that environment variables give to the runs of other frameworks' pipelines.

    Args:
        environment: The variables. ``CURATOR_CHECKPOINT`` is the path of a checkpoint; ``CURATOR_ON_ERROR`` is
            ``raise``, ``skip``, or a directory for dead letters, with a slash in it; ``CURATOR_OBSERVERS`` has names of
            installed observers, separated by commas.

    Raises:
        ExecutorError: A value is invalid, or no observer of that name is installed.
    """
    presets: dict[str, Any] = {}
    if path := environment.get("CURATOR_CHECKPOINT"):
        presets["checkpoint"] = path
    if policy := environment.get("CURATOR_ON_ERROR"):
        if policy not in ("raise", "skip") and "/" not in policy:
            raise ExecutorError(
                "unknown failure policy",
                field="CURATOR_ON_ERROR",
                given=policy,
                expected="raise, skip, or a directory with a slash in its path",
                hint=f"for a directory of that name, set CURATOR_ON_ERROR=./{policy}",
            )
        presets["on_error"] = policy if policy in ("raise", "skip") else DeadLetter(policy)
    if names := environment.get("CURATOR_OBSERVERS"):
        presets["observers"] = [name.strip() for name in names.split(",") if name.strip()]
    return checked_presets(presets)
