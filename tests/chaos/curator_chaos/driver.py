# SPDX-License-Identifier: Apache-2.0
"""A run as a program of its own, so that it can be killed: `python -m curator_chaos.driver JOB SAYS`.

It is given the job as JSON, and writes what it has to say of the run as JSON to a file.
"""

from __future__ import annotations

import json
import re
import sys
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curator_chaos.work import Annotate, Chapters, lift_limit, limit_files
from curator_core import CuratorError, DeadLetter, LocalExecutor, Pipeline, RunObserver
from curator_core.io import JsonlReader, JsonlWriter

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from curator_core import BaseExecutor, BatchReport, RunResult

__all__ = ["Job", "run"]


@dataclass(frozen=True)
class Job:
    """What is to be run, and how.

    Attributes:
        executor: ``"local"``, ``"local-2"`` or ``"xenna"``.
        source: Directory to read.
        out: Directory to write to.
        checkpoint: Its directory.
        marks: As for `curator_chaos.work.Marked`.
        dead: Where failures are kept; where it is empty, the first one ends the run.
        poison: As for `Annotate`.
        pace_s: Likewise.
        settings: Of the stage with the poison, as for `ProcessingStage.with_`.
        driver_limit: Bytes after which the driver's files are full, once there has been a report of a worker; 0 for no
            limit.
        config: Settings of `XennaExecutor`.
        ballast: As for `Chapters`.
        leak: As for `Annotate`.
        target_size: Of the writer, in bytes; 0 for a file a task.
        loses_node_after: Batches on a second node, until it is killed; 0 for no such node. On Xenna only.
    """

    executor: str
    source: str
    out: str
    checkpoint: str
    marks: str
    dead: str = ""
    poison: Mapping[str, str] = field(default_factory=dict)
    pace_s: float = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    driver_limit: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)
    ballast: int = 0
    leak: int = 0
    target_size: int = 0
    loses_node_after: int = 0

    def dump(self) -> str:
        return json.dumps(asdict(self))


class Full(RunObserver):
    """From the first report of a worker on, the driver's files are full. Ray has started by then, and has had room.

    Args:
        limit: Bytes that a file may hold.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def on_batch(self, report: BatchReport) -> None:
        if report.stage_index > 0:
            limit_files(self.limit)


class Spilled(RunObserver):
    """How much Ray's object store has moved to disk, read from Ray while it is there."""

    megabytes = 0

    def on_run_end(self, result: RunResult, error: BaseException | None) -> None:
        import ray
        from ray._private.internal_api import memory_summary

        address = ray.get_runtime_context().gcs_address  # there may be another Ray on this machine
        found = re.search(r"Spilled (\d+) MiB", memory_summary(address, stats_only=True))
        self.megabytes = int(found[1]) if found else 0


class OutOfMemory(RunObserver):
    """How many actors Ray says it has killed for want of memory, asked while it is there."""

    actors = 0

    def on_run_end(self, result: RunResult, error: BaseException | None) -> None:
        import ray
        from ray.util.state import list_actors

        address = ray.get_runtime_context().gcs_address  # as above
        dead = list_actors(address, filters=[("state", "=", "DEAD")], limit=10_000, detail=True)
        self.actors = sum(bool((actor.death_cause or {}).get("oom_context")) for actor in dead)


def run(job: Job, *observers: RunObserver) -> RunResult:
    """Run a job's pipeline to its end."""
    stages = [
        JsonlReader(job.source, records_per_batch=1),
        Chapters(job.marks, job.ballast),
        Annotate(job.marks, job.poison, job.pace_s, job.leak).with_(**job.settings),
        JsonlWriter(job.out, target_size=job.target_size or None),
    ]
    with executor_of(job) as (executor, watching):
        return Pipeline("chaos", stages).run(
            executor,
            observers=[*observers, *watching, *([Full(job.driver_limit)] if job.driver_limit else [])],
            checkpoint=job.checkpoint,
            on_error=DeadLetter(job.dead) if job.dead else "raise",
        )


@contextmanager
def executor_of(job: Job) -> Iterator[tuple[BaseExecutor, Sequence[RunObserver]]]:
    """The executor of a job, and who has to watch its run."""
    if job.loses_node_after:
        from curator_chaos.nodes import two_nodes

        with two_nodes(job.loses_node_after, job.config) as made:
            yield made
    elif job.executor == "xenna":
        from curator_xenna import XennaExecutor

        with XennaExecutor(job.config) as executor:  # so that Ray is there until all have been told of the end
            yield executor, []
    else:
        yield LocalExecutor(workers={"local": 1, "local-2": 2}[job.executor]), []


def told(job: Job) -> dict[str, Any]:
    """What a run came to."""
    spilled, out_of_memory = Spilled(), OutOfMemory()
    watching = [*([spilled] if job.ballast else []), *([out_of_memory] if job.leak else [])]
    try:
        says = {"error": "", **accounts(None, run(job, *watching))}
    except CuratorError as exc:
        cause = type(exc.__cause__).__name__ if exc.__cause__ else ""
        says = {"error": type(exc).__name__, "cause": cause, "message": str(exc), **accounts(exc)}
    return {**says, "spilled": spilled.megabytes, "out_of_memory": out_of_memory.actors}


def accounts(exc: CuratorError | None, result: RunResult | None = None) -> dict[str, Any]:
    result = getattr(exc, "result", None) if result is None else result
    if result is None:
        return {}
    return {
        "complete": result.complete,
        "lost": result.lost,
        "files": [Path(path).name for task in result for path in task.data],
        "accounting": {
            "admitted": result.accounting.admitted,
            "resumed": len(result.accounting.resumed),
            "unfinished": result.accounting.unfinished,
            "failed": result.accounting.failed,
            "restarts": result.accounting.restarts,
        },
        "stages": [asdict(stage) for stage in result.stages],
    }


if __name__ == "__main__":
    says = json.dumps(told(Job(**json.loads(sys.argv[1]))))
    lift_limit()
    Path(sys.argv[2]).write_text(says, encoding="utf-8")
