# SPDX-License-Identifier: Apache-2.0
"""Publishes files of the last stage that hold several tasks each; in the driver.

A file is published once the driver has counted the batch that wrote it, and a task in it is not written again: when it
comes again, after a worker or a driver has died, the adapter skips the stage and outputs what the task gave the first
time. With a checkpoint the journal records a file before it is published, so that the next run can publish it if this
one is killed in between.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from curator_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Self

    from curator_core.checkpoint import OpenCheckpoint
    from curator_core.io.staging import Staging
    from curator_core.plan import Plan
    from curator_core.report import BatchReport, Manifest
    from curator_core.shard import Shard

__all__ = ["Commits"]

logger = logging.getLogger(__name__)


class Commits:
    """The files that one run publishes. Calls must come from one thread at a time.

    Args:
        staging: Where the files wait.
        store: The run's checkpoint, if it has one.

    Attributes:
        written: Tasks that may come again, and the paths that each has given: one for the first task of a file, none
            for the others.
    """

    def __init__(self, staging: Staging, store: OpenCheckpoint | None) -> None:
        self._staging = staging
        self._store = store
        self.written: Mapping[str, list[str]] = {}

    @classmethod
    def open(cls, plan: Plan, run_id: str, shard: Shard | None, store: OpenCheckpoint | None) -> tuple[Self, Plan]:
        """Finish what earlier runs with the checkpoint left undone; return the commits of a run and the plan for it.

        Raises:
            ConfigurationError: Files of other runs are there, which may hold the same tasks.
            DataError: The directory cannot be read, or written to.
        """
        *before, view = plan.stages
        writer: Any = view.stage
        stage, staging = writer.staged(run_id, shard)
        commits = cls(staging, store)
        commits._take_over()
        staging.prepare()
        return commits, replace(plan, stages=(*before, replace(view, stage=stage)))

    def _take_over(self) -> None:
        """Read from the journal what earlier runs have written, and bring the directory in line with it."""
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
            report: Its report; not yet entered with the source tasks.
            source_of: The source task that a task descends from.

        Raises:
            DataError: The journal cannot be written, or a file cannot be renamed.
        """
        new = [manifest for manifest in report.manifests if manifest.input_id not in self.written]
        urls = [url for manifest in new for url in manifest.paths]
        if not urls or report.is_retried:
            return
        if self._store is not None:
            self._store.write_ahead(
                self._staging.label, [[source_of(each.input_id), each.input_id, each.paths] for each in new]
            )
        self._staging.publish(urls)

    def begin_again(self, entered: Iterable[Manifest]) -> None:
        """Remember what was written of source tasks that begin again.

        What earlier runs have written stays: the source may not have made its source tasks yet.
        """
        self.written = {**self.written, **{manifest.input_id: manifest.paths for manifest in entered}}

    def close(self) -> None:
        """Remove staged files that were not published. A failure is logged: the published ones are complete anyway."""
        try:
            self._staging.remove()
        except DataError as exc:
            logger.warning("staged files of the run cannot be removed: %s", exc)
