# SPDX-License-Identifier: Apache-2.0
"""The lifecycle of Ray: started and shut down; and what is left after Ctrl-C. `test_two_nodes` joins a Ray."""

from __future__ import annotations

import inspect
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from tests.waiting import DEADLINE_S, wait_until

from curator_core import ClusterError, ExecutorError, Pipeline, ProcessingStage, Task
from curator_xenna import XennaExecutor

SCRIPTS = Path(__file__).parent / "scripts"


class Same(ProcessingStage[Task[int], Task[int]]):
    def num_workers(self) -> int:
        return 1  # starts faster than the maximum number of workers

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
def test_an_address_without_a_ray_is_an_error(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_ray_client_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://127.0.0.1:10001")
    with pytest.raises(ExecutorError, match="Ray Client") as caught:
        run()
    assert caught.value.given == "'ray://127.0.0.1:10001'"


@pytest.mark.usefixtures("no_ray_yet")
def test_an_embedded_ray_that_fails_to_start_leaves_nothing(ray_servers: Callable[[], str]) -> None:
    with pytest.raises(ClusterError, match=r"the embedded Ray did not start: .*memory"):
        run({"ray": {"object_store_memory": 1}})  # detected when parts of Ray are running
    psutil.wait_procs(psutil.Process().children(recursive=True), timeout=20)
    assert "gcs_server" not in ray_servers()
    assert "raylet" not in ray_servers()


@pytest.mark.everything
@pytest.mark.usefixtures("no_ray_yet")
def test_an_embedded_ray_may_take_longer_to_start_than_ray_itself_allows() -> None:
    def stop_raylet() -> None:
        raylet = own_raylet()
        raylet.suspend()
        time.sleep(35)  # Ray waits for half a minute
        raylet.resume()

    with ThreadPoolExecutor(1) as pool:
        stopped = pool.submit(stop_raylet)
        result = run()
        stopped.result()
    assert len(result) == 1


@pytest.mark.usefixtures("no_ray_yet")
def test_an_embedded_ray_starts_again_if_its_raylet_ends(caplog: pytest.LogCaptureFixture) -> None:
    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(lambda: own_raylet().kill())
        result = run()
        killed.result()
    assert len(result) == 1
    assert [record.message for record in caplog.records if record.name.startswith("curator_xenna")] == [
        "the embedded Ray did not start, trying again: raylet ended with exit code -9 while Ray started"
    ]


def own_raylet() -> psutil.Process:
    """Wait until this process has started a raylet, and return it."""

    def raylets() -> list[psutil.Process]:
        ours = {"name": "raylet", "ppid": os.getpid()}
        return [each for each in psutil.process_iter(["name", "ppid"]) if each.info == ours]

    wait_until(raylets)
    (raylet,) = raylets()
    return raylet


@pytest.mark.usefixtures("no_ray_yet")
def test_every_option_of_ray_that_is_accepted_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    signature = inspect.signature(ray.init)
    options = {name: each.default for name, each in signature.parameters.items() if is_accepted(name, each.default)}
    received: dict[str, Any] = {}

    def init(*args: Any, **given: Any) -> None:
        received.update(signature.bind(*args, **given).arguments)
        raise RuntimeError("not started")

    init.__signature__ = signature  # type: ignore[attr-defined]
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(ClusterError, match="the embedded Ray did not start: not started"):
        run({"ray": {**options, "configure_logging": False}})
    assert options.keys() >= {"configure_logging", "num_gpus", "object_store_memory", "runtime_env"}
    assert options.keys() <= received.keys()
    assert received["configure_logging"] is False


def is_accepted(option: str, value: Any) -> bool:
    try:
        XennaExecutor({"ray": {option: value}})
    except ExecutorError:
        return False
    return True


@pytest.mark.everything
@pytest.mark.usefixtures("no_ray_yet")
def test_dashboard_and_worker_output_can_be_enabled(ray_servers: Callable[[], str]) -> None:
    with XennaExecutor({"dashboard": True, "log_to_driver": True}) as executor:
        Pipeline("p", [Same()]).run(executor, [Task(data=1)])
        running = ray_servers()
    for wanted in ("ray-dashboard-NodeHead", "ray-dashboard-JobHead", "log_monitor.py"):
        assert wanted in running


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
