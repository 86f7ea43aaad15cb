# SPDX-License-Identifier: Apache-2.0
"""Stages that are sent to a worker together, and how long each of them took to load there."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from curator_core._adapter.adapter import BaseStageAdapter
    from curator_core._plan.compiled import CompiledStage

Adapter = TypeVar("Adapter", bound="BaseStageAdapter")

__all__ = ["SentStages"]


class SentStages:
    """Stages in one pickle, so that they share in the worker what they share here.

    Loading a stage imports its modules, which can take longer than anything else that the worker does.

    Args:
        stages: The stages.

    """

    def __init__(self, stages: Sequence[CompiledStage]) -> None:
        self._stages = stages
        self._load_ns = [0] * len(stages)

    def adapters(self, adapter_class: type[Adapter]) -> list[Adapter]:
        """Return an adapter for each stage, whose start-up begins with the time that unpickling the stage took.

        What stages share counts for the first one that has it.

        Args:
            adapter_class: The class of the adapters.
        """
        adapters = [adapter_class(compiled.stage, compiled) for compiled in self._stages]
        for adapter, load_ns in zip(adapters, self._load_ns, strict=True):
            adapter.state.startup_ns = load_ns
        return adapters

    def __reduce__(self) -> tuple[Any, ...]:
        parts: list[Any] = [_Moment()]
        for compiled in self._stages:
            parts += [compiled, _Moment()]
        return _received, (parts,)


class _Moment:
    """Unpickles as the moment at which the unpickler reaches it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return time.perf_counter_ns, ()


def _received(parts: list[Any]) -> SentStages:
    received = SentStages(parts[1::2])
    received._load_ns = [end - start for start, end in pairwise(parts[::2])]
    return received
