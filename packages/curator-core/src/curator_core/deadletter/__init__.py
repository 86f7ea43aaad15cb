# SPDX-License-Identifier: Apache-2.0
"""Tasks that failed for good, set aside as files: what they are, why they failed, and the tasks themselves.

    from curator_core import deadletter

    for letter in deadletter.read("dead/"):
        print(letter.stage, letter.task_id, letter.error_message)
    tasks = deadletter.load("dead/", stage="CaptionStage", trust=True)

A letter is one line of JSON, then the task as it came into the stage. Nothing in it is executed unless it is trusted.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from curator_core.deadletter.policy import DeadLetter

if TYPE_CHECKING:
    from curator_core.deadletter.letter import Letter
    from curator_core.deadletter.reader import load, read

__all__ = ["DeadLetter", "Letter", "load", "read"]

_ELSEWHERE = {"Letter": "letter", "load": "reader", "read": "reader"}


def __getattr__(name: str) -> Any:
    # What reads and writes files comes when it is asked for: the policy is imported with the package.
    if name in _ELSEWHERE:
        return getattr(import_module(f"{__name__}.{_ELSEWHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
