# SPDX-License-Identifier: Apache-2.0
"""A user's script: its task, stage and exception classes are those of ``__main__``."""

import json
import os
import threading
from dataclasses import dataclass

import ray

from curator_core import Pipeline, ProcessingStage, Resources, StageError, Task
from curator_xenna import XennaExecutor


@dataclass
class Video(Task):
    fps: float = 0.0


class OddError(ValueError):
    pass


class Frames(ProcessingStage):
    resources = Resources(cpus=0.3)

    def num_workers(self):
        return 1

    def process(self, task):
        if task.data == 13:
            raise OddError("thirteen")
        if task.data == 14:
            return Video(data=threading.Lock())
        return Video(data=task.data, fps=24.0)


def main():
    before = dict(os.environ)
    with XennaExecutor() as executor:
        pipeline = Pipeline("mine", [Frames()])
        try:
            pipeline.run(executor, [Video(data=13)])
        except StageError as error:
            raised = error
        result = pipeline.run(executor, [Video(data=14), Video(data=1)], on_error="skip")
    (video,) = result
    said = {
        "is_mine": isinstance(video, Video),
        "equals_mine": video == Video(data=1, fps=24.0),
        "cause_is_mine": isinstance(raised.__cause__, OddError),
        "failed": result.accounting.failed,
        "environ_kept": before == dict(os.environ),
        "connected": ray.is_initialized(),
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main()
