# SPDX-License-Identifier: Apache-2.0
"""Chosen ids of traces and spans, if `configure` set up the SDK.

A run's trace then has the run's id, so that logs, results, and traces can be joined. Also, the trace can have a second
span without a parent, and `recover` can write the span that a killed driver had begun. SDKs that were set up otherwise
generate their own ids, and their traces are complete too.
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
    """Return 64 random bits from the operating system, never 0."""
    return int.from_bytes(os.urandom(8), "big") or 1


@contextmanager
def chosen_ids(trace_id: int = 0, span_id: int = 0) -> Iterator[None]:
    """Give these ids to the span that begins within the context, if the generator is a `ChosenIds`; 0 means random."""
    trace_token, span_token = _trace_id.set(trace_id), _span_id.set(span_id)
    try:
        yield
    finally:
        _trace_id.reset(trace_token)
        _span_id.reset(span_token)


class ChosenIds:
    """An `IdGenerator` for the SDK that does not import it: chosen ids, or random ones from the operating system.

    The SDK's generator uses `random`: spans would shift a user's seeded sequence, and equal seeds would give equal
    trace ids.
    """

    def generate_span_id(self) -> int:
        """Return 64 bits, never 0."""
        return _take(_span_id) or random_span_id()

    def generate_trace_id(self) -> int:
        """Return 128 bits, never 0."""
        return _take(_trace_id) or int.from_bytes(os.urandom(16), "big") or 1

    def is_trace_id_random(self) -> bool:
        """Whether trace ids are random: always, because run ids are random too."""
        return True


def _take(chosen: ContextVar[int]) -> int:
    """Return a chosen id, once: spans that an SDK's processors begin in the meantime get other ids."""
    value = chosen.get()
    if value:
        chosen.set(0)
    return value
