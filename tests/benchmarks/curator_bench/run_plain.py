# SPDX-License-Identifier: Apache-2.0
"""No framework: a loop, or the same loop in one process per core. The physical limit."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

from curator_bench.harness import Work, cores

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable

OPTIONS = (("--processes", 0),)


class Loop:
    """All steps of a workload on one payload.

    Args:
        work: The workload.
    """

    def __init__(self, work: Work) -> None:
        self._calls = [step.call for step in work.steps]

    def __call__(self, payload: Any) -> Any:
        """Return the output, or None."""
        for call in self._calls:
            payload = call(payload)
            if payload is None:
                return None
        return payload


def prepare(work: Work, given: Namespace) -> Callable[[], list[Any]]:
    """See `harness.main`."""
    loop = Loop(work)

    def payloads() -> list[Any]:
        return work.source.call(None) if work.source else work.inputs

    def in_one_process() -> list[Any]:
        return [made for payload in payloads() if (made := loop(payload)) is not None]

    def in_processes() -> list[Any]:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(cores(), mp_context=spawn) as pool:
            return [made for made in pool.map(loop, payloads()) if made is not None]

    return in_processes if given.processes else in_one_process
