# SPDX-License-Identifier: Apache-2.0
"""Tasks that failed for good, stored as files: the task, the stage, and the reason.

    from curator_core import deadletter

    for letter in deadletter.read("dead/"):
        print(letter.stage, letter.task_id, letter.error_message)
    tasks = deadletter.load("dead/", stage="CaptionStage", trust=True)

A letter is one line of JSON, followed by the task as the stage received it. Reading it executes no code unless it is
trusted.
"""

from curator_core._dead_letter import DeadLetter
from curator_core.deadletter.letter import Letter
from curator_core.deadletter.reader import load, read

__all__ = ["DeadLetter", "Letter", "load", "read"]
