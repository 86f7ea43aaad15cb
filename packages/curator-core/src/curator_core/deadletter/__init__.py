# SPDX-License-Identifier: Apache-2.0
"""Tasks that failed for good, set aside as files: what they are, why they failed, and the tasks themselves.

    from curator_core import deadletter

    for letter in deadletter.read("dead/"):
        print(letter.stage, letter.task_id, letter.error_message)
    tasks = deadletter.load("dead/", stage="CaptionStage", trust=True)

A letter is one line of JSON, then the task as it came into the stage. Nothing in it is executed unless it is trusted.
"""

from curator_core._dead_letter import DeadLetter
from curator_core.deadletter.letter import Letter
from curator_core.deadletter.reader import load, read

__all__ = ["DeadLetter", "Letter", "load", "read"]
