# SPDX-License-Identifier: Apache-2.0
"""Checks that stages can be sent to another process, before one is started."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from curator_core._transport.pickling import check_copies, check_pickles, check_travels, find_unpicklable
from curator_core.errors import StageDefinitionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from curator_core._plan.compiled import CompiledStage

__all__ = ["check_copied", "check_sent"]

_IN_SETUP = "create it in setup(), which runs on the worker"
_GLOBAL = re.compile(r"(?P<user>.*)'s global (?P<name>\w+)")


def check_copied(stages: Iterable[CompiledStage]) -> None:
    """Check that stages can be copied, as every run does; the code of a stage, with its globals, is not copied.

    Raises:
        StageDefinitionError: A stage contains a value that cannot be copied.
    """
    for compiled in stages:
        try:
            check_copies(compiled.stage)
        except Exception as exc:
            raise _cannot_be_sent(compiled, exc, check_copies) from exc


def check_sent(stages: Iterable[CompiledStage]) -> None:
    """Check that stages can be sent to another process unchanged.

    Raises:
        StageDefinitionError: A stage does not pickle, or does not unpickle.
    """
    for compiled in stages:
        try:
            check_pickles(compiled.stage)
        except Exception as exc:
            raise _cannot_be_sent(compiled, exc, check_pickles) from exc
        try:
            check_travels(compiled.stage)
        except Exception as exc:
            said = f"it pickles but does not unpickle: {type(exc).__name__}: {exc}"
            raise _cannot_be_sent(compiled, said, check_travels) from exc


def _cannot_be_sent(compiled: CompiledStage, why: Any, check: Callable[[Any], None]) -> StageDefinitionError:
    path, culprit = find_unpicklable(compiled.stage, "stage", check)
    what, hint = "the stage cannot be sent to a worker", _IN_SETUP
    used = _GLOBAL.match(path)
    if used is not None:
        what = f"{what}: {used['user']} uses the global '{used['name']}'"
        hint = f"{hint}; or create it in a module that workers can import, and import it; or run in this process"
    return StageDefinitionError(
        f"{what}: {why}",
        stage=compiled.name,
        field=path,
        given=culprit,
        expected="configuration that pickles: strings, numbers, paths, functions",
        hint=hint,
    )
