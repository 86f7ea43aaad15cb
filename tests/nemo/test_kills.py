# SPDX-License-Identifier: Apache-2.0
"""Workers and drivers that are killed while tasks are joined: a run with a checkpoint has each row once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from nemo_curator.pipeline import Pipeline
from tests.nemo.library import Add, NamedSource, Numbers, Pack, Writes
from tests.waiting import wait_until

from curator_core import LocalExecutor

COUNT = 60
DRIVER = "import sys; from tests.nemo.test_kills import drive; drive(*sys.argv[1:])"


class KillsOnce(Add):
    """Kills its worker on one task, the first time."""

    name = "kills_once"

    def __init__(self, marker: Path) -> None:
        super().__init__(0)
        self.marker = str(marker)

    def process(self, task: Numbers) -> Numbers:
        if COUNT // 2 in task.data:
            try:
                Path(self.marker).touch(exist_ok=False)
            except FileExistsError:
                return task
            os.kill(os.getpid(), signal.SIGKILL)
        return task


def rows_of(result: list[Any]) -> list[int]:
    """Return the rows in the files that a result lists."""
    paths = [path for task in result for path in task.data]
    assert len(paths) == len(set(paths))
    return sorted(int(line) for path in paths for line in Path(path).read_text().splitlines())


@pytest.mark.parametrize("on", ["two workers", "xenna"])
def test_worker_that_is_killed_while_tasks_are_joined(on, request, tmp_path):
    executor = request.getfixturevalue("xenna") if on == "xenna" else LocalExecutor(workers=2)
    out = tmp_path / "out"
    out.mkdir()
    stages = [NamedSource(range(COUNT)), Pack(), KillsOnce(tmp_path / "killed"), Writes(str(out))]
    result = Pipeline("it", stages=stages).run(executor.with_(checkpoint=tmp_path / "it"))
    assert (tmp_path / "killed").exists()
    assert rows_of(result) == [*range(COUNT)]
    assert list(result.lost) == []
    assert result.accounting.unfinished == ()
    again = Pipeline("it", stages=stages).run(LocalExecutor().with_(checkpoint=tmp_path / "it"))
    assert len(again.accounting.resumed) == COUNT
    assert rows_of(again) == [*range(COUNT)]


def drive(directory: str, workers: str) -> None:
    """Run the pipeline of the test below."""
    stages = [NamedSource(range(COUNT)), Pack().with_(batch_size=3), Writes(f"{directory}/out", delay_s=0.01)]
    executor = LocalExecutor(workers=int(workers)).with_(checkpoint=f"{directory}/it")
    result = Pipeline("it", stages=stages).run(executor)
    Path(directory, "rows").write_text(repr((rows_of(result), len(result.accounting.resumed))))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_driver_that_is_killed_five_times_and_resumed(workers, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    moments = random.Random(7)
    command = [sys.executable, "-c", DRIVER, str(tmp_path), workers]
    for _ in range(5):
        written = len(list(out.iterdir())) + moments.randint(1, 4)
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True) as running:
            wait_until(lambda: len(list(out.iterdir())) >= written or running.poll() is not None)  # noqa: B023 - at once
            running.kill()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, timeout=120)
    rows, num_resumed = eval((tmp_path / "rows").read_text())  # noqa: S307 - written above
    assert rows == [*range(COUNT)]
    assert num_resumed > 0
