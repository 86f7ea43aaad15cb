# SPDX-License-Identifier: Apache-2.0
"""A checkpoint in use by a run: locked, compared with the pipeline, read, and written to."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curator_core._checkpoint.files import read_whole, reading, replace_file
from curator_core._checkpoint.fingerprint import difference, fingerprint, is_fingerprint
from curator_core._checkpoint.finished import EarlierRuns, record_of, record_of_files, written_in
from curator_core._checkpoint.journal import Journal
from curator_core._checkpoint.lock import RunLock
from curator_core._checkpoint.shards import directory_of
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
    """A checkpoint that a run holds, in the driver. Calls must come from one thread at a time.

    Make one with `open`, and close it at the end of the run: it is a context manager.

    Attributes:
        finished: What earlier runs have finished. What this run finishes does not go in.
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
            checkpoint: What the user says about it. Its directory is made where it is missing.
            stages: The stages of the plan.
            run_id: The run.
            shard: The run's part of the source, if it has only one.

        Raises:
            ConfigurationError: Another run uses it; or it was made with other stages or another number of shards, or by
                a later release; or its path is no directory.
            DataError: A file in it cannot be read or written, or is no regular file.
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
        """The source tasks of earlier runs for which outputs were recorded, and these."""
        return self.finished.outputs()

    def written(self) -> Iterator[tuple[str, list[Any]]]:
        """What was written ahead; see `write_ahead`. Reads the journal once more."""
        return written_in(self._path)

    def write_ahead(self, label: str, tasks: list[Any]) -> None:
        """Record on disk what is in files before they are published.

        Args:
            label: Of their staging directory.
            tasks: For each task in them its source task, its id, and the paths that it gave.

        Raises:
            DataError: As `sync`.
        """
        self._journal.append(record_of_files(label, tasks))
        self._journal.sync()

    def finish(self, source_id: str, *, failed: bool = False, outputs: list[Any] | None = None) -> None:
        """Record that this run has finished a source task. It is on the disk soon, or after `sync`.

        Args:
            source_id: The source task.
            failed: Whether it is finished since it failed.
            outputs: What later runs are to know of what came out of it: JSON values.

        Raises:
            DataError: The outputs have no form in JSON; or the journal cannot be written, see `Journal.sync`.
        """
        self._journal.append(record_of(source_id, failed=failed, outputs=outputs))

    def write(self) -> None:
        """See that what was finished outlives this process.

        Raises:
            DataError: It cannot be written.
        """
        self._journal.write()

    def sync(self) -> None:
        """Have the disk know of all that was recorded.

        Raises:
            DataError: It cannot be written. Nothing is lost: call it again after making room.
        """
        self._journal.sync()

    def close(self) -> None:
        """Sync, and let other runs have the checkpoint. Closing it again does nothing.

        Raises:
            DataError: The last records could not be written: these source tasks will be run again.
        """
        self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _settle_stages(path: str, stages: list[dict[str, Any]], journal_path: str, accept_changes: bool) -> None:
    """Write which stages the checkpoint is of, or compare that with what it says."""
    known = _read_stages(path)
    if known is None:
        changes = ["the checkpoint does not say with which stages it was made"] if _has_records(journal_path) else []
    else:
        changes = difference(known, stages)
    if changes and not accept_changes:
        raise _changed(path, changes)
    if changes:
        logger.warning("checkpoint %s: going on, although %s", path, "; ".join(changes))
    if known != stages:
        from json import dumps  # noqa: PLC0415 - 2 ms, which an import of this package need not cost

        replace_file(path, dumps({"format": _FORMAT, "stages": stages}, indent=1).encode("ascii") + b"\n")


def _read_stages(path: str) -> list[dict[str, Any]] | None:
    """The stages that a checkpoint was made with; None where it does not say so."""
    from json import loads  # noqa: PLC0415 - as above

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
            hint="run it with the release that made it, or begin a new checkpoint",
        )
    stages = found.get("stages")
    return stages if is_fingerprint(stages) else None


def _has_records(path: str) -> bool:
    with reading(path):
        return Path(path).stat().st_size > 0


def _changed(path: str, changes: list[str]) -> ConfigurationError:
    shown = "; ".join(changes[:_SHOWN]) + (f"; and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else "")
    return ConfigurationError(
        f"the pipeline is not the one that the checkpoint was made with: {shown}",
        field=path,
        expected="the same stages with the same settings",
        hint="give the changed pipeline a checkpoint of its own; or go on with Checkpoint(…, accept_changes=True), "
        "which skips what was finished with the stages of then",
    )
