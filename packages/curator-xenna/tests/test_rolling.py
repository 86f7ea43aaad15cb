# SPDX-License-Identifier: Apache-2.0
"""Files of several tasks: each task is in one file, even if the worker that wrote it has died."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from curator_core import DocumentBatch, Pipeline, ProcessingStage, Resources, Task
from curator_core.io import JsonlWriter
from curator_xenna.compat import HAS_DESTROY

if TYPE_CHECKING:
    from curator_core import FileGroupTask
    from curator_xenna import XennaExecutor

SOURCES, CHILDREN = 20, 5


class Children(ProcessingStage[Task[int], DocumentBatch]):
    resources = Resources(cpus=0.3)

    def num_workers(self) -> int:
        return 1

    def process(self, task: Task[int]) -> list[DocumentBatch]:
        return [DocumentBatch([{"id": CHILDREN * task.data + child}]) for child in range(CHILDREN)]


class Mortal(JsonlWriter):
    """A writer whose worker dies once, at its third batch, whose files are complete.

    Args:
        path: See `JsonlWriter`.
        mark: A file that records that it has died.
        moment: ``"before"`` its report is sent, or ``"after"`` it was received and the files are published.
    """

    resources = Resources(cpus=0.3)
    isolated = False

    def __init__(self, path: Path, mark: Path, moment: str) -> None:
        super().__init__(path, target_size="1MB")
        self.mark, self.moment = mark, moment
        self.batches = 0

    def num_workers(self) -> int:
        return 1

    def setup(self, worker_metadata: Any) -> None:
        super().setup(worker_metadata)
        if self.moment == "after":
            from curator_xenna._session.worker import WorkerLink

            send = WorkerLink.send

            def send_and_die(link: WorkerLink, outputs: list[Any] | None, *, is_primary: bool) -> float | None:
                pace = send(link, outputs, is_primary=is_primary)
                self.die()
                return pace

            WorkerLink.send = send_and_die  # type: ignore[method-assign]  # only in this worker

    def process_batch(self, tasks: list[DocumentBatch]) -> Any:
        outputs = super().process_batch(tasks)
        self.batches += 1
        if self.moment == "before":
            self.die()
        return outputs

    def die(self) -> None:
        if self.batches == 3 and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("moment", ["before", pytest.param("after", marks=pytest.mark.everything)])
def test_each_task_is_written_once_if_a_writer_dies(executor: XennaExecutor, tmp_path: Path, moment: str) -> None:
    out, mark = tmp_path / "out", tmp_path / "died"
    writer = Mortal(out, mark, moment).with_(batch_size=7)
    tasks = [Task(data=number) for number in range(SOURCES)]
    result = Pipeline("rolling", [Children(), writer]).run(executor, tasks)
    assert mark.exists()
    files = [path for path in out.iterdir() if path.is_file()]
    lines = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    assert sorted(line["id"] for line in lines) == [*range(SOURCES * CHILDREN)]
    outputs: list[FileGroupTask] = list(result)
    assert sorted(path for task in outputs for path in task.data) == sorted(map(str, files))
    assert (len(outputs), list(result.lost)) == (SOURCES * CHILDREN, [])
    assert result.accounting.restarts == (0 if HAS_DESTROY else 1)
    assert [path for path in out.iterdir() if path.is_dir()] == []
