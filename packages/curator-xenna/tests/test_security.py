# SPDX-License-Identifier: Apache-2.0
"""What an embedded Ray starts, and that only the run itself may connect to it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import ray
from tests.waiting import DEADLINE_S

from curator_core import Pipeline, Task, processing_stage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from curator_xenna import XennaExecutor

LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
LISTENS = "0A"

STRANGER = """
import sys
import ray

try:
    ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
    print("let in")
except Exception as error:
    while error is not None:  # the outer exceptions of Ray do not name the cause
        print("refused:", type(error).__name__, error)
        error = error.__cause__ or error.__context__
"""


@processing_stage(num_workers=1)
def say(task: Task[Any]) -> Task[Any]:
    return Task(data=os.environ.get("RAY_AUTH_TOKEN", ""))


@pytest.fixture(scope="module")
def token(executor: XennaExecutor) -> Iterator[str]:
    """The token of a running embedded Ray."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
            patch.delenv(name, raising=False)
        (task,) = Pipeline("security", [say]).run(executor, [Task(data=None)])
        yield task.data


HASTY = {"RAY_NUM_REDIS_GET_RETRIES": "2"}  # by default Ray tries twenty times, once a second, before it fails
TOKENS = {
    "no": {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "", **HASTY},
    "another": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64, **HASTY},
    "the right": {"RAY_AUTH_MODE": "token"},
}


@pytest.fixture(scope="module")
def answers(token: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The responses to processes that connect to the Ray, by their token."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    kept["HOME"] = str(tmp_path_factory.mktemp("home"))
    command = [sys.executable, "-c", STRANGER, ray.get_runtime_context().gcs_address]
    tried = {
        name: subprocess.Popen(
            command, env={**kept, "RAY_AUTH_TOKEN": token, **shown}, stdout=subprocess.PIPE, text=True
        )
        for name, shown in TOKENS.items()
    }
    return {name: process.communicate(timeout=DEADLINE_S)[0] for name, process in tried.items()}


def listeners(port: int) -> set[str]:
    """Return the addresses on which a process listens at a port, over IPv4 and IPv6, in the kernel's format."""
    files = [file for file in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")) if file.exists()]
    lines = [line.split() for file in files for line in file.read_text().splitlines()[1:]]
    listening = [line[1].split(":") for line in lines if line[3] == LISTENS]
    return {address for address, hexadecimal in listening if int(hexadecimal, 16) == port}


def test_the_token_is_random_and_not_left_in_the_environment(token):
    assert re.fullmatch("[0-9a-f]{64}", token)
    assert "RAY_AUTH_TOKEN" not in os.environ
    assert "RAY_AUTH_MODE" not in os.environ


@pytest.mark.parametrize("shown", ["no", "another"])
def test_a_connection_without_the_token_is_rejected(answers, shown):
    assert answers[shown].startswith("refused: ")
    assert "token" in answers[shown].lower()


def test_a_connection_with_the_token_is_accepted(answers):
    assert answers["the right"] == "let in\n"


def test_the_dashboard_needs_the_token_and_listens_on_loopback_only(token):
    assert token
    host, _, port = ray._private.worker._global_node.webui_url.rpartition(":")
    assert host == "127.0.0.1"
    assert listeners(int(port))
    assert listeners(int(port)) <= LOOPBACK
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://{host}:{port}/api/v0/actors", timeout=30)
    assert refused.value.code in (401, 403)


def test_the_embedded_ray_starts_only_what_a_run_needs(token, ray_servers):
    assert token
    running = ray_servers()
    assert "ray-dashboard-StateHead" in running  # Xenna queries it for its actors
    for unused in ("ray-dashboard-JobHead", "ray-dashboard-ServeHead", "monitor.py"):  # matches log_monitor.py as well
        assert unused not in running


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_the_check_finds_a_listener_on_all_interfaces(family):
    if family == socket.AF_INET6 and not Path("/proc/net/if_inet6").exists():
        pytest.skip("this machine has no IPv6")
    with socket.socket(family) as server:
        server.bind(("", 0))
        server.listen()
        assert not listeners(server.getsockname()[1]) <= LOOPBACK
