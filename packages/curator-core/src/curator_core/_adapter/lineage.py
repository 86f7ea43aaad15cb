# SPDX-License-Identifier: Apache-2.0
"""Where the inputs of a batch come from: their histories and the batches that made them, and the id of the batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from curator_core.tasks import digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from curator_core._performance import PerfRow
    from curator_core.tasks import TaskState

__all__ = ["batch_id_of", "histories_of", "is_source_batch", "produced", "with_row"]


def batch_id_of(stage_index: int, ids: Sequence[str]) -> str:
    """Return the id of a batch: the same for the same inputs in the same stage.

    Args:
        stage_index: The stage's position in the plan.
        ids: The ids of the inputs, in order.
    """
    if len(ids) == 1:
        return f"{stage_index}/{ids[0]}"
    joined = "\0".join(ids)
    return f"{stage_index}/{len(ids)}:{digest(joined, 8)}"


def is_source_batch(batch_id: str) -> bool:
    """Whether a batch is the one batch of a source: its one input has no id."""
    return batch_id.endswith("/")


def histories_of(states: Iterable[TaskState]) -> dict[int, tuple[PerfRow, ...]]:
    """Return the histories of tasks by identity: outputs of one batch share a history, so there are few."""
    found: dict[int, tuple[PerfRow, ...]] = {}
    before = None
    for _, history, _ in states:
        if history is not before:  # neighbors mostly share one: this takes a quarter of the time of a lookup
            before = found[id(history)] = history
    return found


def with_row(histories: dict[int, tuple[PerfRow, ...]], row: PerfRow) -> dict[int, tuple[PerfRow, ...]]:
    """Return the histories with a batch added to each, by the identity of the history before."""
    return {key: (*history, row) for key, history in histories.items()}


def produced(histories: Iterable[tuple[PerfRow, ...]]) -> tuple[int, str, tuple[str, ...]]:
    """Return when the last of the inputs was ready, on which node's clock, and the batches that made them."""
    rows = {history[-1][-1]: history[-1] for history in histories if history}
    ready, node = 0, ""
    for place, duration_ns, _, _, _, _, start_unix_ns, _, _ in rows.values():
        if start_unix_ns + duration_ns > ready:
            ready, node = start_unix_ns + duration_ns, place[2]
    return ready, node, tuple(rows)
