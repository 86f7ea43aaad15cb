# SPDX-License-Identifier: Apache-2.0
"""Scripts, and the processes and files of their runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from tests.waiting import DEADLINE_S

if TYPE_CHECKING:
    from collections.abc import Sequence

WORKER = b"curator_core._local.worker"  # in the command of a worker process


def processes() -> list[tuple[int, int, int, bytes]]:
    """Return all live processes: process id, parent, group, and command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            status, command = (path / "stat").read_text(), (path / "cmdline").read_bytes()
        except OSError:  # it has just ended
            continue
        state, parent, group = status.rpartition(")")[2].split()[:3]
        if state not in "ZX":
            found.append((int(path.name), int(parent), int(group), command))
    return found


def workers_of(driver: int) -> list[int]:
    """Return the worker processes of a driver."""
    return [pid for pid, parent, _, command in processes() if parent == driver and WORKER in command]


def files_of(driver: int) -> list[Path]:
    places = ("/dev/shm", tempfile.gettempdir())  # noqa: S108 - possible places
    return [path for place in places for path in Path(place).glob(f"curator-{driver}-*")]


class Script:
    """A script in its own process group, as a terminal would start it.

    Args:
        directory: Directory of the script.
        code: The code of the script.
        prefix: A command that runs the following command.
    """

    def __init__(self, directory: Path, code: str, prefix: Sequence[str] = ()) -> None:
        path = directory / "script.py"
        path.write_text(textwrap.dedent(code))
        self.process = subprocess.Popen(
            [*prefix, sys.executable, str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=_heed_ctrl_c,  # noqa: PLW1509 - it takes no lock
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def interrupt(self, number: int = signal.SIGINT) -> None:
        os.killpg(self.process.pid, number)

    def workers(self) -> list[int]:
        return workers_of(self.process.pid)

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, out, err

    @property
    def is_gone(self) -> bool:
        """Whether no process or file of the script is left, including the process that removes the files."""
        pid, name = self.process.pid, f"curator-{self.process.pid}-".encode()
        return not files_of(pid) and not any(group == pid or name in command for _, _, group, command in processes())


def _heed_ctrl_c() -> None:
    """Handle Ctrl-C: a process that a shell starts in the background ignores it, and so do its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
