# SPDX-License-Identifier: Apache-2.0
"""How a run ends when a scheduler asks its process to: on SIGTERM, and on SIGUSR1 as a notice of preemption.

Such a signal is handled in two places. Python calls the handler in the main thread, which raises `StopSignal` there, so
that the run unwinds as it does after Ctrl-C. But Python calls handlers only between two bytecodes of the main thread,
which may be in a C call that takes an hour, or in code that catches everything. So a thread of the run learns of the
signal as well, through the file descriptor that the C half of Python's signal handling writes to. This thread keeps the
time: it causes the exception to be raised again if it was swallowed, and ends the process at the deadline.

Schedulers send a signal more than once. After the first one, a repeat has no effect, even if the run is over and the
process is exiting, when the default action would still kill it. This lasts until the grace period is over or another
run begins, so that a process whose user catches the `RunStopped` and continues can be stopped again.
"""

from __future__ import annotations

import _thread
import atexit
import logging
import os
import signal
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, Any

from curator_core._guard.interrupts import StopSignal
from curator_core._guard.signals import STOP_SIGNALS, handler_of
from curator_core.errors import RunStopped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType, FrameType

    from curator_core.results import RunResult

__all__ = ["Shutdown"]

logger = logging.getLogger(__name__)

_FOR_STAGES = 0.7  # share of the grace period for stages to finish their current work and to tear down
_FOR_MAIN_THREAD = 0.85  # share of the grace period after which the run's thread closes the accounts in its place
_RETRY_S = 0.02  # after which the exception is raised again if it has not arrived


class Shutdown:
    """Whether a run has to end, and by when.

    Args:
        grace_s: Seconds from the signal to the end of the process.
        engine: Top-level package of an engine that installs signal handlers on its own. The run replaces them.
        accounts: Code of a function that the exception does not interrupt, because it updates the run's accounts. The
            exception is raised after it has returned.

    Attributes:
        grace_s: Seconds from the signal to the end of the process.
        signal: The first signal that arrived; 0 for none.
        result: The work done so far; None until it is known.
    """

    def __init__(self, grace_s: float = 10.0, engine: str = "", accounts: CodeType | None = None) -> None:
        self.grace_s = grace_s
        self.signal = 0
        self.result: RunResult | None = None
        self._engine = engine
        self._accounts = accounts
        self._since = 0.0
        self._before: dict[int, Any] = {}
        self._is_raised = False
        self._closing = threading.Lock()  # taken by the thread that closes the accounts, and never released
        self._is_closing = threading.Event()
        self._over = threading.Event()

    # --- for the run --------------------------------------------------------------------------------------

    @contextmanager
    def armed(self, last_words: Callable[[RunStopped], None]) -> Iterator[None]:
        """Handle the signals inside the ``with`` block. Has no effect outside of the main thread.

        If the user has a handler for a signal, that handler stays.

        Args:
            last_words: Closes the accounts of the run, in another thread, if the main thread does not do it in time.

        Raises:
            RunStopped: A signal arrived, whatever else was raised.
        """
        try:
            with ExitStack() as given_back:
                if threading.current_thread() is threading.main_thread():
                    self._install(given_back, last_words)
                yield
        except BaseException as exc:
            if not self.signal:
                raise
            raise self._stopped() from (None if isinstance(exc, KeyboardInterrupt) else exc)
        if self.signal:  # the run was already complete, but the process still has to end
            raise self._stopped()

    def check(self) -> None:
        """Raise `StopSignal` if a signal has arrived, in case the exception was swallowed.

        Raises:
            StopSignal: A signal has arrived.
        """
        if self.signal:
            raise StopSignal(self.signal, self.raise_again)

    def close_accounts(self) -> None:
        """Record that the main thread closes the accounts now. From here on, nothing is raised in it."""
        self._closing.acquire()
        self._is_closing.set()

    def reason(self, exc: BaseException) -> BaseException:
        """Return why the run ends: a `RunStopped` if a signal has arrived, otherwise the exception."""
        return RunStopped(self.signal) if self.signal else exc

    @property
    def left_s(self) -> float:
        """Seconds left for stages to finish their current work and to tear down."""
        if not self.signal:
            return self.grace_s
        return max(0.0, self._since + _FOR_STAGES * self.grace_s - time.monotonic())

    def raise_again(self) -> None:
        """Raise the exception again soon, because the interpreter swallowed it, for example in a ``__del__``."""
        self._is_raised = False

    # --- handlers -----------------------------------------------------------------------------------------

    def _install(self, given_back: ExitStack, last_words: Callable[[RunStopped], None]) -> None:
        found = {each: _unwrapped(signal.getsignal(each)) for each in STOP_SIGNALS}
        self._before = {each: handler for each, handler in found.items() if self._is_free(handler)}
        if not self._before:
            return
        _heed_forks_and_exit()
        _armed.append(self)
        for each in self._before:
            signal.signal(each, self._handle)
        given_back.callback(self._give_back)
        reads, writes = os.pipe()
        os.set_blocking(writes, False)
        wakeup_before = signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
        watch = threading.Thread(
            target=self._watch, args=(reads, wakeup_before, last_words), name="curator-signals", daemon=True
        )
        watch.start()
        given_back.callback(os.close, writes)
        given_back.callback(watch.join)
        given_back.callback(self._end_watch, writes)
        given_back.callback(signal.set_wakeup_fd, wakeup_before)

    def _end_watch(self, writes: int) -> None:
        if not self._is_closing.is_set():  # the run had not begun, so it has no accounts to close
            self.close_accounts()
        self._over.set()
        # If the pipe is full, the thread wakes up anyway. It may have ended already if a signal has just arrived.
        with suppress(BlockingIOError, BrokenPipeError):
            os.write(writes, b"\0")  # closing is not enough: a fork of a stage may have a copy

    def _is_free(self, handler: Any) -> bool:
        if handler == signal.SIG_DFL:
            return True
        return bool(self._engine) and getattr(handler, "__module__", "").partition(".")[0] == self._engine

    def _is_ours(self, number: int) -> bool:
        return handler_of(number) == self._handle  # type: ignore[no-any-return]  # a comparison

    def _give_back(self) -> None:
        if self in _armed:
            _armed.remove(self)
        ours = [each for each in self._before if self._is_ours(each)]  # a stage may have installed its own
        for each in ours * 2:  # twice, because the first signal may have arrived in between
            before = self._before[each]
            signal.signal(each, _Ending(before, self._since + self.grace_s) if self.signal else before)

    def forget(self) -> None:
        """Restore the handlers in a fork of the run's process, because the run does not end with the fork."""
        signal.set_wakeup_fd(-1)
        self._give_back()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._note(number)
        if self._is_raised or self._is_closing.is_set() or self._is_in_accounts(frame):
            return
        self._is_raised = True
        raise StopSignal(self.signal, self.raise_again)

    def _note(self, number: int) -> None:
        if not self.signal:
            self._since = time.monotonic()
            self.signal = number

    def _is_in_accounts(self, frame: FrameType | None) -> bool:
        while frame is not None:
            if frame.f_code is self._accounts:
                return True
            frame = frame.f_back
        return False

    # --- the thread ---------------------------------------------------------------------------------------

    def _watch(self, reads: int, wakeup_before: int, last_words: Callable[[RunStopped], None]) -> None:
        """Wait for a signal until the run is over."""
        try:
            while (came := os.read(reads, 64)) and not self._over.is_set():
                if wakeup_before >= 0:
                    with suppress(OSError):
                        os.write(wakeup_before, came)  # for example to asyncio
                numbers = [number for number in came if number in self._before and self._is_ours(number)]
                if numbers:
                    self._note(numbers[0])
                    self._keep_time(last_words)
                    return
        finally:
            os.close(reads)

    def _keep_time(self, last_words: Callable[[RunStopped], None]) -> None:
        """Ensure that the process ends before the deadline."""
        code = RunStopped(self.signal).code
        deadline = threading.Timer(self._remaining(1), os._exit, (code,))
        deadline.daemon = True
        deadline.start()
        while self._remaining(_FOR_MAIN_THREAD) and not self._is_closing.wait(_RETRY_S):
            if not self._is_raised and self._is_ours(self.signal):
                _thread.interrupt_main(signal.Signals(self.signal))
        if self._closing.acquire(blocking=False):  # the main thread is still stuck
            try:
                self._end_for_main_thread(last_words)
            finally:
                os._exit(code)
        self._over.wait()
        deadline.cancel()

    def _end_for_main_thread(self, last_words: Callable[[RunStopped], None]) -> None:
        logger.error("the main thread did not return in time: the process exits without teardown")
        last_words(RunStopped(self.signal))
        self._stopped()
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()

    def _remaining(self, share: float) -> float:
        """Return the seconds until a share of the grace period is over."""
        return max(0.0, self._since + share * self.grace_s - time.monotonic())

    def _stopped(self) -> RunStopped:
        """Return the exception for the caller. It prints nothing when it ends the process, so log the summary here."""
        stopped = RunStopped(self.signal)
        stopped.result = self.result
        if self.result is None:
            logger.warning("%s before any work was done", stopped)
        else:
            logger.warning("%s; work done so far:\n%s", stopped, self.result.summary())
        return stopped


class _Ending:
    """A handler for the time after a signal has ended a run: it ignores signals until the grace period is over.

    Args:
        before: The handler to restore after that.
        until: The end of the grace period, by the monotonic clock.
    """

    def __init__(self, before: Any, until: float) -> None:
        self.before = before
        self._until = until

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.is_over:
            signal.signal(number, self.before)
            signal.raise_signal(number)

    @property
    def is_over(self) -> bool:
        """Whether the grace period is over."""
        return time.monotonic() >= self._until


def _unwrapped(handler: Any) -> Any:
    """Return the handler that was installed before a signal ended a run."""
    return handler.before if isinstance(handler, _Ending) else handler


_armed: list[Shutdown] = []


_forking = threading.local()


@cache
def _heed_forks_and_exit() -> None:
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
    atexit.register(_at_exit)


def _at_exit() -> None:
    # The interpreter restores handlers at exit, and then finalizes, which may take a while.
    for each in STOP_SIGNALS:
        handler = signal.getsignal(each)
        if isinstance(handler, _Ending):
            signal.signal(each, handler.before if handler.is_over else signal.SIG_IGN)


def _before_fork() -> None:
    # A child that gets a signal before it has forgotten the run would write to its parent's pipe, or ignore the signal.
    is_ours = bool(_armed) or any(isinstance(signal.getsignal(each), _Ending) for each in STOP_SIGNALS)
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS) if is_ours else None


def _after_fork() -> None:
    if _forking.mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _after_fork_in_child() -> None:
    while _armed:
        _armed[-1].forget()
    for each in STOP_SIGNALS:
        if isinstance(handler := signal.getsignal(each), _Ending):
            signal.signal(each, handler.before)
    _after_fork()
