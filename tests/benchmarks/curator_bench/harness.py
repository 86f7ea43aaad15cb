# SPDX-License-Identifier: Apache-2.0
"""The shared code of all runners: a process runs one workload once, and prints one line of JSON.

The clock runs from before the executor is created until the outputs are in this process. It includes the start and the
end of Ray, which users pay for, and excludes imports, which are measured separately.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from curator_bench.workloads import ARRAY_BYTES, WORKLOADS, Job, Step, Workload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import TypeAlias

    Prepare: TypeAlias = Callable[["Work", argparse.Namespace], Callable[[], list[Any]]]

__all__ = ["SCRATCH", "Work", "cores", "main", "process_of"]

SCRATCH = "CURATOR_BENCH_SCRATCH"  # environment variable: the directory of this run

_marked: list[bool] = []  # not empty once this process has made an output


class Work:
    """A workload with its size, for a runner.

    Attributes:
        inputs: The payloads; empty if there is a source.
        steps: The stages after the source.
        nemo_stages: The stages instead of steps, if they are NeMo Curator's own.
        source: The source of the payloads, if that is part of the work.
        cpus: CPUs that each stage asks for.
        one_worker: Whether one worker must process all payloads.
    """

    def __init__(self, workload: Workload, job: Job) -> None:
        self.inputs = workload.inputs(job)
        self.steps = _marking(workload.steps(job), job.output)
        self.nemo_stages = workload.nemo_stages(job) if workload.nemo_stages else []
        self.source = workload.source(job) if workload.source else None
        self.cpus = workload.cpus(job)
        self.one_worker = workload.one_worker


def _marking(steps: list[Step], directory: Path) -> list[Step]:
    """Let the last step, if there is one, record its first output."""
    if not steps:
        return []
    *first, last = steps
    return [*first, replace(last, call=Marking(last.call, directory))]


class Marking:
    """The last step, which records the time when a process makes its first output.

    Args:
        call: The step.
        directory: Directory of the record.
    """

    def __init__(self, call: Callable[[Any], Any], directory: Path) -> None:
        self._call = call
        self._directory = directory

    def __call__(self, payload: Any) -> Any:
        """Return the output of the step for a payload."""
        made = self._call(payload)
        if not _marked:
            _marked.append(True)
            (self._directory / f"first-{os.getpid()}").write_text(repr(time.time()))
        return made


def process_of(call: Callable[[Any], Any], payloads: list[Any]) -> list[Any]:
    """Return the outputs of a step for payloads, without those that it drops."""
    return [made for payload in payloads if (made := call(payload)) is not None]


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(prepare: Prepare, options: Sequence[tuple[str, Any]]) -> None:
    """Run the command line of a runner.

    Args:
        prepare: Imports what is needed and returns the function to time, which returns the output payloads.
        options: The options of the runner, with their defaults.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--workload", choices=WORKLOADS, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--stages", type=int)
    parser.add_argument("--nbytes", type=int, default=ARRAY_BYTES)
    parser.add_argument("--documents", type=Path, default=Path())
    for name, default in options:
        parser.add_argument(name, type=type(default), default=default)
    given = parser.parse_args()
    with only_json_on_stdout() as stdout:
        print(json.dumps(run(prepare, given)), file=stdout)


def run(prepare: Prepare, given: argparse.Namespace) -> dict[str, Any]:
    """Run once and return the measurements."""
    workload = WORKLOADS[given.workload]
    scratch = Path(os.environ[SCRATCH])
    job = Job(given.size, given.stages or workload.stages, given.nbytes, given.documents.absolute(), scratch)
    go = prepare(Work(workload, job), given)
    began, start = time.time(), time.perf_counter()
    outputs = go()
    seconds = time.perf_counter() - start
    marks = [float(path.read_text()) for path in scratch.glob("first-*")]
    marks = [mark for mark in marks if mark >= began]  # an earlier run, which is not timed, leaves marks too
    return {
        "seconds": round(seconds, 3),
        "first_s": round(min(marks) - began, 3) if marks else None,
        "driver_mb": _peak_mb(),
        "check": workload.check(outputs, job),
    }


def _peak_mb() -> float:
    """Return the peak memory of this process."""
    status = Path("/proc/self/status")  # on Linux, getrusage() also counts memory of the parent before exec
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1e3
    import resource  # not available on Windows, where this does not run

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


@contextmanager
def only_json_on_stdout() -> Iterator[IO[str]]:
    """Redirect all other output to stderr, including that of workers and C libraries."""
    sys.stdout.flush()
    stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with stdout:
        yield stdout
