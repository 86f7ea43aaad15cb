# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import curator_core

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager


@pytest.fixture
def umask() -> Callable[[int], AbstractContextManager[None]]:
    return _umask


@contextmanager
def _umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.fixture
def python() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """A function that runs code in a separate Python process, which is killed at the end of the test."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, *arguments: object, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(curator_core.__file__).parents[1]), **environment},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(params=["link", "dangling link", "directory", "pipe"])
def not_a_file(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Path], None]:
    """A function that creates something in place of a file that no file of a checkpoint may be."""
    elsewhere = tmp_path / "elsewhere"

    def put(path: Path) -> None:
        if request.param == "directory":
            path.mkdir()
        elif request.param == "pipe":
            os.mkfifo(path)
        else:
            if request.param == "link":
                elsewhere.write_text("mine\n")
            path.symlink_to(elsewhere)

    yield put
    if request.param == "link":
        assert elsewhere.read_text() == "mine\n"
    else:
        assert not elsewhere.exists()
