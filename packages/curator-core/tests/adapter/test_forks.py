# SPDX-License-Identifier: Apache-2.0
"""Stages that fork: the child ends when it leaves the stage's code, in any way and at any place."""

from __future__ import annotations

import subprocess
import sys

from tests.waiting import DEADLINE_S

SCRIPT = """
import os
import sys
from curator_core import EmptyTask, Pipeline, ProcessingStage, Task

WAYS = {
    "returns": lambda: None,
    "exits": sys.exit,
    "exits with 4": lambda: sys.exit(4),
    "exits with a text": lambda: sys.exit("its last words"),
    "raises": lambda: 1 / 0,
}

def fork(way=lambda: None):
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return way()

class Leaving(ProcessingStage):
    def process(self, task):
        return Task(data=fork(WAYS[task.data]))

class Batches(ProcessingStage):
    def process_batch(self, tasks):
        fork()
        return tasks

class Generator(ProcessingStage):
    def process(self, task):
        yield Task(data=1)
        fork()
        yield Task(data=2)

class Closing:
    def __init__(self):
        self.left = 2

    def __iter__(self):
        return self

    def __next__(self):
        if not self.left:
            raise StopIteration
        self.left -= 1
        return Task(data=self.left)

    def close(self):
        fork()

class Iterator(ProcessingStage):
    def process(self, task):
        return Closing()

class AsyncCalls(ProcessingStage):
    async def process(self, task):
        fork()
        return task

class AsyncGenerator(ProcessingStage):
    async def process(self, task):
        yield Task(data=1)
        fork()
        yield Task(data=2)

class Life(ProcessingStage):
    def setup_on_node(self, node_info, worker_metadata):
        fork()

    def setup(self, worker_metadata):
        fork()

    def process(self, task):
        return task

    def teardown(self):
        fork()

class AsyncLife(Life):
    async def setup(self, worker_metadata):
        fork()

for policy in ("raise", "skip"):
    given = [Task(data=way) for way in WAYS]
    print(policy, [task.data for task in Pipeline("p", [Leaving()]).run(initial_tasks=given, on_error=policy)])
for stage in (Batches(), Generator(), Iterator(), AsyncCalls(), AsyncGenerator(), Life(), AsyncLife()):
    print(stage.name, len(Pipeline("p", [stage]).run(initial_tasks=[Task(data=0)])))
for source in (Generator(), AsyncGenerator()):
    print("source", source.name, len(Pipeline("p", [source]).run()))
"""

SHOWN = """raise [0, 0, 4, 1, 1]
skip [0, 0, 4, 1, 1]
Batches 1
Generator 2
Iterator 2
AsyncCalls 1
AsyncGenerator 2
Life 1
AsyncLife 1
source Generator 2
source AsyncGenerator 2
"""


def test_a_forked_child_does_not_affect_the_run_and_exits_normally():
    done = subprocess.run(
        [sys.executable, "-u", "-W", "ignore", "-c", SCRIPT],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, SHOWN), done.stderr
    assert done.stderr.count("its last words") == 2  # once per policy
    assert done.stderr.count("ZeroDivisionError") == 2
