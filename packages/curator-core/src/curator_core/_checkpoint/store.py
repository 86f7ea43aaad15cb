# SPDX-License-Identifier: Apache-2.0
"""A checkpoint in use by a run: locks it, compares it with the pipeline, reads it, and writes to it."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curator_core._checkpoint.files import read_whole, replace_file
from curator_core._checkpoint.fingerprint import difference, fingerprint, is_fingerprint
from curator_core._checkpoint.finished import EarlierRuns, record_of, record_of_files, written_in
from curator_core._checkpoint.journal import Journal
from curator_core._checkpoint.lock import RunLock
from curator_core._checkpoint.shards import directory_of
from curator_core._files.paths import reading
from curator_core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Self

    from curator_core._checkpoint.settings import Checkpoint
    from curator_core._plan.compiled import CompiledStage
    from curator_core._shard import Shard

__all__ = ["OpenCheckpoint"]

logger = logging.getLogger(__name__)

_FORMAT = 1
_SHOWN = 10  # differences that an error lists


class OpenCheckpoint:
    """A checkpoint that a run has locked, in the driver. Calls must come from one thread at a time.

    Create one with `open`, and close it at the end of the run: it is a context manager.

    Attributes:
        finished: The source tasks that earlier runs have finished, without those of this run.
    """

    def __init__(self, path: str, journal: Journal, finished: EarlierRuns, held: ExitStack) -> None:
        self.finished = finished
        self._path = path
        self._journal = journal
        self._held = held

    @classmethod
    def open(
        cls, checkpoint: Checkpoint, stages: Sequence[CompiledStage], run_id: str, shard: Shard | None = None
    ) -> OpenCheckpoint:
        """Lock a checkpoint, compare it with the stages, and read it.

        Args:
            checkpoint: The user's settings. The directory is created if it is missing.
            stages: The stages of the plan.
            run_id: The id of the run.
            shard: The run's shard of the source, if it has one.

        Raises:
            ConfigurationError: Another run uses it; or it was made with other stages or another number of shards, or by
                a later release; or its path is not a directory.
            DataError: A file in it cannot be read or written, or is not a regular file.
        """
        directory, ours = directory_of(checkpoint, shard), fingerprint(stages)
        with ExitStack() as held:
            held.enter_context(RunLock(directory, run_id))
            journal_path = str(Path(directory) / "finished.jsonl")
            journal = held.enter_context(Journal(journal_path))
            _settle_stages(str(Path(directory) / "pipeline.json"), ours, journal_path, checkpoint.accept_changes)
            finished = EarlierRuns.read(journal_path, retry_failed=checkpoint.retry_failed)
            logger.info("checkpoint %s: %d source tasks are finished", directory, len(finished))
            return cls(journal_path, journal, finished, held.pop_all())

    def is_finished(self, source_id: str) -> bool:
        """Whether an earlier run has finished a source task."""
        return source_id in self.finished

    def outputs(self) -> Iterator[tuple[str, list[Any]]]:
        """Yield the source tasks of earlier runs that have recorded outputs, with these outputs."""
        return self.finished.outputs()

    def written(self) -> Iterator[tuple[str, list[Any]]]:
        """Yield the arguments of earlier calls of `write_ahead`. Reads the journal again."""
        return written_in(self._path)

    def write_ahead(self, label: str, tasks: list[Any]) -> None:
        """Record the content of staged files on disk before they are published.

        Args:
            label: The label of their staging directory.
            tasks: For each task in them, its source task, its id, and its output paths.

        Raises:
            DataError: See `sync`.
        """
        self._journal.append(record_of_files(label, tasks))
        self._journal.sync()

    def finish(
        self,
        source_id: str,
        *,
        failed: bool = False,
        outputs: list[Any] | None = None,
        joined: Sequence[str] = (),
    ) -> None:
        """Record that this run has finished a source task. The record is on disk soon, or after `sync`.

        Args:
            source_id: The id of the source task.
            failed: Whether it is finished because it failed.
            outputs: Its outputs in the form of JSON values, for later runs.
            joined: The ids of source tasks that finish with it, because they have common outputs.

        Raises:
            DataError: JSON cannot represent the outputs; or the journal cannot be written, see `Journal.sync`.
        """
        self._journal.append(record_of(source_id, failed=failed, outputs=outputs, joined=joined))

    def write(self) -> None:
        """Write all records, so that they survive the end of this process.

        Raises:
            DataError: It cannot be written.
        """
        self._journal.write()

    def sync(self) -> None:
        """Write all records, and sync them to disk.

        Raises:
            DataError: They cannot be written. Nothing is lost: call this again after freeing up space.
        """
        self._journal.sync()

    def close(self) -> None:
        """Sync and unlock the checkpoint. Closing it again does nothing.

        Raises:
            DataError: The last records could not be written: their source tasks will run again.
        """
        self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _settle_stages(path: str, stages: list[dict[str, Any]], journal_path: str, accept_changes: bool) -> None:
    """Compare the stages with those recorded in the checkpoint, and record them."""
    known = _read_stages(path)
    if known is None:
        changes = ["the checkpoint does not record its stages"] if _has_records(journal_path) else []
    else:
        changes = difference(known, stages)
    if changes and not accept_changes:
        raise _changed(path, changes)
    if changes:
        logger.warning("checkpoint %s: continuing although %s", path, "; ".join(changes))
    if known != stages:
        from json import dumps  # noqa: PLC0415 - would add 2 ms to each import of this package

        replace_file(path, dumps({"format": _FORMAT, "stages": stages}, indent=1).encode("ascii") + b"\n")


def _read_stages(path: str) -> list[dict[str, Any]] | None:
    """Return the stages that a checkpoint was made with; None if it does not record them."""
    from json import loads  # noqa: PLC0415 - see `_settle_stages`

    data = read_whole(path)
    try:
        found = loads(data) if data is not None else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        return None
    if found.get("format") != _FORMAT:
        raise ConfigurationError(
            "the checkpoint was made by another release",
            field=path,
            given=found.get("format"),
            expected=f"format {_FORMAT}",
            hint="use the release that made it, or start a new checkpoint",
        )
    stages = found.get("stages")
    return stages if is_fingerprint(stages) else None


def _has_records(path: str) -> bool:
    with reading(path):
        return Path(path).stat().st_size > 0


def _changed(path: str, changes: list[str]) -> ConfigurationError:
    shown = "; ".join(changes[:_SHOWN]) + (f"; and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else "")
    return ConfigurationError(
        f"the pipeline does not match the checkpoint: {shown}",
        field=path,
        expected="the same stages with the same settings",
        hint="use a separate checkpoint for the changed pipeline; or continue with Checkpoint(…, accept_changes=True), "
        "which skips source tasks that finished with the earlier stages",
    )
