# SPDX-License-Identifier: Apache-2.0
"""What the attempts at batches share: the run, the worker, and its clock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Announce", "OnError", "RunContext", "WorkerClock"]


OnError: TypeAlias = Literal["raise", "skip"]


class Announce(Protocol):
    """See `Run.announce`."""

    def __call__(self, task_id: str, *, may_drop: bool) -> Callable[[], None]: ...


class RunContext(NamedTuple):
    """What an adapter needs to know about its run.

    Attributes:
        run_id: The id of the run.
        on_error: ``"raise"`` ends the run at the first failure; ``"skip"`` counts failures and continues.
        letter_bytes: Size of the largest failed task to include in a report, in bytes; None to include none.
        written_files_of: Index of the stage whose output files are reported; -1 for none.
        collect: Whether the pipeline's outputs go to the driver.
        isolates: Whether stages run in separate processes unless they opt out, because one killed a worker.
        epoch: How often the engine was restarted within the run.
        group: Index of the group of stages that the adapter belongs to.
        written: Tasks whose outputs are already in files of the last stage, and the output paths of each.
    """

    run_id: str = ""
    on_error: OnError = "raise"
    letter_bytes: int | None = None
    written_files_of: int = -1
    collect: bool = True
    isolates: bool = False
    epoch: int = 0
    group: int = 0
    written: Mapping[str, list[str]] = {}  # shared and never written to


class WorkerClock:
    """Keeps the time since which a worker is idle.

    Attributes:
        idle_since: Time since which the worker waits, in nanoseconds of ``time.perf_counter_ns``; 0 before setup.
    """

    __slots__ = ("idle_since",)

    def __init__(self) -> None:
        self.idle_since = 0
