# SPDX-License-Identifier: Apache-2.0
"""Runs code that leaves its caller in an unusual way: `python -m curator_chaos.unruly ON HOW DEAD`.

Each method of a stage does so once under each failure policy. The program prints the outcomes as one line of JSON.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curator_core import DeadLetter, LocalExecutor, Pipeline, ProcessingStage, RunObserver, Task, deadletter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from curator_core import BaseExecutor, RunResult, WorkerReport

__all__ = ["EXECUTORS", "METHODS", "WAYS"]

EXECUTORS = ("local", "local-2", "xenna", "isolated")
METHODS = ("process", "process_batch", "setup", "setup_on_node", "teardown")
_LIMIT_S = 2.0

logger = logging.getLogger(__name__)


class PanicError(BaseException):
    """An exception like those that Rust extensions raise when they panic."""


def panic() -> None:
    raise PanicError("index out of bounds")


def leave() -> None:
    sys.exit(3)


def fork() -> None:
    if child := os.fork():
        os.waitpid(child, 0)
    else:
        sys.exit(0)


def hang() -> None:
    threading.Event().wait()


def interrupt() -> None:
    raise KeyboardInterrupt


WAYS: Mapping[str, Callable[[], None]] = {
    "panics": panic,
    "exits": leave,
    "forks": fork,
    "hangs": hang,
    "raises KeyboardInterrupt": interrupt,
}


class Unruly(ProcessingStage[Task[int], Task[int]]):
    """Misbehaves in one of its methods; in methods that receive tasks, only on one task."""

    def __init__(self, method: str, way: str) -> None:
        self.method, self.way = method, way

    def num_workers(self) -> int:
        return 1

    def act_in(self, method: str) -> None:
        if method == self.method:
            WAYS[self.way]()

    def setup_on_node(self, node_info: Any, worker_metadata: Any) -> None:
        self.act_in("setup_on_node")

    def setup(self, worker_metadata: Any) -> None:
        self.act_in("setup")

    def process(self, task: Task[int]) -> Task[int]:
        if task.data == 1:
            self.act_in("process")
        return task

    def teardown(self) -> None:
        self.act_in("teardown")


class UnrulyBatches(Unruly):
    def process_batch(self, tasks: list[Task[int]]) -> list[Task[int]]:
        if any(task.data == 1 for task in tasks):
            self.act_in("process_batch")
        return tasks


class Teardowns(RunObserver):
    """Collects the errors of workers' ends."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def on_worker(self, report: WorkerReport) -> None:
        if report.event == "ended" and report.error is not None:
            self.errors.append(report.error.type.rpartition(".")[2])


def outcome(executor: BaseExecutor, stage: Any, on_error: Any) -> str:
    """Run three tasks and describe the outcome."""
    watcher = Teardowns()
    tasks = [Task(data=number) for number in range(3)]
    try:
        result: RunResult = Pipeline("unruly", [stage]).run(
            executor, tasks, on_error=on_error, observers=[watcher], max_failures=None
        )
    except BaseException as exc:  # noqa: BLE001 - reports any exception
        return f"`{type(exc).__name__}`"
    (summary,) = result.stages
    assert summary.tasks_in == summary.tasks_passed + summary.tasks_failed == len(tasks), summary
    assert len(result) == summary.tasks_out
    if isinstance(on_error, DeadLetter):
        letters = [letter.task_id for letter in deadletter.read(on_error.path)] if Path(on_error.path).exists() else []
        assert len(letters) == summary.tasks_failed, letters
    parts = [f"{summary.tasks_failed} of {len(tasks)} fails"] if summary.tasks_failed else ["all succeed"]
    parts += [f"reported: `{kind}`" for kind in dict.fromkeys(watcher.errors)]
    return ", ".join(parts)


def all_outcomes(on: str, way: str, dead: Path) -> Iterator[tuple[str, str, str]]:
    """Yield each method, each policy, and the outcome."""
    settings: dict[str, Any] = {"isolated": True} if on == "isolated" else {}
    if way == "hangs":
        settings |= {"timeout_s": _LIMIT_S, "setup_timeout_s": _LIMIT_S}
    with executor_of(on) as executor:
        for method in METHODS:
            kind = UnrulyBatches if method == "process_batch" else Unruly
            stage = kind(method, way).with_(batch_size=2, **settings)
            for policy in ("raise", "skip", DeadLetter(dead / method)):
                name = policy if isinstance(policy, str) else "dead letter"
                logger.warning("%s: %s in %s, %s", on, way, method, name)  # if a run hangs, this is the last line
                yield method, name, outcome(executor, stage, policy)


def executor_of(on: str) -> Any:
    if on == "xenna":
        from curator_xenna import XennaExecutor

        return XennaExecutor()
    return nullcontext(LocalExecutor(workers=2 if on == "local-2" else 1))


def main(on: str, way: str, dead: str) -> None:
    logging.basicConfig(level=logging.WARNING)
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for method, policy, came in all_outcomes(on, way, Path(dead)):
        found[method][policy] = came
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
