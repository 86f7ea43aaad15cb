# SPDX-License-Identifier: Apache-2.0
"""What a report carries for the driver to keep: tasks that failed for good, and the files that were written."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from curator_core.batches import FileGroupTask
from curator_core.failure import error_info
from curator_core.report import Fallen, Manifest, Outcomes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from curator_core.report import OutcomeKind
    from curator_core.snapshot import Snapshot

__all__ = ["fallen_of", "manifests_of"]


def fallen_of(
    errors: Mapping[int, BaseException], ids: Sequence[str], together: str, snapshot: Snapshot | None, max_bytes: int
) -> tuple[Fallen, ...]:
    """The tasks of a batch that failed for good, as they first came.

    Args:
        errors: Why, by their positions.
        ids: All inputs.
        together: What the stage was at, where they failed as one; else empty.
        snapshot: The inputs of the batch; None where they do not pickle.
        max_bytes: A task that takes more is told without.
    """
    infos = {number: error_info(error, together or f"on task '{ids[number]}'") for number, error in errors.items()}
    if snapshot is None:
        return tuple(Fallen(number, info, None) for number, info in infos.items())
    from curator_core.deadletter.payload import pack_task  # noqa: PLC0415 - failures that are kept are rare

    tasks = snapshot.restore()
    return tuple(Fallen(number, info, pack_task(tasks[number], max_bytes)) for number, info in infos.items())


def manifests_of(
    ids: Sequence[str], others: Mapping[int, tuple[OutcomeKind, int]], outputs: Sequence[Any]
) -> tuple[Manifest, ...]:
    """The files that the outputs of a batch name.

    Args:
        ids: The inputs.
        others: What became of those that did not give one task; see `Outcomes`.
        outputs: What came out, in order.
    """
    if not any(map(_is_whole, outputs)):
        return ()
    outcomes = Outcomes(tuple(ids), others)
    made_of = (outcome.task_id for outcome in outcomes for _ in range(outcome.count))
    return tuple(
        Manifest(input_id, task.task_id, [os.fspath(path) for path in task.data], task.dataset_name)
        for input_id, task in zip(made_of, outputs, strict=True)
        if _is_whole(task)
    )


def _is_whole(task: Any) -> bool:
    """Whether a task names files that were written; a range is of a file that is to be read."""
    return isinstance(task, FileGroupTask) and task.byte_range is None
