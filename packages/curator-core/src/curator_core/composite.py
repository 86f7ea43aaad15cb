# SPDX-License-Identifier: Apache-2.0
"""A stage that stands for several."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from curator_core.errors import StageDefinitionError
from curator_core.stage import ProcessingStage, X, Y

__all__ = ["CompositeStage", "decompose"]

_MAX_DEPTH = 32  # deeper than anyone nests by hand: a composite that contains itself


class CompositeStage(ProcessingStage[X, Y]):
    """A stage that stands for several, in order. It is expanded when a pipeline is compiled and never runs.

    Settings given to it with ``with_`` are not handed down: give them to its parts.
    """

    @abstractmethod
    def decompose(self) -> list[ProcessingStage[Any, Any]]:
        """The stages it stands for; at least one. They may be composites themselves."""
        raise StageDefinitionError(
            "the composite does not say what it stands for",
            stage=self.name,
            field="decompose()",
            given=f"class {type(self).__name__} without it",
            expected="decompose(self) to return a list of stages",
            hint=f"write it in class {type(self).__name__}",
        )


def decompose(stage: Any, depth: int = 0) -> list[Any]:
    """The stages that a stage stands for: itself, unless it is a composite.

    Raises:
        StageDefinitionError: A composite that gives no stages, no list, or itself again.
    """
    if not isinstance(stage, CompositeStage):
        return [stage]
    if depth == _MAX_DEPTH:
        raise StageDefinitionError(
            f"the composite is nested more than {_MAX_DEPTH} deep",
            stage=stage.name,
            field="decompose()",
            expected="stages that end at plain ones",
            hint="does it return itself?",
        )
    parts: Any = stage.decompose()
    if not isinstance(parts, list | tuple) or not parts:
        raise StageDefinitionError(
            "the composite does not decompose into stages",
            stage=stage.name,
            field="decompose()",
            given=parts,
            expected="a list of at least one stage",
            hint="return the stages that it stands for",
        )
    return [leaf for part in parts for leaf in decompose(part, depth + 1)]
