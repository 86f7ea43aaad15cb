# SPDX-License-Identifier: Apache-2.0
"""Ids of traces and spans that we choose ourselves, where the SDK was set up by `configure`.

A run's trace then has the run's id, so that logs, results and traces can be joined; a second span without a parent can
be part of it; and `recover` can write the span that a killed driver had begun. Other SDKs choose as they like: nothing
here is needed for a trace to be whole.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ChosenIds", "chosen_ids", "random_span_id"]

_trace_id: ContextVar[int] = ContextVar("curator_otel_trace_id", default=0)
_span_id: ContextVar[int] = ContextVar("curator_otel_span_id", default=0)


def random_span_id() -> int:
    """64 bits of the operating system's randomness, not all of them 0."""
    return int.from_bytes(os.urandom(8), "big") or 1


@contextmanager
def chosen_ids(trace_id: int = 0, span_id: int = 0) -> Iterator[None]:
    """The span begun in here gets these ids, if the generator is a `ChosenIds`; 0 leaves the choice to it."""
    trace_token, span_token = _trace_id.set(trace_id), _span_id.set(span_id)
    try:
        yield
    finally:
        _trace_id.reset(trace_token)
        _span_id.reset(span_token)


class ChosenIds:
    """An `IdGenerator` of the SDK, without importing it: ids that were chosen, or the operating system's randomness.

    The SDK draws from `random`: a span would shift a user's seeded sequence, and equal seeds would give equal traces.
    """

    def generate_span_id(self) -> int:
        """64 bits, not all of them 0."""
        return _take(_span_id) or random_span_id()

    def generate_trace_id(self) -> int:
        """128 bits, not all of them 0."""
        return _take(_trace_id) or int.from_bytes(os.urandom(16), "big") or 1

    def is_trace_id_random(self) -> bool:
        """Run ids are random, too."""
        return True


def _take(chosen: ContextVar[int]) -> int:
    """What was chosen, once: whatever else an SDK's processors may begin meanwhile gets ids of its own."""
    value = chosen.get()
    if value:
        chosen.set(0)
    return value
