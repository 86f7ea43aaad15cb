# SPDX-License-Identifier: Apache-2.0
"""Isolated stages: their code runs in a process of its own, so that a crash or a hang costs only that process.

Everything around the call stays in the worker: the adapter, its attempts, and its reports. Only the stage's own code
runs elsewhere.

    stage.py      what the adapter calls in place of the stage
    process.py    a process with one stage: starts it, calls it, ends it
    channel.py    messages between the worker and that process
    child.py      the code that runs in the process
"""

from curator_core._processes.stage import IsolatedStage

__all__ = ["IsolatedStage"]
