# SPDX-License-Identifier: Apache-2.0
"""Every error this project raises, as one tree.

    CuratorError
    ├── ConfigurationError          an invalid value, found before anything ran
    │   ├── ResourcesError          an invalid resource request, or one that no machine can satisfy
    │   ├── PipelineError           a pipeline that cannot be compiled
    │   │   └── StageDefinitionError    because of one of its stages
    │   └── ExecutorError           an unknown executor or observer, or an invalid setting of one
    ├── RunError                    a failure during the run
    │   ├── StageError              a stage's own code raised, in setup or in a batch
    │   │   ├── ContractError       a stage returned something that the contract does not allow
    │   │   ├── InputError          a task is not valid, or lacks a field that the stage requires
    │   │   ├── ProcessDiedError    a task killed the process of an isolated stage
    │   │   └── StageTimeoutError   a call exceeded the stage's timeout_s
    │   ├── WorkerDiedError         a worker process died while it had work
    │   ├── ClusterError            the cluster cannot be reached, or it failed
    │   ├── TasksLostError          the counts of a run do not add up
    │   └── FailureLimitError       more tasks failed than allowed
    └── DataError                   a file or record that cannot be read or written

    SystemExit
    └── RunStopped                  a signal ended the run and the process; not caught by ``except Exception``

Each error shows the same five details if they apply: the stage, the field, the given value, the expected value, and a
hint for fixing the problem. They are also attributes, so that a program can act on them. An error that ends a run also
has the work done so far, as ``.result``.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any, Literal

from curator_core._guard.user_code import check_failure

if TYPE_CHECKING:
    from collections.abc import Iterable

    from curator_core.results import RunResult

__all__ = [
    "ClusterError",
    "ConfigurationError",
    "ContractError",
    "CuratorError",
    "DataError",
    "ExecutorError",
    "FailureLimitError",
    "InputError",
    "PipelineError",
    "ProcessDiedError",
    "ResourcesError",
    "RunError",
    "RunStopped",
    "StageDefinitionError",
    "StageError",
    "StageTimeoutError",
    "TasksLostError",
    "WorkerDiedError",
]

_GIVEN_LIMIT = 200  # characters of a repr that an error shows: enough to recognize a value


class CuratorError(Exception):
    """Base class of every error of this project.

    Args:
        message: What is wrong, as one sentence without a period.
        stage: Name of the stage concerned.
        field: Name of the field, argument, column, or file concerned.
        given: The wrong value. The error shows its ``repr``, shortened.
        expected: Description of a correct value.
        hint: How to fix the problem.

    Attributes:
        result: For an error that ended a run, the work done so far: counts for each stage, and the complete outputs.
            None before the first batch.
    """

    result: RunResult | None = None

    def __init__(
        self,
        message: str,
        *,
        stage: str | None = None,
        field: str | None = None,
        given: Any = ...,
        expected: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.message = message
        self.stage = stage
        self.field = field
        # The repr, not the object: an error must pickle, and must not keep a payload alive.
        self.given = None if given is ... else short_repr(given)
        self.expected = expected
        self.hint = hint
        super().__init__(message)

    def __str__(self) -> str:
        where = f"stage '{self.stage}': " if self.stage else ""
        parts = [f"{where}{self.message}"]
        for label, value in (
            ("field", self.field),
            ("given", self.given),
            ("expected", self.expected),
            ("hint", self.hint),
        ):
            if value is not None:
                parts.append(f"  {label}: {value}")
        # Names of files or columns that are not valid Unicode must not break printing the error.
        return "\n".join(parts).encode("utf-8", "backslashreplace").decode()

    def __reduce__(self) -> tuple[Any, ...]:
        # BaseException pickles positional arguments only. The others are keywords, so the state carries them.
        return (_rebuild, (type(self), self.message), self.__dict__.copy())


class ConfigurationError(CuratorError, ValueError):
    """An invalid value. Nothing has run yet."""


class ResourcesError(ConfigurationError):
    """A resource request that is invalid, or that no available machine can satisfy."""


class PipelineError(ConfigurationError):
    """A pipeline that cannot be compiled."""


class StageDefinitionError(PipelineError):
    """A stage that cannot be part of a pipeline as it is written."""


class ExecutorError(ConfigurationError):
    """An executor or observer that is not installed, or an invalid setting of one."""


class RunError(CuratorError):
    """A failure during a run."""


class StageError(RunError):
    """A stage's own code raised. The original exception is the ``__cause__``."""


class ContractError(StageError):
    """A stage returned something that the contract does not allow."""


class InputError(StageError):
    """A task is not valid, or lacks an attribute or a column that the stage declares in ``inputs()``."""


class ProcessDiedError(StageError):
    """The process of an isolated stage died: it crashed, or was killed from outside.

    Attributes:
        how: How it died, such as "was killed by SIGSEGV".
    """

    how: str = ""


class StageTimeoutError(StageError):
    """A call of ``process`` or ``process_batch`` exceeded the stage's ``timeout_s``."""


class WorkerDiedError(RunError):
    """A worker process died while it had work."""


class ClusterError(RunError):
    """The cluster cannot be reached, or it failed."""


class TasksLostError(RunError):
    """The counts of a run do not add up: some task left one stage and never reached the next."""


class FailureLimitError(RunError):
    """More tasks failed than the run's ``max_failures`` allows."""


class DataError(CuratorError):
    """A file or record that cannot be read or written."""


class RunStopped(SystemExit):
    """A signal asked the process to end while a pipeline ran, and the run has ended cleanly.

    It is a `SystemExit` and not a `CuratorError`: ``except Exception`` does not catch it, and a process that does not
    catch it exits with 128 plus the signal number, as a shell reports it: 143 for SIGTERM and, on Linux, 138 for
    SIGUSR1.

    Args:
        signal_number: The signal.

    Attributes:
        code: The exit status.
        signal: The signal.
        state: Same as `RunResult.state`: ``"terminated"`` for SIGTERM, ``"preempted"`` for SIGUSR1.
        result: The work done so far; None if the signal arrived before any work was done.
    """

    code: int
    result: RunResult | None = None

    def __init__(self, signal_number: int) -> None:
        super().__init__(128 + signal_number)
        self.args = (signal_number,)
        self.signal = signal.Signals(signal_number)
        self.state: Literal["terminated", "preempted"] = (
            "terminated" if signal_number == signal.SIGTERM else "preempted"
        )

    def __str__(self) -> str:
        return f"the run was {self.state} by {self.signal.name}"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is closest to a mistyped one; None if none is close."""
    import difflib  # noqa: PLC0415 - only needed for typos, and would add 3 ms to each import of this package

    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return matches[0] if matches else None


def unknown_name(kind: str, name: str, known: Iterable[str], field: str = "") -> dict[str, Any]:
    """Return the keyword arguments of an error about an unknown name, with the closest known name as the hint.

    Args:
        kind: What the name stands for.
        name: The unknown name.
        known: The known names.
        field: The setting that has the name, if the name is not itself the setting.
    """
    names = sorted(known)
    close = nearest(name, names)
    return {
        "field": field or name,
        "expected": f"one of the {kind}s: {', '.join(names) or 'none is known'}",
        "hint": f"did you mean {close!r}?" if close else f"remove it, or use a known {kind}",
    }


def _rebuild(cls: type[CuratorError], message: str) -> CuratorError:
    error = cls.__new__(cls)  # skips __init__, which may require more arguments in a subclass
    error.args = (message,)
    return error


def short_repr(value: Any) -> str:
    """Return the ``repr`` of a value, cut to a length that a message can show. Does not fail if ``repr`` raises."""
    import reprlib  # noqa: PLC0415 - errors are rare

    shortener = reprlib.Repr()
    shortener.maxstring = shortener.maxother = shortener.maxlong = 10 * _GIVEN_LIMIT
    try:
        # A payload may be huge, so it is cut before its repr is made.
        is_text = isinstance(value, str | bytes | bytearray)
        text = repr(value[: _GIVEN_LIMIT + 1]) if is_text else shortener.repr(value)
    except BaseException as exc:  # noqa: BLE001 - a broken repr of a user's object must not hide the actual error
        check_failure(exc)
        text = f"<{type(value).__name__} whose repr raised {type(exc).__name__}>"
    return text if len(text) <= _GIVEN_LIMIT else f"{text[:_GIVEN_LIMIT]}…"
