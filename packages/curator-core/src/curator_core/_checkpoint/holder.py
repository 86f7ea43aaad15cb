# SPDX-License-Identifier: Apache-2.0
"""Who holds a lock, and whether that process is known to be gone."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

__all__ = ["Holder"]

_PROC = Path("/proc")  # where there is none, less is known, and more counts as alive
_LARGEST_PID = 2**31 - 1
_STATE, _STARTED = 0, 19  # fields of /proc/<pid>/stat after the command's name
_ENDED = (b"Z", b"X", b"x")  # killed, and not yet waited for


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds a lock, on its host.

    Attributes:
        host: Name of the host.
        boot_id: Which start of the host; empty where that is not known.
        pid_namespace: In which its pid is a pid; empty where there are none. Containers have their own.
        pid: The process.
        started: When that process began, in ticks since the host booted; 0 where not known.
        run_id: The run.
        since: When it took the lock, Unix seconds.
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
        """This process, now."""
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
        """What `dump` wrote; None where it is something else, or not all of it."""
        from json import loads  # noqa: PLC0415 - 2 ms, which an import of this package need not cost

        try:
            found = loads(data)
        except (ValueError, RecursionError):
            return None
        return cls(**found) if _is_holder(found) else None

    def dump(self) -> bytes:
        """As JSON, on one line."""
        from json import dumps  # noqa: PLC0415 - as above

        return dumps(asdict(self)).encode("ascii") + b"\n"

    def is_gone(self) -> bool:
        """Whether it is known that the process has ended. False where that cannot be said from here."""
        here = Holder.here("")
        if self.host != here.host:
            return False
        if self.boot_id != here.boot_id:
            # Two machines may have one name: a lock that was taken when this one was up already is the other one's.
            return bool(self.boot_id and here.boot_id) and self.since < _booted_at()
        return self.pid_namespace == here.pid_namespace and not _is_running(self.pid, self.started)

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.since))
        return f"run {self.run_id} on host {self.host}, process {self.pid}, since {since}"


def _is_holder(found: Any) -> bool:
    kinds = {"str": str, "int": int, "float": float}
    if not isinstance(found, dict) or found.keys() != {field.name for field in fields(Holder)}:
        return False
    # kill(0) and kill(-1) would be about other processes; gmtime() knows no year 10**9.
    return all(type(found[field.name]) is kinds[str(field.type)] for field in fields(Holder)) and (
        0 < found["pid"] <= _LARGEST_PID and 0 <= found["since"] < 1e11
    )


def _is_running(pid: int, started: int) -> bool:
    try:
        os.kill(pid, 0)  # signal 0 asks only whether there is such a process
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # there is, and it is another user's
    state, started_now = _process(pid)
    is_another = bool(started and started_now) and started != started_now  # the number has been given out again
    return state not in _ENDED and not is_another


def _process(pid: int) -> tuple[bytes, int]:
    """State of a process, and when it began; empty and 0 where that cannot be seen."""
    try:
        stat = (_PROC / str(pid) / "stat").read_bytes()
    except OSError:
        return b"", 0
    values = stat.rpartition(b")")[2].split()  # the command's name, in brackets, may hold anything
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
