# SPDX-License-Identifier: Apache-2.0
"""Fingerprints of stages, which a checkpoint stores to detect that the pipeline has changed.

A fingerprint contains digests of settings and never their values, which may be secrets. It does not consider code: the
class of a stage, and functions, count by their names, so changes of their code are not detected.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from curator_core._checkpoint.content import qualified_name, value_digest
from curator_core._foreign import WrappedStage
from curator_core._settings import SETTINGS
from curator_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from curator_core._plan.compiled import CompiledStage

__all__ = ["difference", "fingerprint", "is_fingerprint"]

logger = logging.getLogger(__name__)

# Settings that affect only where, how fast, and how often a stage runs. Names are compared separately.
_NOT_COMPARED = {"_metrics"} | {setting.name for setting in SETTINGS.values() if not setting.changes_outputs}
_UNKNOWN = ""  # instead of a digest that cannot be computed


def fingerprint(stages: Sequence[CompiledStage]) -> list[dict[str, Any]]:
    """Return the fingerprint of stages as JSON values.

    Returns:
        For each stage, a dict of ``name``, ``class`` (module and name), and ``settings``: by name, a digest of each
        attribute that affects the outputs. If the digest of an attribute cannot be computed, it is empty, with a
        warning.
    """
    return [
        {
            "name": compiled.name,
            "class": qualified_name(type(compiled.definition)),
            "settings": dict(_settings(compiled)),
        }
        for compiled in stages
    ]


def is_fingerprint(value: Any) -> bool:
    """Whether a JSON value has the form of a fingerprint."""
    return isinstance(value, list) and all(map(_is_stage, value))


def difference(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return descriptions of the differences between two fingerprints; empty if they are equal."""
    before, after = ({stage["name"]: stage for stage in stages} for stages in (old, new))
    # A stage with a new name replaces the old stage at the same index, if the old name is gone.
    placed = {
        now["name"]: (place, was["name"])
        for place, (was, now) in enumerate(zip(old, new, strict=False))
        if was["name"] not in after and now["name"] not in before
    }
    replaced = {was for _, was in placed.values()}
    found = []
    for name, stage in after.items():
        if name in placed:
            place, was = placed[name]
            found.append(f"stage {place} is now '{name}' instead of '{was}'")
        elif name in before:
            found += _changes(before[name], stage)
        else:
            found.append(f"stage '{name}' was added")
    found += [f"stage '{name}' was removed" for name in before if name not in after and name not in replaced]
    return found + _moves(before, after)


def _changes(was: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    stage = f"stage '{now['name']}'"
    if was["class"] != now["class"]:
        yield f"{stage} is now of class {now['class']} instead of {was['class']}"
    before, after = was["settings"], now["settings"]
    for name in sorted(before.keys() | after.keys()):
        shown = name.lstrip("_") or name
        if name not in before:
            yield f"{stage}: {shown} was added"
        elif name not in after:
            yield f"{stage}: {shown} was removed"
        elif before[name] != after[name]:
            yield f"{stage}: {shown} has changed"


def _moves(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    was = [name for name in before if name in after]
    now = [name for name in after if name in before]
    if was == now:
        return []
    return [f"the order of stages is now {', '.join(now)} instead of {', '.join(was)}"]


def _settings(compiled: CompiledStage) -> Iterator[tuple[str, str]]:
    not_compared = _NOT_COMPARED
    if isinstance(compiled.stage, WrappedStage):
        not_compared |= compiled.stage.not_compared
    for name, value in sorted(_configuration(compiled.definition).items()):
        is_pythons_own = name.startswith("__") and name.endswith("__")  # such as __doc__
        if name not in not_compared and not is_pythons_own:
            yield name, _digest(value, name, compiled.name)


def _configuration(stage: Any) -> dict[str, Any]:
    """Return the attributes that are pickled with a stage."""
    state = stage.__getstate__()
    parts = state if isinstance(state, tuple) else (state,)  # a pair if the class has slots
    if not all(part is None or isinstance(part, dict) for part in parts):
        return {"state": state}  # the class defines its own form
    return {name: value for part in parts if part is not None for name, value in part.items()}


def _digest(value: Any, name: str, stage: str) -> str:
    try:
        return value_digest(value, name)
    except DataError as error:
        logger.warning(
            "stage '%s': the checkpoint will not notice changes of %s: %s", stage, error.field, error.message
        )
        return _UNKNOWN


def _is_stage(value: Any) -> bool:
    if not isinstance(value, dict) or value.keys() != {"name", "class", "settings"}:
        return False
    settings = value["settings"]
    names = isinstance(value["name"], str) and isinstance(value["class"], str)
    return names and isinstance(settings, dict) and all(isinstance(digest, str) for digest in settings.values())
