# SPDX-License-Identifier: Apache-2.0
"""Reads dead letters: the details of failures, and the tasks."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

from curator_core._files.paths import absolute, check_skip, filesystem, reading
from curator_core._guard.user_code import check_failure
from curator_core._transport.exceptions import message_of
from curator_core.deadletter.letter import SUFFIX, Letter, damaged, decode, parse_header
from curator_core.deadletter.payload import unpack
from curator_core.errors import DataError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from curator_core._files.paths import PathLike
    from curator_core.tasks import Task

__all__ = ["load", "read"]

_FIRST_LOOK = 64 << 10  # bytes; nearly all first lines are shorter
_LONGEST_LINE = 8 << 20
_HEADS_AT_ONCE, _FILES_AT_ONCE = 128, 8  # files that are requested together from a remote filesystem
_SHOWN_IDS = 10

_Entry = tuple[Letter, str]  # a letter and its path


def read(path: PathLike, storage_options: Mapping[str, Any] | None = None) -> list[Letter]:
    """Return the letters at a path, sorted by stage and task. Reads only their first lines, and executes nothing.

    Args:
        path: A directory or fsspec URL, or one letter.
        storage_options: Options of the fsspec filesystem.

    Returns:
        The letters; an empty list for a directory without letters.

    Raises:
        DataError: The path does not exist, or a file cannot be read, is damaged, or is not a letter.
    """
    return [letter for letter, _ in _Shelf(path, storage_options).entries()]


def load(
    path: PathLike,
    *,
    stage: str | None = None,
    trust: bool = False,
    missing: Literal["raise", "skip"] = "raise",
    storage_options: Mapping[str, Any] | None = None,
) -> list[Task[Any]]:
    """Return the tasks of the letters at a path as they entered the stage, with ids and notes, in the order of `read`.

    All of them are in memory at once.

    Args:
        path: A directory or fsspec URL, or one letter.
        stage: Name of the stage whose failed tasks to return; None for all.
        trust: Whether to unpickle tasks that are not plain JSON. This runs code from the file, so use it only if no one
            else could write to the file.
        missing: ``"skip"`` skips tasks that were not stored, because they were too large or cannot be pickled.
        storage_options: Options of the fsspec filesystem.

    Raises:
        DataError: The path does not exist; a file cannot be read, is damaged, or is not a letter; no letter is from the
            stage; a task is pickled and not trusted, was not stored, or cannot be restored.
        ConfigurationError: ``missing`` is neither ``"raise"`` nor ``"skip"``.
    """
    skip = check_skip("missing", missing)
    shelf = _Shelf(path, storage_options)
    entries = _of_stage(shelf.entries(), stage)
    if trust is not True:
        _refuse_pickles(entries, shelf.path)
    kept = [(letter, name) for letter, name in entries if letter.payload_kind != "none"]
    if len(kept) < len(entries) and not skip:
        raise _not_kept([letter for letter, _ in entries if letter.payload_kind == "none"], shelf.path)
    files = shelf.contents([name for _, name in kept], None, _FILES_AT_ONCE)
    return [_task(letter, url, data) for (letter, _), (url, data) in zip(kept, files, strict=True)]


class _Shelf:
    """The letters at a path.

    Args:
        path: A directory, or one letter.
        storage_options: Options of the fsspec filesystem.
    """

    def __init__(self, path: PathLike, storage_options: Mapping[str, Any] | None) -> None:
        self.path = absolute(path, "path")
        self._fs, self._root = filesystem(self.path, storage_options or {})

    def entries(self) -> list[_Entry]:
        """Return all letters with their paths, sorted."""
        names = self._names()
        looks = self.contents(names, _FIRST_LOOK, _HEADS_AT_ONCE)
        found = [(self._letter(name, url, look), name) for name, (url, look) in zip(names, looks, strict=True)]
        return sorted(found, key=lambda entry: (entry[0].stage_index, entry[0].stage, _natural(entry[0].task_id)))

    def contents(self, names: list[str], end: int | None, at_once: int) -> Iterator[tuple[str, bytes]]:
        """Yield the URL and content of each file, up to a byte; ``at_once`` files are in memory together."""
        for first in range(0, len(names), at_once):
            some = names[first : first + at_once]
            answers = self._fs.cat_ranges(some, [0] * len(some), [end] * len(some), on_error="return")
            for name, data in zip(some, answers, strict=True):
                url = self._url(name)
                with reading(url):
                    if isinstance(data, Exception):
                        raise data
                yield url, data

    def _names(self) -> list[str]:
        with reading(self.path):
            self._fs.invalidate_cache()  # a listing from before the run would be incomplete
            if self._fs.isfile(self._root):
                return [self._root]
            if self._fs.isdir(self._root):
                return list(self._below(self._root))
        raise DataError(
            "no directory or file at this path",
            field=self.path,
            expected="a directory of dead letters, or one letter",
            hint="correct the path; a run without failures may not have created a directory",
        )

    def _below(self, directory: str) -> Iterator[str]:
        # Not with `find`, which treats a directory without read permission as empty.
        for entry in self._fs.ls(directory, detail=True):
            name: str = entry["name"].rstrip("/")
            if entry["type"] != "directory":
                if name.endswith(SUFFIX):
                    yield name
            elif name != directory.rstrip("/"):  # some object stores list a directory as an entry of itself
                yield from self._below(name)

    def _letter(self, name: str, url: str, look: bytes) -> Letter:
        if b"\n" not in look and len(look) == _FIRST_LOOK:
            ((_, look),) = self.contents([name], _LONGEST_LINE, 1)
        return parse_header(look[: max(look.find(b"\n"), 0)], url)[0]

    def _url(self, name: str) -> str:
        return self.path.rstrip("/") + name.removeprefix(self._root.rstrip("/"))


def _natural(task_id: str) -> list[str | tuple[int, str]]:
    """Return a key that sorts ids by the numbers in them: text and numbers alternate."""
    parts = re.split(r"([0-9]+)", task_id)
    return [(len(part), part) if position % 2 else part for position, part in enumerate(parts)]


def _of_stage(entries: list[_Entry], stage: str | None) -> list[_Entry]:
    known = {letter.stage for letter, _ in entries}
    if known and stage is not None and stage not in known:
        raise DataError(f"no letter is from stage '{stage}'", **unknown_name("stage", stage, known))
    return [entry for entry in entries if stage is None or entry[0].stage == stage]


def _refuse_pickles(entries: Sequence[_Entry], path: str) -> None:
    pickled = [letter for letter, _ in entries if letter.payload_kind == "pickle"]
    if pickled:
        classes = ", ".join(sorted({letter.task_class for letter in pickled})[:_SHOWN_IDS])
        raise DataError(
            f"{len(pickled):,} of the {len(entries):,} tasks are pickled, and unpickling runs code from the file",
            field=path,
            given=f"tasks of {classes}",
            expected="tasks that are plain JSON, or letters that you trust",
            hint="pass trust=True if no one else could write to these files",
        )


def _not_kept(letters: Sequence[Letter], path: str) -> DataError:
    ids = ", ".join(repr(letter.task_id) for letter in letters[:_SHOWN_IDS])
    more = f" and {len(letters) - _SHOWN_IDS:,} more" if len(letters) > _SHOWN_IDS else ""
    return DataError(
        f"{len(letters):,} of the tasks were not stored: {ids}{more}; {letters[0].payload_note}",
        field=path,
        expected="letters that contain their tasks",
        hint="pass missing='skip' to load the others, and recreate these from the source, by their ids",
    )


def _task(letter: Letter, url: str, data: bytes) -> Task[Any]:
    again, payload = decode(data, url)
    if again != letter:  # the first one was checked for trust
        raise damaged(url, "it changed while it was being read")
    try:
        task: Task[Any] = unpack(payload)
    except BaseException as exc:
        check_failure(exc)
        raise DataError(
            f"cannot restore a task of class {letter.task_class}: {type(exc).__name__}: {message_of(exc)}",
            field=url,
            expected="the class and everything it needs, unchanged since the task failed",
            hint="install the package that defines it, or add it to the path; or recreate the task from the source, by "
            "its id",
        ) from exc
    return task
