# SPDX-License-Identifier: Apache-2.0
"""Exceptions of user code: described for a report, wrapped for the caller, and rebuilt in another process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from curator_core._guard.user_code import check_failure
from curator_core._reports.batch import BatchReport, ErrorInfo
from curator_core._transport.exceptions import is_a, message_of, pack_exception, traceback_of, unpack_exception
from curator_core._transport.pickling import find_unpicklable, pickles
from curator_core.errors import ConfigurationError, ContractError, CuratorError, StageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Any

__all__ = [
    "ForeignError",
    "RemoteTraceback",
    "error_info",
    "fail_unsendable",
    "is_of",
    "rebuild_error",
    "stage_error",
    "unsendable",
    "user_frames",
]

_HINT = "see its own traceback above this one, or pass on_error='skip' to skip such tasks"
_HINT_READ_ONLY = "write to a copy, such as array.copy(): arrays that come from another worker may be read-only"
_OUR_CALLERS = frozenset(
    {"curator_core._adapter.adapter", "curator_core._adapter.attempt", "curator_core._processes.runner"}
)  # modules that call stages


class RemoteTraceback(Exception):  # noqa: N818 - not an error itself, but shows one
    """Shows the traceback of an exception from another process, in the place of that exception's cause."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n\n{self.text}"


class ForeignError(Exception):
    """Stands for an exception that a stage raised in a process of its own.

    Args:
        info: Describes that exception.
        is_of_retry_on: Whether it matches the stage's ``retry_on``. Only the process that has its class can check this.
    """

    def __init__(self, info: ErrorInfo, *, is_of_retry_on: bool) -> None:
        super().__init__(info.message)
        self.info = info
        self.is_of_retry_on = is_of_retry_on


def is_of(exc: BaseException | None, classes: tuple[type[BaseException], ...]) -> bool:
    """Whether an exception matches a stage's ``retry_on``."""
    return exc.is_of_retry_on if is_a(exc, ForeignError) else is_a(exc, classes)


def error_info(exc: BaseException, doing: str = "") -> ErrorInfo:
    """Describe an exception so that it can cross a process boundary.

    Args:
        exc: The exception.
        doing: What the stage was doing.
    """
    if is_a(exc, ForeignError):
        return exc.info._replace(doing=doing)
    kind = type(exc)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return ErrorInfo(
        type=name,
        message=message_of(exc),
        traceback=_traceback_of(exc),
        pickled=pack_exception(exc),
        doing=doing,
    )


def _traceback_of(exc: BaseException) -> str:
    """Return the traceback as Python prints it, without causes and notes if reading them raises."""
    import traceback  # noqa: PLC0415 - errors are rare, and an import of this package is not

    kind, frames = type(exc), user_frames(traceback_of(exc))
    try:
        return "".join(traceback.format_exception(kind, exc, frames))
    except BaseException as hostile:  # noqa: BLE001 - raised by attributes of the user's class
        check_failure(hostile)
        lines = ["Traceback (most recent call last):\n", *traceback.format_tb(frames)]
        return f"{''.join(lines)}{kind.__qualname__}: {message_of(exc)}\n"


def stage_error(exc: BaseException, stage: str, doing: str = "") -> StageError:
    """Return the error to raise to the caller for an exception of a stage's code, which becomes its cause."""
    if is_a(exc, ForeignError):
        return rebuild_error(exc.info, stage, doing)
    if _is_about(exc, stage):
        return exc  # type: ignore[return-value]  # a StageError, which _is_about checked
    error = _wrapper(type(exc).__name__, message_of(exc), stage, doing, exc)
    error.__cause__ = BaseException.with_traceback(exc, user_frames(traceback_of(exc)))
    return error


def rebuild_error(info: ErrorInfo, stage: str, doing: str = "") -> StageError:
    """Return the error as `stage_error` does, but from a report; the user's traceback is shown as the cause."""
    original = unpack_exception(info.pickled) if info.pickled else None
    shown = RemoteTraceback(info.traceback)
    try:
        if original is not None:
            original.__cause__ = shown
    except BaseException as hostile:  # noqa: BLE001 - its class may define a property named __cause__
        check_failure(hostile)
        original = None
    if _is_about(original, stage):
        return original  # type: ignore[return-value]  # a StageError, which _is_about checked
    error = _wrapper(info.type.rpartition(".")[2], info.message, stage, doing or info.doing, original)
    error.__cause__ = original or shown
    return error


def _is_about(exc: BaseException | None, stage: str) -> bool:
    """Whether an exception is a `StageError` about this stage, and not one from a pipeline that the stage runs."""
    return is_a(exc, StageError) and exc.stage == stage


def _wrapper(kind: str, message: str, stage: str, doing: str, cause: BaseException | None) -> StageError:
    ours = cause if is_a(cause, CuratorError) else None
    error = StageError(
        f"raised {kind}{doing and f' {doing}'}: {ours.message if ours else message}",
        stage=stage,
        hint=_HINT_READ_ONLY if kind == "ValueError" and "read-only" in message else _HINT,
    )
    if ours:  # show its details once, in their own fields, and not in the message as well
        error.field, error.given, error.expected = ours.field, ours.given, ours.expected
        error.hint = ours.hint or error.hint
    return error


def user_frames(frames: TracebackType | None) -> TracebackType | None:
    """Return the traceback from the first frame outside the modules that call stages."""
    first = frames
    while first is not None and first.tb_frame.f_globals.get("__name__") in _OUR_CALLERS:
        first = first.tb_next
    return first or frames


def unsendable(
    task: Any, exc: BaseException, receiver: str, stage: str | None, instead: str = ""
) -> ContractError | ConfigurationError:
    """Return the error for a task that cannot be pickled.

    Args:
        task: The task.
        exc: The exception from pickling it.
        receiver: Where it should be sent.
        stage: Name of the stage that made it; None for an initial task of the run.
        instead: How to run without sending tasks, for the hint.
    """
    where, culprit = find_unpicklable(task, f"task '{task.task_id}'")
    place = "out of tasks" if stage is None else "in the stage, not in tasks"
    details: dict[str, Any] = {
        "field": where,
        "given": culprit,
        "expected": "tasks that can be pickled",
        "hint": f"keep locks, files, and connections {place}{instead and f', or {instead}'}",
    }
    problem = f"cannot be sent to {receiver}: {message_of(exc)}"
    if stage is None:
        return ConfigurationError(f"an initial task {problem}", **details)
    return ContractError(f"an output {problem}", stage=stage, **details)


def fail_unsendable(reports: list[Any], outputs: Sequence[Any], error: BaseException) -> list[Any]:
    """Turn finished batches with outputs that cannot be pickled into failed ones, before their reports are sent.

    Args:
        reports: Reports of batches and workers; those of the batches are replaced.
        outputs: The outputs of the batches.
        error: The reason.

    Returns:
        The outputs of the other batches.
    """
    batch_ids = {_batch_of(task) for task in outputs if not pickles(task)}
    failed: set[str] = set()
    for number, report in enumerate(reports):
        if isinstance(report, BatchReport) and report.batch_id in batch_ids and not report.is_retried:
            reports[number] = report.all_as("failed")._replace(error=error_info(error), written_files=())
            failed.add(report.batch_id)
    return [task for task in outputs if _batch_of(task) not in failed]


def _batch_of(task: Any) -> str:
    """Return the id of the batch that made a task."""
    batch_id: str = task.stage_perf[-1].batch_id
    return batch_id
