# SPDX-License-Identifier: Apache-2.0
"""Parts of a report that the driver keeps: tasks that failed for good, and files that were written."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from curator_core._foreign import BoxedTask
from curator_core._reports.batch import FailedInput, WrittenFiles, input_outcomes
from curator_core._reports.failures import error_info
from curator_core.tasks import FileGroupTask

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from curator_core._adapter.input_copies import InputCopies
    from curator_core._reports.batch import OutcomeKind

__all__ = ["failed_inputs", "written_files_of"]


def failed_inputs(
    errors: Mapping[int, BaseException], ids: Sequence[str], together: str, copies: InputCopies | None, max_bytes: int
) -> tuple[FailedInput, ...]:
    """Return the tasks of a batch that failed for good, as the stage first received them.

    Args:
        errors: The error of each failed task, by its position in the batch.
        ids: The ids of all inputs.
        together: What the stage was doing if the tasks failed together; otherwise empty.
        copies: The inputs of the batch; None if they do not pickle.
        max_bytes: The largest payload to keep; a larger task is reported without its payload.
    """
    infos = {number: error_info(error, together or f"on task '{ids[number]}'") for number, error in errors.items()}
    if copies is None:
        return tuple(FailedInput(number, info, None) for number, info in infos.items())
    from curator_core.deadletter.payload import pack_task  # noqa: PLC0415 - kept failures are rare

    tasks = copies.restore()
    return tuple(FailedInput(number, info, pack_task(tasks[number], max_bytes)) for number, info in infos.items())


def written_files_of(
    ids: Sequence[str], others: Mapping[int, tuple[OutcomeKind, int]], outputs: Sequence[Any]
) -> tuple[WrittenFiles, ...]:
    """Return the files that the outputs of a batch name.

    Args:
        ids: The ids of the inputs.
        others: The outcomes of the inputs that did not give exactly one task.
        outputs: The outputs, in order.
    """
    written = [_paths_of(task) for task in outputs]
    if not any(paths is not None for paths in written):
        return ()
    made_of = (outcome.task_id for outcome in input_outcomes(ids, others) for _ in range(outcome.count))
    return tuple(
        WrittenFiles(input_id, task.task_id, [os.fspath(path) for path in paths], task.dataset_name)
        for input_id, task, paths in zip(made_of, outputs, written, strict=True)
        if paths is not None
    )


def _paths_of(task: Any) -> list[str] | None:
    """Return the files that were written; a task with a byte range names a file still to read."""
    if isinstance(task, BoxedTask):
        return task.written_paths
    return task.data if isinstance(task, FileGroupTask) and task.byte_range is None else None
