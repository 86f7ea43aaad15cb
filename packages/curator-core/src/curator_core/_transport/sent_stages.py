# SPDX-License-Identifier: Apache-2.0
"""Stages that are sent to a worker together, and how long each of them took to load there."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SentStages"]


class SentStages:
    """Stages in one pickle, so that they share in the worker what they share here.

    Loading a stage imports its modules, which can take longer than anything else that the worker does.

    Args:
        stages: The stages.

    Attributes:
        stages: The stages.
        load_ns: For each stage, how long unpickling it took, with its imports; what stages share counts for the first
            one that has it. Zeros before the stages are sent.
    """

    def __init__(self, stages: Sequence[Any]) -> None:
        self.stages = stages
        self.load_ns = [0] * len(stages)

    def __reduce__(self) -> tuple[Any, ...]:
        parts: list[Any] = [_Moment()]
        for stage in self.stages:
            parts += [stage, _Moment()]
        return _received, (parts,)


class _Moment:
    """Unpickles as the moment at which the unpickler reaches it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return time.perf_counter_ns, ()


def _received(parts: list[Any]) -> SentStages:
    received = SentStages(parts[1::2])
    received.load_ns = [end - start for start, end in pairwise(parts[::2])]
    return received
