# SPDX-License-Identifier: Apache-2.0
"""Runs a contender in a separate process, measures its memory, and leaves nothing of it behind.

Workers that outlive their run use CPU time and would distort the figures of the next contender.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["Finished", "Neighbours", "run_alone", "scratch_directory"]

logger = logging.getLogger(__name__)

MARKER = "CURATOR_BENCH_RUN"  # environment variable that all processes of a run inherit
SAMPLE_S = 1.0  # seconds between two memory samples: frequent enough, without adding load


@dataclass(frozen=True, slots=True)
class Finished:
    """The result of a process.

    Attributes:
        status: ``"ok"``, ``"failed"``, or ``"timeout"``.
        code: The exit status; negative if a signal killed it.
        stdout: Its output.
        seconds: How long it lived.
        peak_bytes: Peak memory of the process and its descendants, without shared memory.
        left_over: Number of its processes that had to be killed.
    """

    status: str
    code: int
    stdout: str
    seconds: float
    peak_bytes: int
    left_over: int


def run_alone(command: Sequence[str], env: Mapping[str, str], timeout: float, log: Path) -> Finished:
    """Run a command to the end, then kill any processes that it left running.

    Args:
        command: The command.
        env: Its environment.
        timeout: Seconds after which it is killed.
        log: File for its stderr.
    """
    marker = uuid.uuid4().hex
    start = time.perf_counter()
    peak = 0
    with tempfile.TemporaryFile("w+") as stdout, log.open("w") as stderr:
        process = subprocess.Popen(command, env={**env, MARKER: marker}, stdout=stdout, stderr=stderr)
        try:
            while process.poll() is None and time.perf_counter() - start < timeout:
                peak = max(peak, _private_bytes(process.pid))
                _wait(process, SAMPLE_S)
            timed_out = process.poll() is None
            seconds = time.perf_counter() - start
        finally:  # even after Ctrl-C
            if process.poll() is None:
                process.kill()
                process.wait()
            left_over = _end_all(marker)
        stdout.seek(0)
        printed = stdout.read()
    status = "timeout" if timed_out else "ok" if process.returncode == 0 else "failed"
    return Finished(status, process.returncode, printed, seconds, peak, left_over)


class Neighbours:
    """Other instances of Ray on this machine. They slow down runs, and Xenna fails if there are two.

    Args:
        patience: Seconds to wait for them to end; after the first unsuccessful wait there are no others.
    """

    def __init__(self, patience: float = 120.0) -> None:
        self._patience = patience

    def wait(self) -> None:
        """Wait for them to end."""
        until = time.monotonic() + self._patience
        while self._are_there():
            if time.monotonic() > until:
                logger.warning("another Ray is running on this machine: figures will be inaccurate, and Xenna may fail")
                self._patience = 0.0
                return
            time.sleep(1)

    @staticmethod
    def _are_there() -> bool:
        import psutil

        return any(process.info["name"] == "gcs_server" for process in psutil.process_iter(["name"]))


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """Create a directory for one run. Its path is short, because Ray's socket paths have at most 107 characters."""
    path = Path(tempfile.mkdtemp(prefix="cb-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return


def _private_bytes(pid: int) -> int:
    """Return the memory of a process and its descendants, without shared pages, which would count several times."""
    import psutil

    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return 0
    total = 0
    for process in family:
        try:
            memory = process.memory_info()
        except psutil.Error:  # it has just ended
            continue
        total += memory.rss - getattr(memory, "shared", 0)
    return total


def _end_all(marker: str) -> int:
    """Kill all processes that inherited the marker; return their number."""
    ended: set[int] = set()
    for _ in range(100):
        found = _marked(marker)
        if not found:
            break
        for pid in found:
            _kill(pid)
        ended.update(found)
        time.sleep(0.1)
    return len(ended)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _marked(marker: str) -> list[int]:
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            # A zombie has no environment, and uses no resources.
            if process.environ().get(MARKER) == marker:
                found.append(process.pid)
        except psutil.Error:  # owned by another user, or gone
            continue
    return found
