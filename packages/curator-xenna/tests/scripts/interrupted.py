# SPDX-License-Identifier: Apache-2.0
"""An endless run; creates the file in its argument once the first batch has been reported."""

import signal
import sys
import threading
from pathlib import Path

from curator_core import Pipeline, ProcessingStage, Resources, RunObserver, Task
from curator_xenna import XennaExecutor


class Quick(ProcessingStage):
    resources = Resources(cpus=0.3)

    def num_workers(self):
        return 1

    def process(self, task):
        return task


class Forever(Quick):
    fusible = False  # otherwise nothing would be reported before the end

    def process(self, task):
        threading.Event().wait()


class Announce(RunObserver):
    def __init__(self, path):
        self.path = Path(path)

    def on_batch(self, report):
        self.path.touch()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background processes of a shell ignore it
    tasks = [Task(data=number) for number in range(6)]
    Pipeline("forever", [Quick(), Forever()]).run(XennaExecutor(), tasks, [Announce(sys.argv[1])], shutdown_grace_s=100)
