# SPDX-License-Identifier: Apache-2.0
"""Which files there are at a path: below a directory, or as a glob says. What is left out is counted."""

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
"""Where `ParquetWriter` keeps the schema of a directory's files: not data, and not reported as left out."""

_DIRECTORIES = "directories, whose files the pattern does not ask for"
_BESIDE_NAME = "matched by a path that is itself the name of a file or directory"
_MAGIC = re.compile(r"[*?\[]")
_LEADS_NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


class Found(NamedTuple):
    """A file.

    Attributes:
        name: Its path, as the filesystem writes it.
        size: In bytes; None where it is not known.
        real: Its path without links, which tells whether two names are one file.
        is_linked: Whether a link led to it from the place that was named.
        is_divisible: Whether it can be read from any place in it, at no more cost than from its start.
    """

    name: str
    size: int | None
    real: str
    is_linked: bool = False
    is_divisible: bool = True

    @property
    def rank(self) -> tuple[bool, bool, str]:
        """The name of a file that has the lowest is the one to go by: its own rather than a link's."""
        return self.is_linked, self.name != self.real, self.name


class LeftOut:
    """What a listing leaves out, by the reason why."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}  # by name

    def add(self, reason: str, name: str) -> None:
        """Note a name."""
        self._reasons[name] = reason

    def discard(self, names: Iterable[str]) -> None:
        """Forget what was found in another way."""
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
    """The files at a path: itself, or what is below it or matches it; but for hidden ones, where it does not name them.

    Args:
        fs: The fsspec filesystem.
        path: A file or directory, or else a glob, as the filesystem writes it.
        left_out: Counts what is left out.

    Raises:
        OSError: What is there cannot be listed.
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
            fs.info(path)  # isfile and isdir say no where they may not look: this one says why
    if "*" in path:  # who wrote it may not know of what is called so
        for file in _globbed(fs, path, LeftOut()):
            if file.name != path:
                left_out.add(_BESIDE_NAME, file.name)


def _globbed(fs: Any, path: str, left_out: LeftOut) -> Iterable[Found]:
    """What a glob matches. It may begin with directories that look like one, as ``data [2024]/*.txt``."""
    root, pattern = _split(fs, path)
    if is_local(fs):
        return _LocalSearch(root or "/", pattern, left_out)
    return _found(fs, fs.glob(f"{escape(root)}{path[len(root) :]}", detail=True), root, left_out)


def _split(fs: Any, path: str) -> tuple[str, str]:
    """The directory that a glob starts from, and the pattern below it."""
    *directories, _ = path.split("/")
    root: list[str] = []
    for name in directories:
        if "*" in name or "?" in name or ("[" in name and not fs.isdir("/".join([*root, name]))):
            break
        root.append(name)
    return "/".join(root), "/".join(path.split("/")[len(root) :])


def _found(fs: Any, infos: Mapping[str, Any], root: str, left_out: LeftOut) -> Iterator[Found]:
    """What fsspec's own search gives, without what is hidden below the root."""
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
            left_out.add("linked directories, which only local disks are searched through", name)
        else:
            yield Found(info["name"], info.get("size"), info["name"])


def _is_hidden_directory(name: str) -> bool:
    return name.startswith((".", "_"))


class _LocalSearch:
    """Iterates over the files below a local directory that a pattern matches, through links as well.

    fsspec's own search does not follow links to directories, and leaves out what it may not list, both in silence.
    Here a directory is read once for each state of the pattern that it is reached in, so links may lead in circles.
    Links come last, so that what can be reached without them is found under its own name.
    """

    def __init__(self, root: str, pattern: str, left_out: LeftOut) -> None:
        self._root = root.rstrip("/")
        self._real_root = os.path.realpath(root).rstrip("/")
        # `**` stands for any directories, and at the end for any files below them. Others match themselves as well.
        parts = pattern.split("/")
        self._parts = [None if p == "**" else re.compile(rf"{translate(p)}|{re.escape(p)}\Z") for p in parts]
        self._left_out = left_out
        self._seen: set[tuple[int, int, frozenset[int]]] = set()
        self._links: deque[tuple[str, frozenset[int]]] = deque()  # to directories that are still to be searched

    def __iter__(self) -> Iterator[Found]:
        with suppress(FileNotFoundError, NotADirectoryError):  # the root of a glob need not be there
            os.stat(self._root or "/")  # noqa: PTH116 - paths are plain text here, as fsspec has them
            self._links.append(("", self._closure({0})))
        is_linked = False  # the root itself is not a link, whatever it is: it was named
        while self._links:
            yield from self._search(*self._links.popleft(), is_linked=is_linked)
            is_linked = True

    def _search(self, relative: str, states: frozenset[int], *, is_linked: bool) -> Iterator[Found]:
        """Search a directory, and all below it but for links to others."""
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
        """What is in a directory; nothing where it was looked for the same before."""
        info = os.stat(path)  # noqa: PTH116 - as above
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
            reason = "links that lead nowhere"
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

    # --- the pattern: how many of its parts are matched, in all ways that there are -----------------------

    def _closure(self, states: set[int]) -> frozenset[int]:
        """The states, with those after a `**` that stands for no directory."""
        last = len(self._parts) - 1
        for state in sorted(states):
            while state < last and self._parts[state] is None:
                state += 1  # noqa: PLW2901 - the loop goes on from there
                states.add(state)
        return frozenset(states)

    def _step(self, states: frozenset[int], directory: str) -> frozenset[int]:
        """The states below a directory; none where nothing there can match."""
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
    """What an entry is, or is a link to; None where that is not there."""
    try:
        return entry.stat()
    except OSError as exc:
        if exc.errno in _LEADS_NOWHERE:
            return None
        raise
