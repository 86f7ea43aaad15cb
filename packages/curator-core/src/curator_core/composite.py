# SPDX-License-Identifier: Apache-2.0
"""A stage that expands into other stages."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from curator_core.errors import StageDefinitionError
from curator_core.stage import ProcessingStage, X, Y

__all__ = ["CompositeStage", "decompose"]

_MAX_DEPTH = 32  # deeper than anyone nests by hand: a composite that contains itself


class CompositeStage(ProcessingStage[X, Y]):
    """A stage that expands into other stages, in order, when a pipeline is compiled. It never runs itself.

    Settings passed to its ``with_`` do not apply to the stages that it expands into: pass them to those stages.
    """

    @abstractmethod
    def decompose(self) -> list[ProcessingStage[Any, Any]]:
        """Return the stages that it expands into, at least one. They may be composites themselves."""
        raise StageDefinitionError(
            "the composite does not implement decompose()",
            stage=self.name,
            field="decompose()",
            given=f"class {type(self).__name__} without decompose()",
            expected="a method decompose(self) that returns a list of stages",
            hint=f"implement decompose() in class {type(self).__name__}",
        )


def decompose(stage: Any, depth: int = 0) -> list[Any]:
    """Return the stages that a stage expands into: only itself, unless it is a composite.

    Raises:
        StageDefinitionError: A composite returned no stages, something other than a list, or itself.
    """
    if not isinstance(stage, CompositeStage):
        return [stage]
    if depth == _MAX_DEPTH:
        raise StageDefinitionError(
            f"the composite is nested more than {_MAX_DEPTH} levels deep",
            stage=stage.name,
            field="decompose()",
            expected="composites that decompose into plain stages",
            hint="check whether a decompose() returns its own composite",
        )
    parts: Any = stage.decompose()
    if not isinstance(parts, list | tuple) or not parts:
        raise StageDefinitionError(
            "the composite does not decompose into stages",
            stage=stage.name,
            field="decompose()",
            given=parts,
            expected="a list of at least one stage",
            hint="return the stages to run in place of the composite",
        )
    return [leaf for part in parts for leaf in decompose(part, depth + 1)]
