# SPDX-License-Identifier: Apache-2.0
"""Writes dead letters beside the run: in threads, so that a slow filesystem does not hold up what works."""

from __future__ import annotations

import os
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any, BinaryIO

from curator_core._files.atomic import atomic_file, atomic_file_in, is_local, open_directory
from curator_core._files.paths import filesystem, writing
from curator_core.deadletter.letter import encode, letter_path
from curator_core.errors import CuratorError, DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from curator_core._dead_letter import DeadLetter
    from curator_core.deadletter.letter import Letter
    from curator_core.deadletter.payload import Payload

__all__ = ["LetterBox"]

_THREADS = 8
_OUTSTANDING = 2 * _THREADS  # letters that wait or are written; each may hold as much memory as the policy allows


class LetterBox:
    """The directory of a run's dead letters.

    A letter that cannot be written is an error, since the policy was to keep what failed: the first one is raised by
    whatever is called next, and by all that is called after it. Calls come from one thread at a time.

    Args:
        policy: Where to write.
    """

    def __init__(self, policy: DeadLetter) -> None:
        self._policy = policy
        self._threads: ThreadPoolExecutor | None = None
        self._writing: dict[str, Future[None]] = {}  # by path below the directory, in the order of `put`
        self._failure: BaseException | None = None

    def prepare(self) -> None:
        """Make the directory: that it cannot be written to is known before the run, and it is there after it.

        Raises:
            DataError: It cannot be made.
            ConfigurationError: There is no filesystem for its URL.
        """
        with _naming(self._policy.path):
            fs, directory = self._target
            fs.makedirs(directory, exist_ok=True)

    def put(self, letter: Letter, payload: Payload) -> None:
        """Write a letter, soon; it replaces that of an earlier failure of the same task in the same stage.

        Waits where too many others are not written yet.

        Raises:
            DataError: This or an earlier letter cannot be written.
        """
        self._settle(_OUTSTANDING - 1)
        fs, _ = self._target  # made in this thread, once
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="curator-deadletter")
        name = letter_path(letter.stage, letter.task_id)
        before = self._writing.pop(name, None)
        self._writing[name] = self._threads.submit(self._write, fs, name, letter, payload, before)

    def remove(self, stage: str, task_id: str) -> None:
        """Delete a letter where it is there: of a task that was given up, and then came through after all.

        Raises:
            DataError: It is there, and cannot be deleted.
        """
        name = letter_path(stage, task_id)
        if name in self._writing:
            wait([self._writing[name]])
        with _naming(self._url(name)), suppress(FileNotFoundError):
            fs, root = self._target
            if not is_local(fs):
                fs.rm_file(f"{root}/{name}")
                return
            directory_name, _, file_name = name.partition("/")
            with _open_stage(root, directory_name) as directory:
                os.unlink(file_name, dir_fd=directory)

    def flush(self) -> None:
        """Wait until all letters are written.

        Raises:
            DataError: One of them cannot be written.
        """
        self._settle(0)

    def close(self) -> None:
        """As `flush`, and end the threads, also where it raises."""
        try:
            self.flush()
        finally:
            if self._threads is not None:
                self._threads.shutdown()
                self._threads = None

    def _settle(self, limit: int) -> None:
        """Wait until so many letters at the most are not written yet, and raise the first failure."""
        while True:
            for name, future in list(self._writing.items()):
                if future.done():
                    self._failure = self._failure or future.exception()
                    del self._writing[name]
            if len(self._writing) <= limit:
                break
            wait(self._writing.values(), return_when=FIRST_COMPLETED)
        if self._failure is not None:
            raise self._failure

    def _write(self, fs: Any, name: str, letter: Letter, payload: Payload, before: Future[None] | None) -> None:
        if before is not None:
            before.result()  # of the same file, and begun: the pool takes things in order
        with _naming(self._url(name)), self._file(fs, name) as stream:
            for part in encode(letter, payload):
                stream.write(part)

    @cached_property
    def _target(self) -> tuple[Any, str]:
        fs, directory = filesystem(self._policy.path, self._policy.storage_options)
        return fs, directory.rstrip("/")

    def _url(self, name: str) -> str:
        return f"{self._policy.path.rstrip('/')}/{name}"

    @contextmanager
    def _file(self, fs: Any, name: str) -> Iterator[BinaryIO]:
        """The file of a letter, to be written."""
        _, root = self._target
        directory_name, _, file_name = name.partition("/")
        if is_local(fs):
            fs.makedirs(root or "/", exist_ok=True)
            stage = _open_stage(root, directory_name, make=True)
            with stage as directory, atomic_file_in(directory, file_name) as stream:
                yield stream
            return
        fs.makedirs(f"{root}/{directory_name}", exist_ok=True)
        with atomic_file(fs, f"{root}/{name}") as stream:
            yield stream


@contextmanager
def _open_stage(root: str, name: str, *, make: bool = False) -> Iterator[int]:
    """The directory of a stage's letters on a local disk, open: a link in its place leads nobody elsewhere."""
    with open_directory(root or "/") as above:
        if make:
            with suppress(FileExistsError):
                os.mkdir(name, dir_fd=above)
        _refuse_link(above, root, name)
        with open_directory(name, below=above) as directory:  # refuses what was put there since, in plainer words
            yield directory


def _refuse_link(above: int, root: str, name: str) -> None:
    try:
        leads_to = os.readlink(name, dir_fd=above)
    except OSError:  # it is none
        return
    raise DataError(
        "the directory of a stage's dead letters is a symbolic link",
        field=f"{root}/{name}",
        given=leads_to,
        expected=f"a directory in {root}",
        hint="remove the link; give DeadLetter the path that letters are to go to",
    )


@contextmanager
def _naming(url: str) -> Iterator[None]:
    """As `writing`, also for errors that a remote filesystem makes itself."""
    try:
        with writing(url):
            yield
    except CuratorError:
        raise
    except Exception as exc:
        raise DataError(
            f"the file cannot be written: {type(exc).__name__}: {exc}",
            field=url,
            expected="a filesystem that can be reached, and that takes the file",
            hint="see to the storage options and its permissions, or write elsewhere",
        ) from exc
