# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from .machine import Script, files_of, workers_of  # noqa: TID252 - no import can write this directory's name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    assert workers_of(os.getpid()) == []
    assert files_of(os.getpid()) == []
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("curator-")] == []


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Callable[..., Script]]:
    started: list[Script] = []

    def start(code: str, prefix: Sequence[str] = ()) -> Script:
        started.append(Script(tmp_path, code, prefix))
        return started[-1]

    yield start
    for each in started:
        with suppress(ProcessLookupError):
            os.killpg(each.process.pid, signal.SIGKILL)
        each.process.communicate()
