# SPDX-License-Identifier: Apache-2.0
"""Setup for all tests: how many examples hypothesis tries, and a check that a session leaves nothing behind.

pytest …                                  few examples, for every change
pytest … --hypothesis-profile whole       few examples, and the tests that take long
pytest … --hypothesis-profile everything  many examples, and the tests that take long: used by `nox -s everything`
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

# Every process that a session starts, at any depth and however detached, inherits this variable.
MARK = "CURATOR_TEST_SESSION"
SCRATCH = pytest.StashKey[Path]()
SHARED_MEMORY_BEFORE = pytest.StashKey[set[Path]]()

# Ray's agents take a while to notice that their cluster is gone, longer on a busy machine.
ENDS_WITHIN_S = 60
LONG_S = 1800  # for a test of many examples
OF_RAY = ("ray", "ray_pipeline", "pymp-*")  # directories of Ray and Xenna, and what a killed dashboard leaves

EVERYTHING = "everything"  # both a profile of hypothesis and a marker

# A busy machine is not a failure: neither the examples nor their generation have time limits.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("few", PATIENT, max_examples=20)
settings.register_profile("whole", PATIENT, max_examples=20)
settings.register_profile(EVERYTHING, PATIENT, max_examples=400)
settings.load_profile("few")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect tests that take too long for every change, except those that are requested by name."""
    if config.getoption("--hypothesis-profile") in ("whole", EVERYTHING):
        for item in items:  # many examples take a long time
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(LONG_S))
        return
    named = tuple(argument for argument in config.args if "::" in argument)
    left_out = [item for item in items if item.get_closest_marker(EVERYTHING) and not item.nodeid.startswith(named)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_configure(config: pytest.Config) -> None:
    if MARK in os.environ:
        return  # a worker of pytest-xdist, or a test that runs pytest: the outermost session does the check
    temporary = tempfile.gettempdir()
    scratch = Path(tempfile.mkdtemp(prefix="c-"))  # short: it contains Ray's sockets, whose paths have a maximum length
    (scratch / "tmp").mkdir()
    config.stash[SCRATCH] = scratch
    config.stash[SHARED_MEMORY_BEFORE] = shared_memory()
    os.environ |= {
        MARK: scratch.name,
        "SPT_NOENV": "1",  # setting a process title, as Ray's processes do, would overwrite the mark
        "TMPDIR": str(scratch / "tmp"),
        # Has Ray's record of its current cluster, which would lead later uses of Ray on this machine to a dead one.
        "RAY_TMPDIR": str(scratch),
        "PYTEST_DEBUG_TEMPROOT": temporary,  # files of failed tests are kept in their usual place
    }
    tempfile.tempdir = None  # so that it is determined again
    signal.signal(signal.SIGTERM, interrupt)


def interrupt(number: int, frame: FrameType | None) -> None:
    """End as after Ctrl-C: tear down all fixtures, and run the check below."""
    raise KeyboardInterrupt(f"signal {number}")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """Fail the session if anything is left after all fixtures are torn down, and remove it."""
    try:
        yield
    finally:
        scratch = session.config.stash.get(SCRATCH, None)
        if scratch is not None:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the session is already ending
            left = [*processes_left(scratch.name), *files_left(session.config, scratch)]
            shutil.rmtree(scratch, ignore_errors=True)
            if left and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
                session.exitstatus = pytest.ExitCode.TESTS_FAILED
            tell(session.config, left)


def tell(config: pytest.Config, left: list[str]) -> None:
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and left:
        reporter.section("left behind by this session, and removed", red=True)
        for each in left:
            reporter.line(each)


def processes_left(mark: str) -> list[str]:
    """Wait for all processes that this session started to end; kill the rest, and return their descriptions."""
    psutil.wait_procs(started_by(mark), timeout=ENDS_WITHIN_S)
    left = []
    for process in started_by(mark):
        with suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE:
                left.append(f"process {process.pid}: {' '.join(process.cmdline())[:160]}")
                process.kill()
    return left


def started_by(mark: str) -> list[psutil.Process]:
    """Return the processes with the mark of a session, and those that it forked, except itself and its trackers."""
    this = psutil.Process()
    found = {process.pid: process for process in this.children(recursive=True)}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == mark:
                found[process.pid] = process
    found.pop(this.pid, None)
    return [process for process in found.values() if not is_tracker(process, this)]


def is_tracker(process: psutil.Process, session: psutil.Process) -> bool:
    """Whether it is a resource tracker, which multiprocessing runs for the lifetime of a process."""
    with suppress(psutil.Error):
        return process.ppid() == session.pid and "resource_tracker" in " ".join(process.cmdline())
    return False


def files_left(config: pytest.Config, scratch: Path) -> list[str]:
    """Return temporary files, and files in shared memory whose process is gone."""
    temporary = [path for path in (scratch / "tmp").iterdir() if not any(path.match(name) for name in OF_RAY)]
    orphaned = [path for path in shared_memory() - config.stash[SHARED_MEMORY_BEFORE] if not is_owned(path)]
    for path in orphaned:
        with suppress(OSError):  # its own session may remove it as well
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return [f"file {path}" for path in (*temporary, *orphaned)]


def shared_memory() -> set[Path]:
    """Return the files that LocalExecutor's processes share, of any session."""
    return set(Path("/dev/shm").glob("curator-*"))  # noqa: S108 - shared memory is there


def is_owned(path: Path) -> bool:
    """Whether the process that its name contains is alive: then it belongs to another session."""
    number = path.name.split("-")[1]
    return number.isdecimal() and psutil.pid_exists(int(number))
