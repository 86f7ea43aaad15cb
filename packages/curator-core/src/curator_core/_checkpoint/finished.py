# SPDX-License-Identifier: Apache-2.0
"""The records of a journal: finished source tasks, and files with several tasks.

Finished source tasks are stored compactly, because there may be millions of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from curator_core._checkpoint.journal import read_journal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["EarlierRuns", "record_of", "record_of_files", "written_in"]

_ID, _FAILED, _OUTPUTS, _JOINED = "id", "failed", "outputs", "joined"
_STAGED, _TASKS = "staged", "tasks"


def record_of(source_id: str, *, failed: bool, outputs: list[Any] | None, joined: Sequence[str] = ()) -> dict[str, Any]:
    """Return the journal's record of a finished source task, without values that are the default.

    Source tasks with common outputs are one record, so that a crash cannot leave some of them without the others.
    """
    record: dict[str, Any] = {_ID: source_id}
    if failed:
        record[_FAILED] = True
    if outputs:
        record[_OUTPUTS] = outputs
    if joined:
        record[_JOINED] = [*joined]
    return record


def record_of_files(label: str, tasks: list[Any]) -> dict[str, Any]:
    """Return the journal's record of files with several tasks.

    Args:
        label: The label of their staging directory.
        tasks: For each task, its source task, its id, and its output paths.
    """
    return {_STAGED: label, _TASKS: tasks}


def written_in(path: str) -> Iterator[tuple[str, list[Any]]]:
    """Yield the arguments of `record_of_files` for each such record of a journal.

    Raises:
        DataError: The journal cannot be read. Raised while iterating.
    """
    return ((record[_STAGED], record[_TASKS]) for record in read_journal(path) if _STAGED in record)


class EarlierRuns(Mapping[str, "list[Any]"]):
    """The recorded outputs of the source tasks that earlier runs have finished, by the id of the source task.

    Source tasks without outputs, which is most of them, are in a set. The outputs of others are stored as JSON, which
    takes a fourth of the memory of objects, and parsed on access.

    Args:
        retry_failed: Whether to exclude failed source tasks.
    """

    def __init__(self, *, retry_failed: bool = False) -> None:
        self._retry_failed = retry_failed
        self._plain: set[str] = set()
        self._with_outputs: dict[str, str] = {}

    @classmethod
    def read(cls, path: str, *, retry_failed: bool = False) -> EarlierRuns:
        """Read a journal. If a source task has several records, the last one counts.

        Raises:
            DataError: The journal cannot be read.
        """
        finished = cls(retry_failed=retry_failed)
        for record in read_journal(path):
            finished.enter(record)
        return finished

    def enter(self, record: Mapping[str, Any]) -> None:
        """Add a record of the journal. Records of other kinds, which later releases may write, are ignored."""
        source_id, outputs = record.get(_ID), record.get(_OUTPUTS)
        if not isinstance(source_id, str):
            return
        joined = record.get(_JOINED, ())
        for each in (source_id, *joined):
            self._with_outputs.pop(each, None)
            self._plain.discard(each)
        if self._retry_failed and record.get(_FAILED):
            return
        if outputs and isinstance(outputs, list):
            self._with_outputs[source_id] = _as_json(outputs)
        else:
            self._plain.add(source_id)
        self._plain.update(joined)

    def outputs(self) -> Iterator[tuple[str, list[Any]]]:
        """Yield the ids of source tasks that have outputs, with these outputs."""
        return ((source_id, self[source_id]) for source_id in self._with_outputs)

    def __getitem__(self, source_id: str) -> list[Any]:
        outputs = self._with_outputs.get(source_id)
        if outputs is None:
            if source_id in self._plain:
                return []
            raise KeyError(source_id)
        from json import loads  # noqa: PLC0415 - see `_as_json`

        found: list[Any] = loads(outputs)
        return found

    def __contains__(self, source_id: object) -> bool:
        return source_id in self._plain or source_id in self._with_outputs

    def __iter__(self) -> Iterator[str]:
        yield from self._plain
        yield from self._with_outputs

    def __len__(self) -> int:
        return len(self._plain) + len(self._with_outputs)

    def __repr__(self) -> str:
        return f"<EarlierRuns: {len(self)} source tasks>"


def _as_json(value: Any) -> str:
    from json import dumps  # noqa: PLC0415 - would add 2 ms to each import of this package

    return dumps(value)
