# SPDX-License-Identifier: Apache-2.0
"""A third-party trace server, Arize Phoenix, in a separate process, and a browser that opens its pages."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

START_S, ARRIVE_S, PAGE_S = 300, 60, 180  # deadlines; on a busy machine, Phoenix takes more than a minute to start
PAGE = 10  # spans per request: every trace takes several pages

if find_spec("phoenix") is None:
    collect_ignore_glob = ["test_*.py"]  # Phoenix is large: nox -s phoenix installs it


class Phoenix:
    """A running server.

    Args:
        url: The address on which it listens for spans and requests.
    """

    def __init__(self, url: str) -> None:
        import httpx

        self.url = url
        self._client = httpx.Client(base_url=url, trust_env=False, timeout=30)

    def spans(self, run_id: str) -> list[dict[str, Any]]:
        """Return the spans of a run's trace from the API."""
        found: list[dict[str, Any]] = []
        cursor = None
        while True:
            asked = {"limit": PAGE} | ({"cursor": cursor} if cursor else {})
            answer = self._client.get("/v1/projects/default/spans", params=asked).raise_for_status().json()
            found += [span for span in answer["data"] if span["context"]["trace_id"] == run_id]
            cursor = answer["next_cursor"]
            if cursor is None:
                return found

    def wait_for(self, run_id: str, enough: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
        """Return the spans of a run's trace once enough have arrived: they are stored a moment after they are sent."""
        deadline = time.monotonic() + ARRIVE_S
        while not enough(found := self.spans(run_id)):
            assert time.monotonic() < deadline, f"only {sorted(span['name'] for span in found)} arrived"
            time.sleep(0.2)
        return found

    def page_of(self, run_id: str) -> str:
        """Return the address of the page that shows a run's trace."""
        (project,) = self._client.get("/v1/projects").raise_for_status().json()["data"]
        return f"{self.url}/projects/{project['id']}/traces/{run_id}"

    def answers(self) -> bool:
        """Whether the server has started."""
        import httpx

        try:
            return self._client.get("/healthz").is_success
        except httpx.TransportError:
            return False

    def close(self) -> None:
        self._client.close()


def free_ports(number: int) -> list[int]:
    taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [server.getsockname()[1] for server in taken]
    for server in taken:
        server.close()
    return ports


@pytest.fixture(scope="session")
def phoenix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Phoenix]:
    port, grpc_port = free_ports(2)
    directory = tmp_path_factory.mktemp("phoenix")
    settings = {
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(port),
        "PHOENIX_GRPC_PORT": str(grpc_port),
        "PHOENIX_WORKING_DIR": str(directory),
        "TMPDIR": str(directory),  # Phoenix records its process there
        "PHOENIX_TELEMETRY_ENABLED": "false",
        "PHOENIX_ALLOW_EXTERNAL_RESOURCES": "false",
    }
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PHOENIX_", "OTEL_"))}
    log = directory / "log.txt"
    with log.open("wb") as output:
        command = [sys.executable, "-m", "phoenix.server.main", "serve"]
        process = subprocess.Popen(command, env=env | settings, stdout=output, stderr=output, cwd=directory)
    server = Phoenix(f"http://127.0.0.1:{port}")
    try:
        wait_until_it_answers(server, process, log)
        yield server
    finally:
        server.close()
        end(process)


def wait_until_it_answers(server: Phoenix, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while not server.answers():
        assert time.monotonic() < deadline, log.read_text()[-4000:]
        try:
            process.wait(0.25)
        except subprocess.TimeoutExpired:
            continue
        pytest.fail(f"Phoenix exited unexpectedly: {log.read_text()[-4000:]}")


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(20)


class Picture(NamedTuple):
    """A page as rendered by a browser."""

    path: Path
    document: str


@pytest.fixture
def photograph(tmp_path: Path) -> Callable[[str, Path], Picture]:
    """Return a function that takes a picture of a page once its requests are complete."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next((found for name in names if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")

    def take(url: str, path: Path) -> Picture:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        options = (
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            f"--user-data-dir={tmp_path / 'browser'}",
            "--no-proxy-server",
            "--window-size=1600,1250",
            "--virtual-time-budget=20000",  # ms on a clock that stops during requests
            "--dump-dom",
            f"--screenshot={path}",
        )
        done = subprocess.run([browser, *options, url], capture_output=True, text=True, timeout=PAGE_S, check=True)
        return Picture(path, done.stdout)

    return take
