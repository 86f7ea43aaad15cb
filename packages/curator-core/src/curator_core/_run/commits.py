# SPDX-License-Identifier: Apache-2.0
"""Publishes, in the driver, files of the last stage that contain several tasks each.

A file is published once the driver has counted the batch that wrote it, and the tasks in it are not written again: if
such a task is processed again, because a worker or a driver died, the adapter skips the stage and returns the output of
the first time. With a checkpoint, the journal records a file before it is published, so that the next run can publish
it if this one is killed in between.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from curator_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Self

    from curator_core._checkpoint.store import OpenCheckpoint
    from curator_core._files.staging import Staging
    from curator_core._plan.plan import Plan
    from curator_core._reports.batch import BatchReport, WrittenFiles
    from curator_core._shard import Shard

__all__ = ["Commits"]

logger = logging.getLogger(__name__)


class Commits:
    """The files that one run publishes. Calls must come from one thread at a time.

    Args:
        staging: The files that are not published yet.
        store: The run's checkpoint, if it has one.

    Attributes:
        written: Tasks that may be processed again, and the output paths of each: one path for the first task of a file,
            none for the others.
    """

    def __init__(self, staging: Staging, store: OpenCheckpoint | None) -> None:
        self._staging = staging
        self._store = store
        self.written: Mapping[str, list[str]] = {}

    @classmethod
    def open(cls, plan: Plan, run_id: str, shard: Shard | None, store: OpenCheckpoint | None) -> tuple[Self, Plan]:
        """Finish the commits of earlier runs with the checkpoint; return the commits of this run, and its plan.

        Raises:
            ConfigurationError: The directory has files of other runs, which may contain the same tasks.
            DataError: The directory cannot be read or written.
        """
        *before, compiled = plan.stages
        writer: Any = compiled.stage
        stage, staging = writer.staged(run_id, shard)
        commits = cls(staging, store)
        commits._take_over()
        staging.prepare()
        return commits, replace(plan, stages=(*before, replace(compiled, stage=stage)))

    def _take_over(self) -> None:
        """Read from the journal which files earlier runs wrote, and make the directory match."""
        store, earlier = self._store, dict[str, list[str]]()
        written = {}
        if store is not None:
            for label, tasks in store.written():
                urls = earlier.setdefault(label, [])
                for source_id, task_id, paths in tasks:
                    urls += paths
                    if not store.is_finished(source_id):
                        written[task_id] = paths
        self._staging.check_alone(earlier)
        self._staging.recover(earlier)
        self.written = written
        if store is not None:
            store.write_ahead(self._staging.label, [])  # so that the next run knows which directory to remove

    def enter(self, report: BatchReport, source_of: Callable[[str], str | None]) -> None:
        """Publish the files that a batch wrote.

        Args:
            report: The batch's report, before it counts toward the progress of source tasks.
            source_of: Returns the source task that a task descends from.

        Raises:
            DataError: The journal cannot be written, or a file cannot be renamed.
        """
        new = [each for each in report.written_files if each.input_id not in self.written]
        urls = [url for each in new for url in each.paths]
        if not urls or report.is_retried:
            return
        if self._store is not None:
            self._store.write_ahead(
                self._staging.label, [[source_of(each.input_id), each.input_id, each.paths] for each in new]
            )
        self._staging.publish(urls)

    def restart(self, entered: Iterable[WrittenFiles]) -> None:
        """Remember the files written for source tasks that begin again.

        Files written by earlier runs are kept, because the source may not have made their source tasks yet.
        """
        self.written = {**self.written, **{each.input_id: each.paths for each in entered}}

    def close(self) -> None:
        """Remove staged files that were not published. A failure is only logged: published files are complete."""
        try:
            self._staging.remove()
        except DataError as exc:
            logger.warning("could not remove the staged files of the run: %s", exc)
