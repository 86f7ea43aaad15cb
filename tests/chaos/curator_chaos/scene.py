# SPDX-License-Identifier: Apache-2.0
"""The environment of a test's runs: its directories and drivers, and when to kill which process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from curator_chaos import processes
from curator_chaos.checks import nothing_runs
from curator_chaos.driver import Job
from curator_chaos.work import FILE_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from random import Random

__all__ = ["DEADLINE_S", "Driver", "Scene", "Source"]

DEADLINE_S = 120.0  # per run, on a busy machine
MOST_RUNS = 20  # per job
_POLL_S = 0.01
_HERE = Path(__file__).parents[1]


class Source(NamedTuple):
    """The input of a run, and its output without faults.

    Attributes:
        directory: Directory of the input.
        chapters: The names of all chapters.
        written: The contents of the output files by name.
    """

    directory: Path
    chapters: Sequence[str]
    written: Mapping[str, bytes]


class Driver:
    """A run in a separate process.

    Args:
        job: The run.
        scratch: Directory for its report and log.
        temporary: Directory for temporary files of the process and its descendants.
        file_limit: Maximum bytes of files of workers; 0 for no limit.
        environment: Environment variables for the process and its descendants.
    """

    def __init__(
        self,
        job: Job,
        scratch: Path,
        temporary: Path,
        file_limit: int = 0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        scratch.mkdir()
        self.job = job
        self._says, self.log = scratch / "says.json", scratch / "log.txt"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "curator_chaos.driver", job.dump(), str(self._says)],
                env={**_environment(temporary, file_limit), **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        processes.waited_for(self._process.pid)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def runs(self) -> bool:
        """Whether the process is still running."""
        return self._process.poll() is None

    def wait(self, seconds: float = DEADLINE_S) -> dict[str, Any]:
        """Wait for the process to end; return its report of the run."""
        code = self._process.wait(seconds)
        assert code == 0, f"the driver exited with {code}\n{self.log_text()}"
        says: dict[str, Any] = json.loads(self._says.read_bytes())
        return says

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        """Wait until a condition is true or the process has ended."""
        deadline = time.monotonic() + DEADLINE_S
        while self.runs and not is_so():
            assert time.monotonic() < deadline, self.log_text()
            time.sleep(_POLL_S)

    def lives_for(self, seconds: float) -> bool:
        """Wait some seconds; return whether the process is still running."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return True
        return False

    def kill(self) -> bool:
        """Send SIGKILL to the process; return whether it was still running."""
        self._process.kill()
        return self._process.wait() == -signal.SIGKILL

    def log_text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-6000:]


class Scene:
    """A test's runs: one pipeline, one output directory, one checkpoint.

    Args:
        directory: Directory of the test.
        temporary: Directory for temporary files of the runs.
        source: The input.
        rng: Random numbers of the test; determine everything that varies.

    Attributes:
        target_size: Target size of output files in bytes; 0 for one file per task.
    """

    def __init__(self, directory: Path, temporary: Path, source: Source, rng: Random) -> None:
        self.directory, self.temporary, self.source, self.rng = directory, temporary, source, rng
        self.out, self.dead, self.marks = (directory / name for name in ("out", "dead", "marks"))
        self.marks.mkdir()
        self.poison: dict[str, str] = {}
        self.target_size = 0
        self.drivers: list[Driver] = []

    def add_poison(self, share: float, faults: Sequence[str]) -> None:
        """Poison a share of the chapters, each with one of the faults in turn."""
        chosen = self.rng.sample(self.source.chapters, max(1, round(share * len(self.source.chapters))))
        self.poison = {name: faults[number % len(faults)] for number, name in enumerate(chosen)}

    def job(self, executor: str, pace_s: float = 0.0) -> Job:
        """Return a run of the pipeline that writes dead letters."""
        return Job(
            executor=executor,
            source=str(self.source.directory),
            out=str(self.out),
            checkpoint=str(self.directory / "checkpoint"),
            marks=str(self.marks),
            dead=str(self.dead),
            poison=self.poison,
            pace_s=pace_s,
            target_size=self.target_size,
        )

    def start(self, job: Job, file_limit: int = 0, environment: Mapping[str, str] | None = None) -> Driver:
        """Start a run."""
        scratch = self.directory / f"driver-{len(self.drivers)}"
        driver = Driver(job, scratch, self.temporary, file_limit, environment)
        self.drivers.append(driver)
        return driver

    def run(self, job: Job, file_limit: int = 0) -> dict[str, Any]:
        """Run a job to the end; return the report of its driver."""
        return self.start(job, file_limit).wait()

    def outlast(
        self,
        job: Job,
        each_second: Callable[[], object] = lambda: None,
        environment: Mapping[str, str] | None = None,
        ends: Sequence[str] = ("WorkerDiedError",),
    ) -> list[dict[str, Any]]:
        """Repeat a run until the fault no longer ends it; return the report of each driver, the last of a complete run.

        Args:
            job: The run.
            each_second: Called once per second.
            environment: See `Driver`.
            ends: Names of the errors with which the fault ends a run.
        """
        told = []
        for _ in range(MOST_RUNS):
            driver = self.start(job, environment=environment)
            while driver.lives_for(1.0):
                each_second()
            told.append(driver.wait())
            if told[-1]["error"] not in ends:
                return told
            nothing_runs()
        raise AssertionError(f"after {MOST_RUNS} runs: {told[-1]['message']}")

    def reach_a_moment(self, driver: Driver, *, before: float = 1.0) -> None:
        """Wait until a random number of further documents has been written, or the driver has ended.

        Args:
            driver: The run.
            before: The share of all documents after which to wait no longer.
        """
        there, last = self.written, int(before * self.expected)
        moment = self.rng.randint(min(there + 1, last), last)
        driver.wait_until(lambda: self.written >= moment)

    @property
    def written(self) -> int:
        """The number of documents in complete files."""
        if self.target_size:
            return sum(path.read_bytes().count(b"\n") for path in self.out.glob("part-*"))
        return files_in(self.out)

    @property
    def expected(self) -> int:
        """The number of documents after a complete run."""
        return len(self.source.chapters) - len(self.poison)

    def workers(self) -> list[int]:
        """Return the process ids of live workers whose stages have left a mark."""
        pids = {int(mark.name.rpartition("-")[2]) for mark in self.marks.glob("*-*")}
        return sorted({worker for pid in pids if (worker := processes.worker_of(pid))})

    def without_failures_kept(self, job: Job) -> Job:
        """Return the same run, but ending at the first failure."""
        return replace(job, dead="")


def files_in(directory: str | Path) -> int:
    """Return the number of complete output files."""
    try:
        return sum(not name.startswith(".") for name in os.listdir(directory))  # noqa: PTH208 - called very often
    except FileNotFoundError:
        return 0


def _environment(temporary: Path, file_limit: int) -> dict[str, str]:
    return {
        "RAY_TMPDIR": tempfile.gettempdir(),  # the paths of Ray's sockets would be too long in TMPDIR
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(_HERE), os.environ.get("PYTHONPATH")])),
        "RAY_USAGE_STATS_ENABLED": "0",
        "TMPDIR": str(temporary),
        FILE_LIMIT: str(file_limit),
    }
