# SPDX-License-Identifier: Apache-2.0
"""The lifecycle of Ray: started, joined, kept, shut down; and what is left after Ctrl-C."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.waiting import DEADLINE_S, wait_until

from curator_core import ClusterError, ExecutorError, Pipeline, ProcessingStage, Task
from curator_xenna import XennaExecutor
from curator_xenna._cluster.ray_cluster import _NEEDED_BY_XENNA

SCRIPTS = Path(__file__).parent / "scripts"


class Same(ProcessingStage[Task[int], Task[int]]):
    def process(self, task: Task[int]) -> Task[int]:
        return task


@pytest.fixture
def no_ray_yet(executor: XennaExecutor) -> None:
    """Stop the shared Ray, because a process has one connection at a time. The next test starts it again."""
    executor.__exit__()
    executor.__enter__()


def run(config: dict[str, Any] | None = None) -> Any:
    return Pipeline("p", [Same()]).run(XennaExecutor(config), [Task(data=1)])


@pytest.mark.usefixtures("no_ray_yet")
@pytest.mark.parametrize("how", ["environment", "setting"])
def test_an_address_where_nobody_is(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as bound:  # not listening: no other process gets the port either
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        if how == "environment":
            monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(ClusterError, match="no Ray cluster answered") as caught:
            run({"address": address} if how == "setting" else None)
        assert address in str(caught.value)
        assert "ray start --head" in str(caught.value.hint)


@pytest.mark.usefixtures("no_ray_yet")
def test_ray_client_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://127.0.0.1:10001")
    with pytest.raises(ExecutorError, match="Ray Client") as caught:
        run()
    assert caught.value.given == "'ray://127.0.0.1:10001'"


def ray_servers() -> str:
    """Return the joined command lines of Ray's processes below this process."""
    lines = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            lines.append(" ".join(child.cmdline()))
    return "\n".join(lines)


def test_the_embedded_ray_starts_only_what_a_run_needs(executor: XennaExecutor) -> None:
    Pipeline("p", [Same()]).run(executor, [Task(data=1)])
    running = ray_servers()
    assert "ray-dashboard-StateHead" in running  # Xenna queries it for its actors
    for unused in ("ray-dashboard-JobHead", "ray-dashboard-ServeHead", "monitor.py"):  # matches log_monitor.py as well
        assert unused not in running


@pytest.mark.everything
@pytest.mark.usefixtures("no_ray_yet")
def test_the_dashboard_and_the_workers_output_can_be_had() -> None:
    with XennaExecutor({"dashboard": True, "log_to_driver": True}) as executor:
        Pipeline("p", [Same()]).run(executor, [Task(data=1)])
        running = ray_servers()
    for wanted in ("ray-dashboard-NodeHead", "ray-dashboard-JobHead", "log_monitor.py"):
        assert wanted in running


@pytest.mark.usefixtures("no_ray_yet")
def test_an_embedded_ray_that_does_not_start_leaves_nothing() -> None:
    with pytest.raises(ClusterError, match=r"the embedded Ray did not start: .*memory"):
        run({"object_store_memory": 1})  # detected when parts of Ray are running
    psutil.wait_procs(psutil.Process().children(recursive=True), timeout=20)
    assert "gcs_server" not in ray_servers()
    assert "raylet" not in ray_servers()


def of_this_mark(mark: str) -> list[psutil.Process]:
    """Return the process that was started with the mark in its environment, and its descendants."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("CURATOR_TEST_MARK") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture
def mark() -> Iterator[str]:
    mark = uuid.uuid4().hex
    yield mark
    for process in of_this_mark(mark):
        process.kill()


def all_end(mark: str) -> list[str]:
    """Wait for all processes with the mark to end; return those that do not."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        left = of_this_mark(mark)
        if not left:
            return []
        psutil.wait_procs(left, timeout=1)
    return [" ".join(process.cmdline())[:100] for process in of_this_mark(mark)]


@pytest.mark.parametrize(
    ("number", "codes", "told"),
    [
        (signal.SIGINT, (-signal.SIGINT, 130), "interrupted; work done so far:"),
        pytest.param(signal.SIGTERM, (143,), "terminated by SIGTERM; work done", marks=pytest.mark.everything),
        pytest.param(signal.SIGUSR1, (138,), "preempted by SIGUSR1; work done", marks=pytest.mark.everything),
    ],
)
def test_a_signal_ends_the_run(mark: str, tmp_path: Path, number: int, codes: tuple[int, ...], told: str) -> None:
    ready = tmp_path / "ready"
    running = subprocess.Popen(
        [sys.executable, str(SCRIPTS / "interrupted.py"), str(ready)],
        env={**os.environ, "CURATOR_TEST_MARK": mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    wait_until(lambda: ready.exists() or running.poll() is not None)
    running.send_signal(number)
    output, _ = running.communicate(timeout=DEADLINE_S)
    assert running.returncode in codes, output
    assert told in output
    assert "Quick" in output
    assert "Forever" in output
    assert all_end(mark) == []


@pytest.fixture
def short_directory() -> Iterator[Path]:
    """A short directory for Ray's sockets, whose paths must have fewer than 108 characters."""
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as directory:
        yield Path(directory)


def test_joins_the_ray_at_the_address_and_leaves_it_running(
    mark: str,
    run_script: Callable[..., Any],
    workers_left: Callable[[psutil.Process], list[str]],
    short_directory: Path,
    tmp_path: Path,
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # A separate head, started like an operator would.
    ray = [str(Path(sys.executable).parent / "ray"), "start", "--head", f"--port={port}", "--num-cpus=2"]
    ray += ["--include-dashboard=true", "--dashboard-port=0", "--disable-usage-stats", "--block"]
    output = tmp_path / "output"
    with output.open("w") as stream:
        head = subprocess.Popen(
            [*ray, f"--temp-dir={short_directory}"],
            env={**os.environ, "CURATOR_TEST_MARK": mark, "RAY_AUTH_MODE": "disabled", **_NEEDED_BY_XENNA},
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_for_head(head, output)
        said = run_script("joins.py", env={"RAY_ADDRESS": f"127.0.0.1:{port}"})
        idle = "num_cpus=64, dashboard=True have no effect on an existing Ray cluster"
        assert said == {
            "size": 5,
            "planned_with": "available on each node: 1 CPUs and 0 GPUs",
            "environ_kept": True,
            "connected": True,
            "warnings": [idle],
        }
        assert head.poll() is None
        rays = psutil.Process(head.pid)
        assert "raylet" in {process.name() for process in rays.children(recursive=True)}  # the parent of workers
        assert workers_left(rays) == []
    finally:
        head.terminate()
        head.wait(DEADLINE_S)
    assert all_end(mark) == []


def _wait_for_head(head: subprocess.Popen[bytes], output: Path) -> None:
    wait_until(lambda: "Ray runtime started" in output.read_text() or head.poll() is not None)
    assert head.poll() is None, output.read_text()
