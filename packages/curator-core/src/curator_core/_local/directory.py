# SPDX-License-Identifier: Apache-2.0
"""The directory that the processes of a run share, in memory if possible. It is gone however the driver ends."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from curator_core._guard.signals import signals_blocked
from curator_core._processes.channel import open_standard_streams
from curator_core.errors import ExecutorError

__all__ = ["SharedDirectory"]

_IN_MEMORY = "/dev/shm"  # noqa: S108 - not a file with a predictable name: a directory is created in it
# The pipe to its input closes when the driver ends, even if it is killed. Workers end then too, and may still write.
_REMOVE_LATER = """
read end_of_the_driver
tries=100
while [ -e "$1" ] && [ $((tries -= 1)) -ge 0 ]; do
    rm -rf "$1"
    sleep 0.1
done
"""


class SharedDirectory:
    """A new directory, and a process that removes it if this process is killed.

    Attributes:
        path: The directory.

    Raises:
        ExecutorError: There is no space for it, or the process cannot be started.
    """

    def __init__(self) -> None:
        open_standard_streams()
        try:
            self.path = _created(f"curator-{os.getpid()}-{os.urandom(6).hex()}")
            self._remover = self._start_remover()
        except OSError as exc:
            raise ExecutorError(
                f"the directory that processes share cannot be created: {exc}",
                field="workers",
                expected=f"free space in {_IN_MEMORY} or in the temporary directory",
                hint="free up space there, set TMPDIR to another directory, or pass workers=1",
            ) from exc

    def remove(self) -> None:
        """Remove the directory."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._remover is not None:
            self._remover.kill()
            self._remover.communicate()

    def _start_remover(self) -> subprocess.Popen[bytes] | None:
        """Start the process; return None in containers without a shell, which are removed with their files."""
        command = ["/bin/sh", "-c", _REMOVE_LATER, "curator-remover", self.path]
        try:
            with signals_blocked():  # it never unblocks them
                return subprocess.Popen(  # noqa: S603 - our own code
                    command, stdin=subprocess.PIPE, cwd="/", start_new_session=True
                )
        except FileNotFoundError:
            return None
        except OSError:
            shutil.rmtree(self.path, ignore_errors=True)
            raise


def _created(name: str) -> str:
    try:
        path = Path(_IN_MEMORY, name)
        path.mkdir(mode=0o700)
    except OSError:  # it does not exist, or is not writable
        path = Path(tempfile.gettempdir(), name)
        path.mkdir(mode=0o700)
    return str(path)
