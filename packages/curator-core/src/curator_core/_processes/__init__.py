# SPDX-License-Identifier: Apache-2.0
"""Child processes, and isolated stages: their code runs in a child, so that a crash or a hang costs only that process.

Everything around the call of an isolated stage stays in the worker: the adapter, its attempts, and its reports. Only
the stage's own code runs elsewhere. The workers of `LocalExecutor` are children of the same kind.

    process.py    a child process: starts it, exchanges messages with it, ends it
    channel.py    the messages
    child.py      the code that runs in a child
    stage.py      what the adapter calls in place of an isolated stage
    runner.py     the code that runs in the child of an isolated stage
"""
