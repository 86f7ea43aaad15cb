# SPDX-License-Identifier: Apache-2.0
"""A user's script on one core, with task, stage, and exception classes in ``__main__``; prints the results.

Its stages ask for a CPU each. The second run has them in separate workers, which needs more CPUs than the Ray of the
first run declares, so this process starts a second Ray.
"""

import json
import os
import pickle
import sqlite3
import threading
from dataclasses import dataclass

for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
    os.environ.pop(name, None)
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])  # before any code counts them

import ray  # noqa: E402
from loguru import logger  # noqa: E402

from curator_core import (  # noqa: E402
    Pipeline,
    ProcessingStage,
    RunObserver,
    StageDefinitionError,
    StageError,
    Task,
)
from curator_xenna import XennaExecutor  # noqa: E402

lock = threading.Lock()
connection = sqlite3.connect(":memory:")
logger.add(open(os.devnull, "w"))  # noqa: PTH123, SIM115 - as in scripts


@dataclass
class Video(Task):
    fps: float = 0.0
    token: str = ""


class OddError(ValueError):
    pass


class Look(ProcessingStage):
    """Adds the token of its worker."""

    def process(self, task):
        return Video(data=task.data, token=os.environ.get("RAY_AUTH_TOKEN", ""))


class Größe(ProcessingStage):
    def process(self, task):
        if task.data == 13:
            raise OddError("thirteen")
        if task.data == "a":
            with lock:
                logger.debug("pickled here")
                return Video(data=pickle.dumps((Video(data="a", fps=24.0), guarded)))
        if task.data == 14:
            return Video(data=threading.Lock())
        return Video(data=task.data, fps=24.0, token=task.token)


class Asks(ProcessingStage):
    def process(self, task):
        return Video(data=connection.execute("select 1").fetchone())


class Groups(RunObserver):
    """Records which stages share a worker."""

    def __init__(self):
        self.stages = {}

    def on_worker(self, report):
        names = self.stages.setdefault(report.worker_id, [])
        if report.stage_name not in names:
            names.append(report.stage_name)

    def names(self):
        return sorted({"+".join(names) for names in self.stages.values()})


def guarded():
    return lock


def refusal():
    try:
        Pipeline("refused", [Asks()]).compile(fed=True, executor="xenna")
    except StageDefinitionError as error:
        return error.field


def run(executor, tasks, on_error, **settings):
    """Return the outputs by their ids, the error if there is one, and what to print about the run."""
    seen, raised = Groups(), None
    try:
        result = Pipeline("mine", [Look(), Größe().with_(**settings)]).run(
            executor, tasks, observers=[seen], on_error=on_error
        )
    except StageError as error:
        result, raised = error.result, error
    by_id = {task.task_id: task for task in result}
    said = {"groups": seen.names(), "token": by_id["0"].token, "cpus": ray.cluster_resources()["CPU"]}
    return by_id, raised, {**said, "ids": sorted(by_id), "failed": result.accounting.failed}


def asks_for_no_token():
    """Whether a Ray without tokens can be joined afterward."""
    from ray import _raylet

    return _raylet.get_authentication_mode() == _raylet.AuthenticationMode.DISABLED


def main():
    before = dict(os.environ)
    with XennaExecutor() as executor:
        videos, raised, shared = run(executor, [Video(data=1), Video(data="a"), Video(data=13)], "raise")
        _, _, apart = run(executor, [Video(data=1), Video(data=2), Video(data=14)], "skip", fusible=False)
    video, pickled = videos["0"], videos["1"]
    unpickled, function = pickle.loads(pickled.data)
    said = {
        "shared": shared,
        "apart": apart,
        "is_mine": isinstance(video, Video),
        "equals_mine": video == Video(data=1, fps=24.0, token=video.token),
        "cause_is_mine": isinstance(raised.__cause__, OddError),
        "pickled_there": [unpickled.data, unpickled.fps],
        "lock_kept": function() is lock,
        "refused": refusal(),
        "environ_kept": before == dict(os.environ),
        "connected": ray.is_initialized(),
        "asks_for_no_token": asks_for_no_token(),
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main()
