# SPDX-License-Identifier: Apache-2.0
"""Stages whose code runs in a process of its own, so that a crash or a hang costs that process and nothing else.

Everything around the call stays where it was: the adapter, its attempts, its reports. Only what the stage itself does
happens elsewhere.

    stage.py      what the adapter calls in the stage's place
    process.py    a process that holds one stage: started, asked, ended
    channel.py    messages between the two
    child.py      what runs in it
"""

from curator_core._processes.stage import IsolatedStage

__all__ = ["IsolatedStage"]
