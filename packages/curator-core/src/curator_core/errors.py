# SPDX-License-Identifier: Apache-2.0
"""Every error this project raises, as one tree.

    CuratorError
    ├── ConfigurationError          a value we were given is wrong; found before anything ran
    │   ├── ResourcesError          a resource request that means nothing, or that no machine can meet
    │   ├── PipelineError           a pipeline that cannot be compiled
    │   │   └── StageDefinitionError    one of its stages is the reason
    │   └── ExecutorError           an executor or observer that is not there, or a setting of one
    ├── RunError                    something went wrong while running
    │   ├── StageError              a stage's own code raised, in set-up or in a batch
    │   │   ├── ContractError       a stage returned something that the contract does not allow
    │   │   ├── InputError          a task lacks what the stage declares that it needs
    │   │   ├── ProcessDiedError    a task killed the process that a stage had for itself
    │   │   └── StageTimeoutError   a call took longer than the stage's timeout_s
    │   ├── WorkerDiedError         a worker process ended while it had work
    │   ├── ClusterError            the cluster cannot be reached, or does not do its part
    │   ├── TasksLostError          the counts of a run do not add up
    │   └── FailureLimitError       more tasks failed than may
    └── DataError                   a file or record that cannot be read or written

    SystemExit
    └── RunStopped                  a signal ended the run and the process; not caught by ``except Exception``

Each says the same five things where they apply: which stage, which field, what was given, what was
expected, and how to fix it. They are attributes too, so that a program can act on them. An error that ends a
run has a ``.result`` too: the work done until then.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any, Literal

from curator_core.guard import check_failure

if TYPE_CHECKING:
    from collections.abc import Iterable

    from curator_core.executor import RunResult

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

_GIVEN_LIMIT = 200  # characters of a repr that an error shows: enough to recognise a value by


class CuratorError(Exception):
    """Base of every error of this project.

    Args:
        message: What is wrong, as one sentence without a full stop.
        stage: Name of the stage concerned.
        field: Name of the field, argument, column or file concerned.
        given: What was given; its ``repr`` is shown, shortened.
        expected: What would have been right, in words.
        hint: How to fix it, in words.

    Attributes:
        result: Where the error ended a run, what was done until then: counts for each stage, and the outputs that were
            complete. None before the first batch.
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
        # Names that are not Unicode, of files or columns, must not fail where the error is printed.
        return "\n".join(parts).encode("utf-8", "backslashreplace").decode()

    def __reduce__(self) -> tuple[Any, ...]:
        # BaseException pickles positional arguments only; ours are keywords, so state carries them.
        return (_rebuild, (type(self), self.message), self.__dict__.copy())


class ConfigurationError(CuratorError, ValueError):
    """A value we were given is wrong. Nothing has run yet."""


class ResourcesError(ConfigurationError):
    """A resource request that means nothing, or that no machine at hand can meet."""


class PipelineError(ConfigurationError):
    """A pipeline that cannot be compiled."""


class StageDefinitionError(PipelineError):
    """A stage that cannot stand in a pipeline as it is written."""


class ExecutorError(ConfigurationError):
    """An executor or observer that is not installed, or a setting that one does not know."""


class RunError(CuratorError):
    """Something went wrong while a pipeline ran."""


class StageError(RunError):
    """A stage's own code raised. The original exception is the ``__cause__``."""


class ContractError(StageError):
    """A stage returned something that the contract does not allow."""


class InputError(StageError):
    """A task lacks an attribute or a column that the stage declares in ``inputs()``."""


class ProcessDiedError(StageError):
    """The process that a stage had for itself died: it crashed, or was ended from outside.

    Attributes:
        how: In what way, such as "was killed by SIGSEGV".
    """

    how: str = ""


class StageTimeoutError(StageError):
    """A call of ``process`` or ``process_batch`` took longer than the stage's ``timeout_s``."""


class WorkerDiedError(RunError):
    """A worker process ended while it had work."""


class ClusterError(RunError):
    """The cluster cannot be reached, or does not do its part."""


class TasksLostError(RunError):
    """The counts of a run do not add up: some task left one stage and never reached the next."""


class FailureLimitError(RunError):
    """More tasks failed than the run's ``max_failures`` allows."""


class DataError(CuratorError):
    """A file or record that cannot be read or written."""


class RunStopped(SystemExit):
    """A signal asked the process to end while a pipeline ran, and the run has ended in good order.

    It is a `SystemExit` and not a `CuratorError`: ``except Exception`` lets it through, and a process that does not
    catch it exits with 128 plus the number of the signal, as a shell reports it: 143 for SIGTERM and, on Linux, 138 for
    SIGUSR1.

    Args:
        signal_number: The signal.

    Attributes:
        code: The exit status.
        signal: The signal.
        state: What `RunResult.state` says: ``"terminated"`` for SIGTERM, ``"preempted"`` for SIGUSR1.
        result: What was done until then; None where the signal came before anything was done.
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
    """The known name that is closest to a mistyped one, if any is close."""
    import difflib  # noqa: PLC0415 - for people who mistype; it costs each import of this package 3 ms

    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return matches[0] if matches else None


def unknown_name(kind: str, name: str, known: Iterable[str]) -> dict[str, Any]:
    """The keyword arguments of an error about a name that is not known, with the nearest one as the mend."""
    names = sorted(known)
    close = nearest(name, names)
    return {
        "field": name,
        "expected": f"one of the {kind}s: {', '.join(names) or 'none is known'}",
        "hint": f"did you mean {close!r}?" if close else f"remove it, or use a known {kind}",
    }


def _rebuild(cls: type[CuratorError], message: str) -> CuratorError:
    error = cls.__new__(cls)  # past an __init__ of a subclass, which may ask for more
    error.args = (message,)
    return error


def short_repr(value: Any) -> str:
    """The ``repr`` of a value, cut to a length that a message can show. Never raises what that raises."""
    import reprlib  # noqa: PLC0415 - errors are rare

    shortener = reprlib.Repr()
    shortener.maxstring = shortener.maxother = shortener.maxlong = 10 * _GIVEN_LIMIT
    try:
        # A payload may be huge: what is cut off anyway need not be spelt out first.
        is_text = isinstance(value, str | bytes | bytearray)
        text = repr(value[: _GIVEN_LIMIT + 1]) if is_text else shortener.repr(value)
    except BaseException as exc:  # noqa: BLE001 - a broken repr of a user's object must not hide the real error
        check_failure(exc)
        text = f"<{type(value).__name__} whose repr raised {type(exc).__name__}>"
    return text if len(text) <= _GIVEN_LIMIT else f"{text[:_GIVEN_LIMIT]}…"
