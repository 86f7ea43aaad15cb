# SPDX-License-Identifier: Apache-2.0
"""A run as a separate program, so that it can be killed: `python -m curator_chaos.driver JOB SAYS`.

It receives the job as JSON, and writes a report of the run as JSON to the file SAYS.
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
    """A run and its settings.

    Attributes:
        executor: ``"local"``, ``"local-2"``, or ``"xenna"``.
        source: Directory to read.
        out: Directory to write to.
        checkpoint: Directory of the checkpoint.
        marks: See `curator_chaos.work.Marked`.
        dead: Directory of dead letters; if empty, the first failure ends the run.
        poison: See `Annotate`.
        pace_s: See `Annotate`.
        settings: Settings of the stage with the poison, as for `ProcessingStage.with_`.
        driver_limit: Maximum bytes of the driver's files after the first report of a worker; 0 for no limit.
        config: Settings of `XennaExecutor`.
        ballast: See `Chapters`.
        leak: See `Annotate`.
        target_size: Target size of the writer, in bytes; 0 for one file per task.
        loses_node_after: Number of batches on a second node until it is killed; 0 for no second node. Only on Xenna.
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
    """Limits the driver's files from the first report of a worker on. Ray has started by then, without a limit.

    Args:
        limit: Maximum bytes of a file.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def on_batch(self, report: BatchReport) -> None:
        if report.stage_index > 0:
            limit_files(self.limit)


class Spilled(RunObserver):
    """How much Ray's object store has spilled to disk, read before Ray ends."""

    megabytes = 0

    def on_run_end(self, result: RunResult, error: BaseException | None) -> None:
        import ray
        from ray._private.internal_api import memory_summary

        address = ray.get_runtime_context().gcs_address  # there may be another Ray on this machine
        found = re.search(r"Spilled (\d+) MiB", memory_summary(address, stats_only=True))
        self.megabytes = int(found[1]) if found else 0


class OutOfMemory(RunObserver):
    """How many actors Ray has killed for lack of memory, read before Ray ends."""

    actors = 0

    def on_run_end(self, result: RunResult, error: BaseException | None) -> None:
        import ray
        from ray.util.state import list_actors

        address = ray.get_runtime_context().gcs_address  # there may be another Ray on this machine
        dead = list_actors(address, filters=[("state", "=", "DEAD")], limit=10_000, detail=True)
        self.actors = sum(bool((actor.death_cause or {}).get("oom_context")) for actor in dead)


def run(job: Job, *observers: RunObserver) -> RunResult:
    """Run a job's pipeline to the end."""
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
    """Yield the executor of a job, and the observers that its run needs."""
    if job.loses_node_after:
        from curator_chaos.nodes import two_nodes

        with two_nodes(job.loses_node_after, job.config) as made:
            yield made
    elif job.executor == "xenna":
        from curator_xenna import XennaExecutor

        with XennaExecutor(job.config) as executor:  # so that Ray lives until all observers have seen the end
            yield executor, []
    else:
        yield LocalExecutor(workers={"local": 1, "local-2": 2}[job.executor]), []


def told(job: Job) -> dict[str, Any]:
    """Run a job and return a report of it."""
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
