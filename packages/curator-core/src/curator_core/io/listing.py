# SPDX-License-Identifier: Apache-2.0
"""Lists the files at a path, which may be a file, a directory, or a glob, and counts what it skips."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections import deque
from contextlib import suppress
from fnmatch import translate
from glob import escape
from typing import TYPE_CHECKING, Any, NamedTuple

from curator_core._files.atomic import is_local

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["SCHEMA_DIRECTORY", "Found", "LeftOut", "list_files"]

SCHEMA_DIRECTORY = "_schema"
"""Where `ParquetWriter` stores the schema of a directory's files. It is not data, and not reported as skipped."""

_DIRECTORIES = "directories whose files do not match the pattern"
_BESIDE_NAME = "matches of a path that is also the exact name of a file or directory"
_MAGIC = re.compile(r"[*?\[]")
_LEADS_NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


class Found(NamedTuple):
    """A file that was found.

    Attributes:
        name: Its path, in the form that the filesystem uses.
        size: Its size in bytes; None if unknown.
        real: Its path with links resolved, which shows whether two names are the same file.
        is_linked: Whether it was reached through a link below the given path.
        is_divisible: Whether reading from any offset costs no more than reading from the start.
    """

    name: str
    size: int | None
    real: str
    is_linked: bool = False
    is_divisible: bool = True

    @property
    def rank(self) -> tuple[bool, bool, str]:
        """The sort key that chooses among the names of a file: the lowest is its own name rather than a link's."""
        return self.is_linked, self.name != self.real, self.name


class LeftOut:
    """The names that a listing skips, with the reasons."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}  # by name

    def add(self, reason: str, name: str) -> None:
        """Add a skipped name."""
        self._reasons[name] = reason

    def discard(self, names: Iterable[str]) -> None:
        """Remove names that were found in another way."""
        for name in names:
            self._reasons.pop(name, None)

    def __len__(self) -> int:
        return len(self._reasons)

    def __str__(self) -> str:
        names: dict[str, list[str]] = {}
        for name, reason in self._reasons.items():
            names.setdefault(reason, []).append(name)
        return ", ".join(f"{reason}: {len(those):,} (such as {min(those)})" for reason, those in sorted(names.items()))


def list_files(fs: Any, path: str, left_out: LeftOut) -> Iterator[Found]:
    """Yield the file at a path, or the files below it or that match it. Hidden files are skipped unless named in full.

    Args:
        fs: The fsspec filesystem.
        path: A file, a directory, or a glob, in the form that the filesystem uses.
        left_out: Records what is skipped.

    Raises:
        OSError: A directory cannot be listed.
    """
    local = is_local(fs)
    if fs.isfile(path):
        yield Found(path, fs.info(path).get("size"), os.path.realpath(path) if local else path)
    elif fs.isdir(path):
        yield from (
            _LocalSearch(path, "**", left_out) if local else _found(fs, fs.find(path, detail=True), path, left_out)
        )
    elif _MAGIC.search(path):
        yield from _globbed(fs, path, left_out)
        return
    else:
        with suppress(FileNotFoundError):
            fs.info(path)  # isfile and isdir return False if they lack permission, but this one raises
    if "*" in path:  # users may not know that a file or directory has this exact name
        for file in _globbed(fs, path, LeftOut()):
            if file.name != path:
                left_out.add(_BESIDE_NAME, file.name)


def _globbed(fs: Any, path: str, left_out: LeftOut) -> Iterable[Found]:
    """List what a glob matches. It may begin with directories whose names look like globs: ``data [2024]/*.txt``."""
    root, pattern = _split(fs, path)
    if is_local(fs):
        return _LocalSearch(root or "/", pattern, left_out)
    return _found(fs, fs.glob(f"{escape(root)}{path[len(root) :]}", detail=True), root, left_out)


def _split(fs: Any, path: str) -> tuple[str, str]:
    """Return the directory that a glob starts from, and the pattern below it."""
    *directories, _ = path.split("/")
    root: list[str] = []
    for name in directories:
        if "*" in name or "?" in name or ("[" in name and not fs.isdir("/".join([*root, name]))):
            break
        root.append(name)
    return "/".join(root), "/".join(path.split("/")[len(root) :])


def _found(fs: Any, infos: Mapping[str, Any], root: str, left_out: LeftOut) -> Iterator[Found]:
    """Yield the files that fsspec's own search found, except for hidden ones below the root."""
    searched = {name.rpartition("/")[0] for name in infos}
    for name, info in infos.items():
        *directories, last = name.removeprefix(root).split("/")
        if info["type"] == "directory":
            if name not in searched:
                left_out.add(_DIRECTORIES, name)
            continue
        if SCHEMA_DIRECTORY in directories:
            continue
        if last.startswith(".") or any(_is_hidden_directory(part) for part in directories):
            left_out.add("hidden", name)
        elif info["type"] != "file" and fs.isdir(name):
            left_out.add("links to directories, which are followed only on local disks", name)
        else:
            yield Found(info["name"], info.get("size"), info["name"])


def _is_hidden_directory(name: str) -> bool:
    return name.startswith((".", "_"))


class _LocalSearch:
    """Iterates over the files below a local directory that match a pattern, and follows links.

    fsspec's own search silently skips links to directories, and directories that it has no permission to list. This
    search reads a directory once for each state of the pattern in which it is reached, so links may be circular. Links
    are followed last, so that files that can be reached without them are found under their own names.
    """

    def __init__(self, root: str, pattern: str, left_out: LeftOut) -> None:
        self._root = root.rstrip("/")
        self._real_root = os.path.realpath(root).rstrip("/")
        # `**` matches any number of directories, and at the end any files below them. Other parts also match a name
        # that equals them literally.
        parts = pattern.split("/")
        self._parts = [None if p == "**" else re.compile(rf"{translate(p)}|{re.escape(p)}\Z") for p in parts]
        self._left_out = left_out
        self._seen: set[tuple[int, int, frozenset[int]]] = set()
        self._links: deque[tuple[str, frozenset[int]]] = deque()  # linked directories that were not searched yet

    def __iter__(self) -> Iterator[Found]:
        with suppress(FileNotFoundError, NotADirectoryError):  # the root of a glob may not exist
            os.stat(self._root or "/")  # noqa: PTH116 - paths are plain strings here, as in fsspec
            self._links.append(("", self._closure({0})))
        is_linked = False  # the root never counts as a link, because it was named
        while self._links:
            yield from self._search(*self._links.popleft(), is_linked=is_linked)
            is_linked = True

    def _search(self, relative: str, states: frozenset[int], *, is_linked: bool) -> Iterator[Found]:
        """Search a directory and its subdirectories, except for linked ones."""
        stack = [(relative, states)]
        while stack:
            relative, states = stack.pop()
            for entry in self._entries(f"{self._root}{relative}/", states):
                name, info = f"{relative}/{entry.name}", _follow(entry)
                if info is None or not stat.S_ISDIR(info.st_mode):
                    if self._matches(states, entry.name) and not self._is_left_out(entry, info):
                        yield self._file(name, info, is_linked=is_linked or entry.is_symlink())
                elif not (below := self._step(states, entry.name)):
                    if self._matches(states, entry.name):
                        self._left_out.add(_DIRECTORIES, entry.path)
                else:
                    if entry.name == SCHEMA_DIRECTORY:
                        continue
                    if _is_hidden_directory(entry.name):
                        self._left_out.add("hidden", entry.path)
                    else:
                        (self._links if entry.is_symlink() else stack).append((name, below))

    def _entries(self, path: str, states: frozenset[int]) -> list[os.DirEntry[str]]:
        """Return the entries of a directory; none if it was already searched in the same state."""
        info = os.stat(path)  # noqa: PTH116 - paths are plain strings here, as in fsspec
        key = (info.st_dev, info.st_ino, states)
        if key in self._seen:
            return []
        self._seen.add(key)
        with os.scandir(path) as entries:
            return sorted(entries, key=lambda entry: entry.name)

    def _is_left_out(self, entry: os.DirEntry[str], info: os.stat_result | None) -> bool:
        if entry.name.startswith("."):
            reason = "hidden"
        elif info is None and entry.is_symlink():
            reason = "broken links"
        elif info is not None and not stat.S_ISREG(info.st_mode):
            reason = "neither files nor directories"
        else:
            return False
        self._left_out.add(reason, entry.path)
        return True

    def _file(self, name: str, info: os.stat_result | None, *, is_linked: bool) -> Found:
        path = f"{self._root}{name}"
        real = os.path.realpath(path) if is_linked else f"{self._real_root}{name}"
        return Found(path, info and info.st_size, real, is_linked)

    # --- the pattern: a state is a number of matched parts, and a set of states has all possible ones -----

    def _closure(self, states: set[int]) -> frozenset[int]:
        """Return the states and those after a `**`, which may match no directory at all."""
        last = len(self._parts) - 1
        for state in sorted(states):
            while state < last and self._parts[state] is None:
                state += 1  # noqa: PLW2901 - the inner loop continues from the new state
                states.add(state)
        return frozenset(states)

    def _step(self, states: frozenset[int], directory: str) -> frozenset[int]:
        """Return the states below a directory; none if nothing there can match."""
        after = set()
        for state in states:
            part = self._parts[state]
            if part is None:
                after.add(state)
            elif state < len(self._parts) - 1 and part.match(directory):
                after.add(state + 1)
        return self._closure(after)

    def _matches(self, states: frozenset[int], file: str) -> bool:
        last = len(self._parts) - 1
        return last in states and ((part := self._parts[last]) is None or part.match(file) is not None)


def _follow(entry: os.DirEntry[str]) -> os.stat_result | None:
    """Return the status of an entry, or of the target of a link; None if it does not exist."""
    try:
        return entry.stat()
    except OSError as exc:
        if exc.errno in _LEADS_NOWHERE:
            return None
        raise
