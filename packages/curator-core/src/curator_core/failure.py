# SPDX-License-Identifier: Apache-2.0
"""Exceptions of user code: described for a report, wrapped for the caller, rebuilt on the other side."""

from __future__ import annotations

import pickle
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from curator_core.errors import StageError
from curator_core.report import ErrorInfo

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["RemoteTraceback", "error_info", "rebuild_error", "stage_error", "user_frames"]

_PICKLE_LIMIT = 64_000  # bytes; an exception that drags its payload along is described, not carried
_OUR_FRAMES = str(Path(__file__).parent)


class RemoteTraceback(Exception):
    """Shows the traceback of another process where that exception's own cause would be shown."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n\n{self.text}"


def error_info(exc: BaseException) -> ErrorInfo:
    """Describe an exception so that it can cross a process boundary."""
    from curator_core.plan import dumps  # noqa: PLC0415 - plan needs the errors, and this is a rare path

    try:
        pickled = dumps(exc)
        pickle.loads(pickled)  # noqa: S301 - our own; many exceptions pickle and do not unpickle
    except Exception:  # noqa: BLE001 - described without it
        pickled = b""
    kind = type(exc)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return ErrorInfo(
        type=name,
        message=_message(exc),
        traceback="".join(traceback.format_exception(kind, exc, user_frames(exc.__traceback__))),
        pickled=pickled if 0 < len(pickled) <= _PICKLE_LIMIT else None,
    )


def stage_error(exc: BaseException, stage: str, doing: str = "") -> StageError:
    """The error to raise to the caller for an exception of a stage's code, which becomes its cause."""
    if isinstance(exc, StageError):
        return exc
    error = _wrapper(type(exc).__name__, _message(exc), stage, doing)
    error.__cause__ = exc.with_traceback(user_frames(exc.__traceback__))
    return error


def rebuild_error(info: ErrorInfo, stage: str, doing: str = "") -> StageError:
    """As `stage_error`, from a report; the user's traceback stands where the cause is shown."""
    original = _unpickle(info)
    shown = RemoteTraceback(info.traceback)
    if isinstance(original, StageError):
        original.__cause__ = shown
        return original
    error = _wrapper(info.type.rpartition(".")[2], info.message, stage, doing)
    if original is not None:
        original.__cause__ = shown
    error.__cause__ = original or shown
    return error


def _wrapper(kind: str, message: str, stage: str, doing: str) -> StageError:
    return StageError(
        f"raised {kind}{doing and f' {doing}'}: {message}", stage=stage, hint="its own traceback is above this one"
    )


def _unpickle(info: ErrorInfo) -> BaseException | None:
    try:
        exc = pickle.loads(info.pickled) if info.pickled else None  # noqa: S301 - from our own worker
    except Exception:  # noqa: BLE001 - a class that is only importable on the worker
        return None
    return exc if isinstance(exc, BaseException) else None


def _message(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception as broken:  # noqa: BLE001 - a broken __str__ must not hide the error
        return f"<its __str__ raised {type(broken).__name__}>"


def user_frames(frames: TracebackType | None) -> TracebackType | None:
    """The traceback from the first frame that is not ours."""
    first = frames
    while first is not None and first.tb_frame.f_code.co_filename.startswith(_OUR_FRAMES):
        first = first.tb_next
    return first or frames
