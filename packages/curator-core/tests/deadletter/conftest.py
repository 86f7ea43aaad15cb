# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from curator_core._dead_letter import DeadLetter
from curator_core.deadletter.letter import Letter
from curator_core.deadletter.payload import pack_task
from curator_core.deadletter.writer import LetterBox
from curator_core.tasks import new_state, stamp

_NUMBERS = itertools.count()


@pytest.fixture(params=["local", "memory"])
def dead(request, tmp_path) -> Iterator[str]:
    """A directory for dead letters that does not exist yet, on the local filesystem and on another one."""
    if request.param == "local":
        yield str(tmp_path / "dead[1]")  # its name looks like a pattern
        return
    url = f"memory://dead-{next(_NUMBERS)}[1]"
    yield url
    fs = fsspec.filesystem("memory")
    for name in fs.find(url):
        fs.rm_file(name)


@pytest.fixture
def fail() -> Callable[..., str]:
    """A function that writes the letter of a task that failed in a stage, and returns the directory."""

    def write(path: object, task: object, task_id: str = "0", max_bytes: int = 1 << 20, **known: object) -> str:
        stamp(task, new_state(task_id, metadata=task._state[2]))
        box = LetterBox(DeadLetter(path))
        box.put(Letter(**{"task_id": task_id, "stage": "S", **known}), pack_task(task, max_bytes))
        box.close()
        return str(path)

    return write


@pytest.fixture
def marker(tmp_path) -> Path:
    """A path that exists after a payload was executed."""
    return tmp_path / "executed"
