# SPDX-License-Identifier: Apache-2.0
"""One run in a process of its own, with what it takes of the memory, and nothing of it left behind.

Workers that outlive their run burn CPU and would spoil the next contender's figures.
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
SAMPLE_S = 1.0  # seconds between two looks at the memory: often enough, and no load


@dataclass(frozen=True, slots=True)
class Finished:
    """What became of a process.

    Attributes:
        status: ``"ok"``, ``"failed"`` or ``"timeout"``.
        code: What it ended with; below 0 where a signal ended it.
        stdout: What it printed.
        seconds: How long it lived.
        peak_bytes: The most memory that it and its children had for themselves at one time.
        left_over: Processes of it that had to be ended.
    """

    status: str
    code: int
    stdout: str
    seconds: float
    peak_bytes: int
    left_over: int


def run_alone(command: Sequence[str], env: Mapping[str, str], timeout: float, log: Path) -> Finished:
    """Run a command to its end, then end whatever it left running.

    Args:
        command: The command.
        env: Its environment.
        timeout: Seconds after which it is ended.
        log: Where its stderr goes.
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
        finally:  # also after Ctrl-C
            if process.poll() is None:
                process.kill()
                process.wait()
            left_over = _end_all(marker)
        stdout.seek(0)
        printed = stdout.read()
    status = "timeout" if timed_out else "ok" if process.returncode == 0 else "failed"
    return Finished(status, process.returncode, printed, seconds, peak, left_over)


class Neighbours:
    """Other Rays on this machine. They take time from what is measured, and Xenna fails where there are two.

    Args:
        patience: Seconds to wait for them to end; where that was in vain, nobody is waited for again.
    """

    def __init__(self, patience: float = 120.0) -> None:
        self._patience = patience

    def wait(self) -> None:
        """Wait for them to end."""
        until = time.monotonic() + self._patience
        while self._are_there():
            if time.monotonic() > until:
                logger.warning("another Ray runs on this machine: figures will be off, and Xenna may fail")
                self._patience = 0.0
                return
            time.sleep(1)

    @staticmethod
    def _are_there() -> bool:
        import psutil

        return any(process.info["name"] == "gcs_server" for process in psutil.process_iter(["name"]))


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """A directory for one run. Its path is short: Ray puts sockets there, whose paths may have 107 characters."""
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
    """Memory of a process and its descendants that none of them shares: shared pages would count many times."""
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
    """End all processes that inherited the marker; how many there were."""
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
            # One that is dead but not yet waited for has no environment, and takes nothing.
            if process.environ().get(MARKER) == marker:
                found.append(process.pid)
        except psutil.Error:  # another user's, or gone
            continue
    return found
