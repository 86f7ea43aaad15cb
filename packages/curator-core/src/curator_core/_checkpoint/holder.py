# SPDX-License-Identifier: Apache-2.0
"""The process that holds a lock, and whether it is known to have ended."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

__all__ = ["Holder"]

_PROC = Path("/proc")  # without it, less is known about processes, so more of them count as alive
_LARGEST_PID = 2**31 - 1
_STATE, _STARTED = 0, 19  # fields of /proc/<pid>/stat after the command's name
_ENDED = (b"Z", b"X", b"x")  # ended, but its parent did not wait for it yet


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds a lock, on its host.

    Attributes:
        host: Name of the host.
        boot_id: The id that the host gives to each boot; empty if unknown.
        pid_namespace: The namespace of the process id; empty if the system has none. Containers have their own.
        pid: The process id.
        started: When the process started, in ticks since the host booted; 0 if unknown.
        run_id: The id of the run.
        since: When the process took the lock, in Unix seconds.
    """

    host: str
    boot_id: str
    pid_namespace: str
    pid: int
    started: int
    run_id: str
    since: float

    @classmethod
    def here(cls, run_id: str) -> Holder:
        """Return this process as a holder, as of now."""
        pid = os.getpid()
        return cls(
            host=os.uname().nodename,
            boot_id=_text(_PROC / "sys/kernel/random/boot_id"),
            pid_namespace=_link(_PROC / "self/ns/pid"),
            pid=pid,
            started=_process(pid)[1],
            run_id=run_id,
            since=time.time(),
        )

    @classmethod
    def parse(cls, data: bytes) -> Holder | None:
        """Parse the output of `dump`; None if the data is something else, or incomplete."""
        from json import loads  # noqa: PLC0415 - would add 2 ms to each import of this package

        try:
            found = loads(data)
        except (ValueError, RecursionError):
            return None
        return cls(**found) if _is_holder(found) else None

    def dump(self) -> bytes:
        """Return the holder as one line of JSON."""
        from json import dumps  # noqa: PLC0415 - see `parse`

        return dumps(asdict(self)).encode("ascii") + b"\n"

    def is_gone(self) -> bool:
        """Whether the process is known to have ended. False if that cannot be determined from here."""
        here = Holder.here("")
        if self.host != here.host:
            return False
        if self.boot_id != here.boot_id:
            # Two machines may have the same name: a lock taken after this one booted belongs to the other one.
            return bool(self.boot_id and here.boot_id) and self.since < _booted_at()
        return self.pid_namespace == here.pid_namespace and not _is_running(self.pid, self.started)

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.since))
        return f"run {self.run_id} on host {self.host}, process {self.pid}, since {since}"


def _is_holder(found: Any) -> bool:
    kinds = {"str": str, "int": int, "float": float}
    if not isinstance(found, dict) or found.keys() != {field.name for field in fields(Holder)}:
        return False
    # kill(0) and kill(-1) would concern other processes; gmtime() does not support the year 10**9.
    return all(type(found[field.name]) is kinds[str(field.type)] for field in fields(Holder)) and (
        0 < found["pid"] <= _LARGEST_PID and 0 <= found["since"] < 1e11
    )


def _is_running(pid: int, started: int) -> bool:
    try:
        os.kill(pid, 0)  # signal 0 only checks whether the process exists
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it exists, and belongs to another user
    state, started_now = _process(pid)
    is_another = bool(started and started_now) and started != started_now  # the process id was reused
    return state not in _ENDED and not is_another


def _process(pid: int) -> tuple[bytes, int]:
    """Return the state of a process and when it started; empty and 0 if unknown."""
    try:
        stat = (_PROC / str(pid) / "stat").read_bytes()
    except OSError:
        return b"", 0
    values = stat.rpartition(b")")[2].split()  # the command's name, in parentheses, may contain anything
    return values[_STATE], int(values[_STARTED])


def _booted_at() -> float:
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode().strip()
    except OSError:
        return ""


def _link(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""
