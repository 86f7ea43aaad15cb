# SPDX-License-Identifier: Apache-2.0
"""A user's script with task, stage, and exception classes in ``__main__``."""

import json
import os
import pickle
import sqlite3
import threading
from dataclasses import dataclass

import ray
from loguru import logger

from curator_core import Pipeline, ProcessingStage, Resources, StageDefinitionError, StageError, Task
from curator_xenna import XennaExecutor

lock = threading.Lock()
connection = sqlite3.connect(":memory:")
logger.add(open(os.devnull, "w"))  # noqa: PTH123, SIM115 - as in scripts


@dataclass
class Video(Task):
    fps: float = 0.0


class OddError(ValueError):
    pass


class Größe(ProcessingStage):
    resources = Resources(cpus=0.3)

    def num_workers(self):
        return 1

    def process(self, task):
        if task.data == 13:
            raise OddError("thirteen")
        if task.data == "a":
            with lock:
                logger.debug("pickled here")
                return Video(data=pickle.dumps((Video(data="a", fps=24.0), guarded)))
        if task.data == 14:
            return Video(data=threading.Lock())
        return Video(data=task.data, fps=24.0)


class Asks(ProcessingStage):
    def process(self, task):
        return Video(data=connection.execute("select 1").fetchone())


def guarded():
    return lock


def refusal():
    try:
        Pipeline("refused", [Asks()]).compile(fed=True, executor="xenna")
    except StageDefinitionError as error:
        return error.field


def main():
    before = dict(os.environ)
    with XennaExecutor() as executor:
        pipeline = Pipeline("mine", [Größe()])
        try:
            pipeline.run(executor, [Video(data=13)])
        except StageError as error:
            raised = error
        result = pipeline.run(executor, [Video(data=14), Video(data=1), Video(data="a")], on_error="skip")
    video, pickled = sorted(result, key=lambda video: video.task_id)
    unpickled, function = pickle.loads(pickled.data)
    said = {
        "is_mine": isinstance(video, Video),
        "equals_mine": video == Video(data=1, fps=24.0),
        "cause_is_mine": isinstance(raised.__cause__, OddError),
        "pickled_there": [unpickled.data, unpickled.fps],
        "lock_kept": function() is lock,
        "refused": refusal(),
        "failed": result.accounting.failed,
        "environ_kept": before == dict(os.environ),
        "connected": ray.is_initialized(),
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main()
