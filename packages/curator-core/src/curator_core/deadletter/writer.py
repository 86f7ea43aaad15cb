# SPDX-License-Identifier: Apache-2.0
"""Writes dead letters in threads, so that a slow filesystem does not delay the run."""

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
_OUTSTANDING = 2 * _THREADS  # pending letters; each may take as much memory as the policy allows


class LetterBox:
    """The directory of a run's dead letters.

    A letter that cannot be written is an error, because the user asked to keep failed tasks: the first such error is
    raised by all following calls. Calls must come from one thread at a time.

    Args:
        policy: The user's settings.
    """

    def __init__(self, policy: DeadLetter) -> None:
        self._policy = policy
        self._threads: ThreadPoolExecutor | None = None
        self._writing: dict[str, Future[None]] = {}  # by path in the directory, in the order of `put`
        self._failure: BaseException | None = None

    def prepare(self) -> None:
        """Create the directory, so that errors are found before the run, and it exists even if nothing fails.

        Raises:
            DataError: It cannot be created.
            ConfigurationError: There is no filesystem for its URL.
        """
        with _naming(self._policy.path):
            fs, directory = self._target
            fs.makedirs(directory, exist_ok=True)

    def put(self, letter: Letter, payload: Payload) -> None:
        """Schedule the writing of a letter, which replaces the one of an earlier failure of the same task and stage.

        Waits if too many letters are pending.

        Raises:
            DataError: This or an earlier letter cannot be written.
        """
        self._settle(_OUTSTANDING - 1)
        fs, _ = self._target  # created once, in this thread
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="curator-deadletter")
        name = letter_path(letter.stage, letter.task_id)
        before = self._writing.pop(name, None)
        self._writing[name] = self._threads.submit(self._write, fs, name, letter, payload, before)

    def remove(self, stage: str, task_id: str) -> None:
        """Delete a letter, if it exists, because its task succeeded after all.

        Raises:
            DataError: It exists, but cannot be deleted.
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
        """Flush, and end the threads even if that raises."""
        try:
            self.flush()
        finally:
            if self._threads is not None:
                self._threads.shutdown()
                self._threads = None

    def _settle(self, limit: int) -> None:
        """Wait until at most ``limit`` letters are pending, and raise the first failure."""
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
            before.result()  # the earlier write of the same file, which has begun: the pool runs tasks in order
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
        """Open the file of a letter for writing."""
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
    """Open the directory of a stage's letters on a local disk; a link in its place is an error."""
    with open_directory(root or "/") as opened_root:
        if make:
            with suppress(FileExistsError):
                os.mkdir(name, dir_fd=opened_root)
        _refuse_link(opened_root, root, name)
        with open_directory(name, below=opened_root) as directory:  # also rejects a link that was created since
            yield directory


def _refuse_link(opened_root: int, root: str, name: str) -> None:
    try:
        leads_to = os.readlink(name, dir_fd=opened_root)
    except OSError:  # not a link
        return
    raise DataError(
        "the directory of a stage's dead letters is a symbolic link",
        field=f"{root}/{name}",
        given=leads_to,
        expected=f"a directory in {root}",
        hint="remove the link; to write elsewhere, pass another path to DeadLetter",
    )


@contextmanager
def _naming(url: str) -> Iterator[None]:
    """Do the same as `writing`, also for other errors that a remote filesystem raises."""
    try:
        with writing(url):
            yield
    except CuratorError:
        raise
    except Exception as exc:
        raise DataError(
            f"the file cannot be written: {type(exc).__name__}: {exc}",
            field=url,
            expected="a reachable filesystem that accepts the file",
            hint="check the storage options and the permissions, or write elsewhere",
        ) from exc
