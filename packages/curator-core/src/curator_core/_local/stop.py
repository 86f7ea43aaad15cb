# SPDX-License-Identifier: Apache-2.0
"""How a driver asks its processes to stop between two batches, or between two outputs of a generator."""

from __future__ import annotations

import mmap
from pathlib import Path

__all__ = ["StopFlag", "StopWork"]

_NAME = "stop"


class StopWork(BaseException):
    """The driver wants this process to stop its current work. No stage raises it."""


class StopFlag:
    """A byte that the processes of a run share. Reading it costs next to nothing, so it is read before each batch.

    Args:
        directory: The directory given to `create`.
    """

    def __init__(self, directory: str) -> None:
        with Path(directory, _NAME).open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), 1)

    @staticmethod
    def create(directory: str) -> None:
        """Create the file for the flag.

        Raises:
            OSError: There is no space for it.
        """
        Path(directory, _NAME).write_bytes(b"\0")  # written, because a hole in the file would fail at its first use

    def set(self) -> None:
        """Ask all processes to stop."""
        self._shared[0] = 1

    @property
    def signal(self) -> int:
        """Whether the processes are asked to stop; 0 for no."""
        return self._shared[0]

    def check(self) -> None:
        """Raise `StopWork` if the driver asked the processes to stop.

        Raises:
            StopWork: It did.
        """
        if self.signal:
            raise StopWork
