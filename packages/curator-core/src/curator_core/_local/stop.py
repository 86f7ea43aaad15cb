# SPDX-License-Identifier: Apache-2.0
"""How a driver asks its processes to stop between two batches, or two outputs of a generator."""

from __future__ import annotations

import mmap
from pathlib import Path

__all__ = ["StopFlag", "StopWork"]

_NAME = "stop"


class StopWork(BaseException):
    """The driver wants no more of what this process is at; no stage raises it."""


class StopFlag:
    """A byte that the processes of a run share: reading it costs nothing, so that it can be read for each batch.

    Args:
        directory: What `create` was given.
    """

    def __init__(self, directory: str) -> None:
        with Path(directory, _NAME).open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), 1)

    @staticmethod
    def create(directory: str) -> None:
        """Make the file behind the flag.

        Raises:
            OSError: There is no room for it.
        """
        Path(directory, _NAME).write_bytes(b"\0")  # written: memory behind a hole would fail when it is first used

    def set(self) -> None:
        """Ask all processes to stop."""
        self._shared[0] = 1

    @property
    def signal(self) -> int:
        """Whether that was asked; 0 for no."""
        return self._shared[0]

    def check(self) -> None:
        """Raise where that was asked.

        Raises:
            StopWork: It was.
        """
        if self.signal:
            raise StopWork
